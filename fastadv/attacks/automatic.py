"""`fastadv.tune`, and execution="auto": an execution that was measured, not given."""

import math
from collections.abc import Callable, Sequence
from typing import get_args

import torch

from fastadv import diagnostics
from fastadv.attacks.call import inputs
from fastadv.attacks.call.settings import Settings
from fastadv.execution import Auto, Execution, Precision
from fastadv.isolation import Model
from fastadv.tuning.kept import kept
from fastadv.tuning.measure import measured
from fastadv.tuning.passes import USES, Use
from fastadv.tuning.table import Table

AUTO_SECONDS = 5.0  # that execution="auto" may take to find out
_MOST = 1024  # samples: more are no other question


def tune(
    model: Model,
    x: torch.Tensor,
    *,
    seconds: float = 10,
    precisions: Sequence[Precision] = ("fp32",),
    extra: Sequence[torch.Tensor] = (),
) -> Execution:
    """The fastest way to attack `model` at samples like x, measured here and now.

    model: callable from (B, ...) to logits. x: (B, ...) of its inputs, B >= 1, repeated to fill
    batches; extra: what the model takes beside x. Timed are a forward pass alone, which is all that
    Square and the looks at clean samples and successes make, and a step with its way back to the
    input, in equal parts: over batch sizes (powers of two up to 1024, on a GPU to 4096), for the
    model itself, in channels_last, with BatchNorm folded, in each of `precisions` beside "fp32",
    and, with half a minute left, by torch.compile. Only what answers as the model does is taken
    (within the bounds that `Execution` has); the default, `Execution()`, is kept
    where the best gains less than 5 %. seconds: of wall time, kept but for the last pass that
    was begun, and for a compiler. The model, the random state and all flags are left as they were.

    Returns an `Execution` that can be pasted into a program, so that a clock decides nothing a
    second time. Raises TypeError or ValueError for arguments that are none, and what the model
    raises at x.

    Example: `attack.run(model, x, y, execution=fastadv.tune(model, x[:64]))`.
    """
    return tuning_table(model, x, seconds=seconds, precisions=precisions, extra=extra).choice


def tuning_table(
    model: Model,
    x: torch.Tensor,
    *,
    seconds: float = 10,
    precisions: Sequence[Precision] = ("fp32",),
    extra: Sequence[torch.Tensor] = (),
) -> Table:
    """What `tune` measures, with its choice; arguments as there."""
    inputs.check_model(model)
    x = inputs.check_images(x, None)
    if len(x) == 0:
        raise ValueError("x must hold at least one sample; got none")
    more = inputs.check_extra(extra, x)
    inputs.check_device(model, x)
    wanted = _checked_precisions(precisions)
    with inputs.explained_dtype(model, x):
        return measured(
            model,
            x[:_MOST],
            tuple(part[:_MOST] for part in more),
            seconds=_checked_seconds(seconds),
            precisions=wanted,
            rows=_equal_parts(min(len(x), _MOST)),
        )


def _checked_seconds(seconds: object) -> float:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds < math.inf:  # type: ignore[operator]
        raise ValueError(f"seconds must be a number above 0; got {seconds!r}")
    return float(seconds)  # type: ignore[arg-type]


def _checked_precisions(precisions: object) -> tuple[Precision, ...]:
    known = get_args(Precision)
    if isinstance(precisions, str) or not isinstance(precisions, Sequence):
        raise TypeError(
            f"precisions must be a tuple of {known}, as in precisions=('fp32', 'bf16'); got "
            f"{precisions!r}"
        )
    for one in precisions:
        if one not in known:
            raise ValueError(f"precisions must be among {known}; got {one!r}")
    return tuple(dict.fromkeys(precisions))


def resolved(
    execution: Execution | Auto | None,
    attacks: Sequence[Settings],
    model: Model,
    x: torch.Tensor,
    extra: Sequence[torch.Tensor] = (),
    *,
    rows: int | None = None,
) -> Execution:
    """What a call is to run with; "auto" is measured once for a model and a shape, and kept.

    attacks: those of the call, which say what is measured. rows: of a batch by default, at
    most; None: what a call takes that does not say. Raises TypeError for what is neither, and as
    `tune` does.
    """
    if execution is None:
        return Execution()
    if isinstance(execution, Execution):
        return execution
    if execution != "auto":
        raise TypeError(f"execution must be a fastadv.Execution, 'auto' or None; got {execution!r}")
    inputs.check_model(model)
    known = isinstance(extra, Sequence) and all(isinstance(p, torch.Tensor) for p in (x, *extra))
    if not known or x.ndim == 0 or len(x) == 0:
        return Execution()  # the call itself will say what is wrong

    def check() -> None:
        with diagnostics.without("rounded_input"):  # the call itself will say so
            inputs.check_inside(x, attacks[0].threat)
        inputs.check_extra(extra, x)
        inputs.check_device(model, x)

    return automatic(
        model,
        x,
        tuple(extra),
        uses=uses_of(attacks),
        copies=all(attack.keep != "authors" for attack in attacks),
        rows=rows,
        is_most=True,
        check=check,
    )


def automatic(
    model: Model,
    x: torch.Tensor,
    extra: tuple[torch.Tensor, ...],
    *,
    uses: Sequence[Use] = USES,
    copies: bool = True,
    rows: int | None = None,
    is_most: bool = False,
    fixed: bool = False,
    most: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Execution:
    """What is kept for the model and the shape of x, or measured now; see `measured`. most: samples
    that there are, where x are the first of them. is_most: by default batches are smaller than
    `rows` where smaller ones are fast, see `fastadv.oracle.pass_size`. check: called before
    anything is measured."""
    n = min(len(x) if most is None else max(most, 1), _MOST)
    shapes = tuple((part.shape[1:], part.dtype) for part in (x, *extra))
    key = (shapes, x.device, torch.get_num_threads(), tuple(uses), copies, rows, is_most, fixed)

    def find() -> Execution:
        check()
        with inputs.explained_dtype(model, x):
            return measured(
                model,
                x[:_MOST],
                tuple(part[:_MOST] for part in extra),
                seconds=AUTO_SECONDS,
                precisions=("fp32",),
                rows=_default_of(n, rows, is_most=is_most),
                uses=uses,
                copies=copies,
                fixed=fixed,
                most=n,
            ).choice

    return kept(model, key, n, find)


def _default_of(n: int, rows: int | None, *, is_most: bool) -> int | Callable[[int], int]:
    if rows is None:
        return _equal_parts(n)
    most = min(rows, n)
    return (lambda fast: min(most, fast)) if is_most else most


def _equal_parts(n: int) -> Callable[[int], int]:
    """Of the rows of a fast pass: the batch of a call on n samples, as `capacity.held` has it."""
    return lambda fast: -(-n // -(-n // fast))


def uses_of(attacks: Sequence[Settings]) -> tuple[Use, ...]:
    """Which passes they are made of; those of an ensemble in equal parts."""
    takes = {attack.takes_gradients for attack in attacks}
    return tuple(use for use in USES if (use == "gradient") in takes)
