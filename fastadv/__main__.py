"""`python -m fastadv` is the command `fastadv`."""

from fastadv.cli import main

if __name__ == "__main__":
    main()
