"""Numbers as a shell gives them: 8/255, 0.03."""

import math
from fractions import Fraction

from fastadv.cli.user_error import UserError


def number(option: str, text: str) -> float:
    """8/255 or 0.03 as a float: the quotient, rounded once; inf is infinite. option: for the error,
    as "eps"."""
    if text.strip().lower() == "inf":
        return math.inf
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(
            f"--{option} must be a number such as 0.03 or 8/255; got {text!r}"
        ) from None


def number_or_none(option: str, text: str | None) -> float | None:
    return None if text is None else number(option, text)
