"""Warnings of fastadv's attacks as lines of the authors' log."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

from fastadv.compat.autoattack import checks
from fastadv.diagnostics import AttackWarning


@contextlib.contextmanager
def relayed(
    log: Callable[[str], None], *, samples: int, silent: tuple[str, ...] = ()
) -> Iterator[None]:
    """Log every `AttackWarning` as it comes, once, in the authors' words where they have them.

    Other warnings pass. samples: of the run. silent: codes that are not logged.
    """
    said: set[str] = set()
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message, category, filename, lineno, file=None, line=None) -> None:
            if not isinstance(message, AttackWarning):
                shown(message, category, filename, lineno, file, line)
                return
            text = f"Warning: {_authors_words(message, samples)}"
            if message.code not in silent and text not in said:
                said.add(text)
                log(text)

        warnings.simplefilter("always", AttackWarning)
        warnings.showwarning = show
        yield


def _authors_words(warning: AttackWarning, samples: int) -> str:
    if warning.code == "randomised":
        return checks.randomized_text()
    if warning.code == "probabilities":
        return checks.probabilities_text()
    if warning.code == "dynamic":
        return checks.dynamic_text()
    if warning.code == "zero_gradient":
        return checks.zero_gradients_text(warning.count)
    if warning.code == "square_gains":
        return checks.square_text(warning.count / samples)
    return str(warning)
