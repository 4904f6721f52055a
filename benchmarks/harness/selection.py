"""Which cases of a command are run."""

import re
import sys
from collections.abc import Iterable


def matching(pattern: str, names: Iterable[str], *, option: str) -> list[str]:
    """The names that the regular expression is found in.

    Where there are none, or it is no regular expression, the command ends and says what there is:
    a benchmark that runs nothing must not look like one that has passed.
    """
    known = list(dict.fromkeys(names))
    try:
        chosen = [name for name in known if re.search(pattern, name)]
    except re.error as error:
        sys.exit(f"{option} {pattern!r} is no regular expression: {error}")
    if not chosen:
        sys.exit(f"no case matches {option} {pattern!r}; there are: {', '.join(known)}")
    return chosen
