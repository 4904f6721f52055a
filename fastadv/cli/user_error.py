"""What a command says of a mistake: one line."""


class UserError(Exception):
    """A mistake in what was asked for, said in one line."""


def said(error: BaseException) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
