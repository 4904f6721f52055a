"""Which execution is the fastest for a model at hand: measured, within a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from fastadv.execution import Execution, Precision
from fastadv.isolation import Model, isolated
from fastadv.oracle import pass_size
from fastadv.oracle.gradient import UNLIMITED
from fastadv.tuning.candidates import EXACT, Shadows, folds, is_copyable, sizes_for
from fastadv.tuning.contest import Contest, Entry
from fastadv.tuning.passes import USES, Use
from fastadv.tuning.table import Row, Table

_GAIN = 1.05  # over the default, below which it is kept
_A_CHANGE = 0.02  # of the time, that each change of the model must gain
_CHECKED = 64  # samples that a copy is held to the model at, at most
_PROBED = 32  # rows at which copies are compared first, at most
_PROMISING = 1.35  # times the best at that size: whose other sizes are looked at
_KINDS = 3  # of these, at most
_COMPILED_IN = 30.0  # seconds that must be left, at least, and half of all
_PART = 0.25  # of the time: what checks and the first comparison may take, about


def measured(
    model: Model,
    x: torch.Tensor,
    extra: tuple[torch.Tensor, ...] = (),
    *,
    seconds: float,
    precisions: Sequence[Precision],
    rows: int | Callable[[int], int],
    uses: Sequence[Use] = USES,
    copies: bool = True,
    fixed: bool = False,
    most: int | None = None,
) -> Table:
    """The table of what was measured at x, with the choice; the model is left as it was.

    rows: the batch of the default, or what it is of the rows that are fast by the rule for calls
    without a batch size (`fastadv.oracle.pass_size`). copies: whether others than the model itself
    may be searched. fixed: the batch is to stay `rows`. most: no larger batches than that. Raises
    what the model raises at x.
    """
    began = time.perf_counter()
    with isolated(model, device=x.device, seed=0):
        x = x.detach()
        shadows = Shadows(model, x[:_CHECKED], tuple(part[:_CHECKED] for part in extra))
        contest = Contest(shadows, x, extra, uses, until=began + seconds)
        rows = rows if isinstance(rows, int) else rows(_fast_rows(model, x, extra))
        sizes = [rows] if fixed else sizes_for(x, rows, most)
        smallest = contest.look(replace(EXACT, batch_size=sizes[0]))
        if smallest is None:  # a model that takes whole batches alone, or fails
            contest.notes.clear()
            sizes = [rows]
            smallest = contest.look(replace(EXACT, batch_size=rows), must=True)
        sample = 2 * sum(smallest.first.values())  # seconds of two passes of each kind
        probe = _fitting(sizes, _PART * seconds / (6 * sample))
        shadows.rows = max(2, min(_CHECKED, int(_PART * seconds / (12 * sample))))
        kinds = _kinds(contest, precisions, probe) if copies else []
        for kind in [EXACT, *kinds]:
            contest.survey(kind, sizes, start=probe)
        default = _default(contest, rows, affordable=sample * rows < _PART * seconds)
        if copies:
            _compiled(contest, sizes, seconds)
        contest.rounds(default)
    return _table(contest, default, time.perf_counter() - began, rows=rows)


def _fast_rows(model: Model, x: torch.Tensor, extra: tuple[torch.Tensor, ...]) -> int:
    """Rows of a fast pass by activation bytes, as a call without a batch size would find them."""
    if not pass_size.may_split(model, x):
        return UNLIMITED
    first = pass_size.first_rows(x)
    try:
        with torch.no_grad():
            return pass_size.looked_at(model, x[:first].clone(), [p[:first] for p in extra])[1]
    except Exception:  # of a model that takes whole batches alone; else it will fail again
        return UNLIMITED


def _fitting(sizes: Sequence[int], rows: float) -> int:
    """The largest of `sizes` that is none of more than `rows`, nor of more than 32."""
    fitting = [size for size in sizes if size <= min(rows, _PROBED)]
    return fitting[-1] if fitting else sizes[0]


def _kinds(contest: Contest, precisions: Sequence[Precision], probe: int) -> list[Execution]:
    """The copies that are among the fastest at `probe` rows, the fastest first."""
    model, x = contest.shadows.model, contest.shadows.x
    half = [one for one in precisions if one != "fp32"]
    if not is_copyable(model):
        variants = [EXACT]
    else:
        is_image = x.ndim == 4
        variants = [EXACT, Execution(channels_last=True)] if is_image else [EXACT]
        folded = Execution(fold_batchnorm=True)
        if folds(model):
            plain = contest.look(replace(EXACT, batch_size=probe))
            entry = contest.look(replace(folded, batch_size=probe))
            if entry and plain and contest.score(entry) <= contest.score(plain) * (1 + _A_CHANGE):
                variants = [folded, *(replace(folded, channels_last=True) for _ in variants[1:])]
    variants += [replace(one, precision=p) for p in half for one in variants]
    entries = [contest.look(replace(one, batch_size=probe)) for one in variants]
    found = sorted((e for e in entries if e is not None), key=contest.score)
    near = [e for e in found if contest.score(e) <= _PROMISING * contest.score(found[0])]
    kinds = [replace(e.execution, batch_size=None) for e in near[:_KINDS]]
    return [kind for kind in kinds if kind != EXACT]


def _default(contest: Contest, rows: int, *, affordable: bool) -> Entry:
    """The entry of the model itself at `rows`, or at most of them where that takes too long."""
    entry = contest.look(replace(EXACT, batch_size=rows), whatever=affordable)
    if entry is not None:
        return entry
    plain = [entry for entry in contest.entries.values() if entry.execution.is_exact]
    nearest = max(plain, key=lambda entry: entry.rows)
    contest.notes.append(
        f"batches of {rows}, the default, take too long to be measured: held to {nearest.rows}"
    )
    return nearest


def _compiled(contest: Contest, sizes: Sequence[int], seconds: float) -> None:
    """The best so far, compiled, where there is time for it."""
    left = contest.until - time.perf_counter()
    if left < max(_COMPILED_IN, seconds / 2) or not is_copyable(contest.shadows.model):
        return
    best = min(contest.entries.values(), key=contest.score)
    contest.extend()
    variant = replace(best.execution, batch_size=None, compile=True)
    contest.survey(variant, sizes, start=best.rows)


def _table(contest: Contest, default: Entry, seconds: float, *, rows: int) -> Table:
    scores = {entry: contest.score(entry, default) for entry in contest.entries.values()}
    ranked = sorted(scores, key=scores.__getitem__)
    most = max(entry.rounds for entry in ranked)
    last = [entry for entry in ranked if entry.rounds >= most - 1]  # those that nobody left behind
    best = min(last, key=lambda e: scores[e] * (1 + _A_CHANGE * _changes(e.execution)))
    stays = scores[best] * _GAIN > 1
    choice = default.execution if stays else best.execution
    notes = [f"without {_named(v)}: {note}" for v, note in contest.shadows.notes.items()]
    return Table(
        rows=tuple(
            Row(
                execution=entry.execution,
                forward=entry.seconds("forward") if "forward" in entry.first else None,
                gradient=entry.seconds("gradient") if "gradient" in entry.first else None,
                speed_up=1 / scores[entry],
                off=contest.shadows.off[replace(entry.execution, batch_size=None)],
                rounds=entry.rounds,
            )
            for entry in ranked
        ),
        # what stands for a default that takes too long is a choice
        choice=Execution() if choice == replace(EXACT, batch_size=rows) else choice,
        default=default.execution,
        seconds=seconds,
        clock=contest.clock_name,
        notes=(*notes, *contest.notes),
    )


def _changes(execution: Execution) -> int:
    return sum(
        getattr(execution, name) != getattr(EXACT, name)
        for name in ("precision", "channels_last", "fold_batchnorm", "compile")
    )


def _named(variant: Execution) -> str:
    parts = [variant.precision] if variant.precision != "fp32" else []
    flags = ("channels_last", "fold_batchnorm", "compile")
    return ", ".join([*parts, *(name for name in flags if getattr(variant, name))])
