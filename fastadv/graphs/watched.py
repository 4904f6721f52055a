"""Facts of modules and optimizers that are computed anew only where something has changed.

Walking over all that a network holds takes milliseconds, of every batch. What was held is kept
here instead: the same objects at the same places, and tensors where they lay, mean the same facts.
"""

import itertools
import operator
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from fastadv.graphs.facts import PLAIN, baked, has_address

_REMEMBERED = 64  # facts that keep their number; older ones get a new one
_NUMBERS = itertools.count()  # no two of a process are the same, whatever they stand for


class Numbered:
    """Numbers what `facts` tells: others have another number, and equal ones the same, as long as
    they are remembered.

    holders: the modules and containers that facts are read from; these are read again only if a
    `Snapshot` of the holders has changed.
    """

    def __init__(self, facts: Callable[[], Hashable], holders: Callable[[], Sequence[Any]]) -> None:
        self._facts, self._holders = facts, holders
        self._held: Sequence[Any] = ()
        self._snapshot = Snapshot(())
        self._number = -1
        self._numbers: OrderedDict[Hashable, int] = OrderedDict()

    def number(self) -> int:
        held = self._holders()
        if (
            self._number >= 0
            and len(held) == len(self._held)
            and _same(held, self._held)
            and not self._snapshot.has_changed()
        ):
            return self._number
        self._held, self._snapshot = held, Snapshot(held)
        facts = self._facts()
        if facts not in self._numbers:
            self._numbers[facts] = next(_NUMBERS)
        self._numbers.move_to_end(facts)
        if len(self._numbers) > _REMEMBERED:
            self._numbers.popitem(last=False)
        self._number = self._numbers[facts]
        return self._number


class Snapshot:
    """What modules and containers hold, in one another: which objects, and where tensors lie.

    Objects are compared by identity, and held, so that no other takes over that of one that is
    gone. What is no container and may change inside is compared by its facts.
    """

    def __init__(self, holders: Iterable[Any]) -> None:
        self._modules: list[nn.Module] = []
        self._dicts: list[dict] = []
        self._lists: list[list | tuple] = []
        self._empty: list[Any] = []
        self._tensors: list[torch.Tensor] = []
        self._others: list[Any] = []
        self._seen: set[int] = set()
        self._add_all(*holders)
        self._seen.difference_update(map(id, self._others))
        self._held = [list(objects) for objects in self._objects()]
        self._facts = self._read()

    def has_changed(self) -> bool:
        return (
            any(self._empty)
            or self._read() != self._facts
            or not all(map(_same, self._objects(), self._held))
        )

    def _objects(self) -> tuple[Iterable[Any], ...]:
        """What is compared by identity, all in C: of as many as there were, see `_read`."""
        together = itertools.chain.from_iterable
        values = together(map(dict.values, self._dicts))
        return map(type, self._modules), together(self._dicts), values, together(self._lists)

    def _read(self) -> tuple[Any, ...]:
        """What is compared by value: lengths, `tensor_facts`, and others' facts."""
        return (
            list(map(len, self._dicts)),
            list(map(len, self._lists)),
            list(map(torch.Tensor.data_ptr, self._tensors)),
            list(map(torch.Tensor.stride, self._tensors)),
            list(map(_form, self._tensors)),
            [baked(other, self._seen) for other in self._others],
        )

    def _add_all(self, *values: Any) -> None:
        for value in values:
            self._add(value)

    def _add(self, value: Any) -> None:
        if isinstance(value, PLAIN) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, torch.Tensor) and has_address(value):
            self._tensors.append(value)
        elif isinstance(value, nn.Module):
            self._modules.append(value)
            self._add(vars(value))
        elif isinstance(value, dict | list | tuple | set | frozenset) and not value:
            self._empty.append(value)
        elif isinstance(value, dict):
            self._dicts.append(value)
            self._add_all(*value, *value.values())
        elif isinstance(value, list | tuple):
            self._lists.append(value)
            self._add_all(*value)
        else:
            self._others.append(value)


_form = operator.attrgetter("requires_grad", "dtype", "shape")


def _same(now: Iterable[Any], before: Iterable[Any]) -> bool:
    """Whether these, of which there are as many, are the same objects."""
    return all(map(operator.is_, now, before))
