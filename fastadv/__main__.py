"""`python -m fastadv` is the command `fastadv`."""

from fastadv.cli.entry import main

if __name__ == "__main__":
    main()
