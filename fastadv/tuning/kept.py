"""What was found for a model, kept until it is gone or `fastadv.release()` is called."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from types import MethodType

from fastadv.execution import Execution
from fastadv.isolation import Model

_MOST = 16  # shapes of one model

_KEPT: weakref.WeakKeyDictionary[object, OrderedDict[Hashable, tuple[int, Execution]]]
_KEPT = weakref.WeakKeyDictionary()


def kept(model: Model, key: Hashable, n: int, find: Callable[[], Execution]) -> Execution:
    """What was found for (model, key) at `n` samples or more, or `find()`, which is then kept.

    Of a bound method that is by its owner and its name; of what nothing can refer to weakly, as a
    method of an object with slots, nothing is kept.
    """
    owner, name = model, ""
    if isinstance(model, MethodType):
        owner, name = model.__self__, model.__name__
    try:
        known = _KEPT.setdefault(owner, OrderedDict())
    except TypeError:
        return find()
    before = known.get((name, key))
    if before is not None and n <= before[0]:
        return before[1]
    found = find()
    known[name, key] = n, found
    known.move_to_end((name, key))
    if len(known) > _MOST:
        known.popitem(last=False)
    return found


def forget() -> None:
    """All of it."""
    _KEPT.clear()
