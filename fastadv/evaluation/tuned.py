"""execution="auto" of an evaluation: measured once, by one process, and kept in its file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from fastadv.attacks.automatic import automatic, uses_of
from fastadv.evaluation.block import SampleAttack
from fastadv.evaluation.clean import device_of
from fastadv.evaluation.processes import Exchange, files_of
from fastadv.evaluation.samples import Data, Samples, are_tensors
from fastadv.evaluation.state import execution_in
from fastadv.execution import Auto, Execution
from fastadv.isolation import Model
from fastadv.tuning.passes import USES

_MEASURED = 128  # samples of the data that are looked at


def execution_for(
    given: Execution | Auto | None,
    model: Model,
    data: Data,
    attack: SampleAttack,
    *,
    batch_size: int | None,
    path: Path | None,
    exchange: Exchange,
) -> Execution:
    """What every process runs with. "auto": what a checkpoint says, of those that are there; else
    what process 0 measures at the first samples.

    batch_size: as given to the evaluation, which is then kept. Raises TypeError for what is no
    execution.
    """
    if given is None:
        return Execution()
    if isinstance(given, Execution):
        return given
    if given != "auto":
        raise TypeError(f"execution must be a fastadv.Execution, 'auto' or None; got {given!r}")
    known = [found for found in exchange.gathered(lambda: _kept_in(path)) if found is not None]
    if known:
        return known[0]

    def measure() -> Execution | None:
        if exchange.place.rank:
            return None
        return _measured(model, data, attack, batch_size)

    found = exchange.gathered(measure)[0]
    assert found is not None, "process 0 measures"
    return found


def _kept_in(path: Path | None) -> Execution | None:
    files = [] if path is None else files_of(path)
    return execution_in(files[0]) if files else None


def _measured(model: Model, data: Data, attack: Any, batch_size: int | None) -> Execution:
    samples = Samples(data, batch_size=batch_size)
    first = _first_of(data)
    if len(first) < 2 or len(first[0]) == 0:
        return Execution()  # the evaluation will say what is wrong
    device = device_of(model)
    x, _, *extra = (column if device is None else column.to(device) for column in first)
    parts: Sequence[Any] = getattr(attack, "attacks", None) or [attack]
    known = all(hasattr(one, "takes_gradients") for one in parts)
    found = automatic(
        model,
        x,
        tuple(extra),
        uses=uses_of(parts) if known else USES,
        copies=all(getattr(one, "keep", "") != "authors" for one in parts),
        rows=samples.batch_size,
        fixed=batch_size is not None,
        most=samples.expected,
    )
    return found if batch_size is None else replace(found, batch_size=batch_size)


def _first_of(data: Any) -> list[torch.Tensor]:
    """Columns of a few samples, as a loader would give them; its samplers draw nothing."""
    if are_tensors(data):
        return [column[:_MEASURED].detach() for column in data]
    collate: Callable[[Any], Any] = default_collate
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset):
            raise ValueError(
                "execution='auto' looks at the first samples before it begins, and data that can "
                "only be iterated may give them once: measure before, "
                "execution=fastadv.tune(model, x)"
            )
        collate = data.collate_fn
        is_whole = data.batch_size is None and data.batch_sampler is None
        data = data.dataset
        if is_whole:  # an item is a batch
            whole: Any = collate(data[0])
            return [column[:_MEASURED].detach() for column in whole]
    count = min(_MEASURED, len(data))
    if count == 0:
        return []
    batch = collate([data[k] for k in range(count)])
    if not are_tensors(batch):
        return []
    return [column.detach() for column in batch]
