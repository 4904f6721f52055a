"""Which modules a model reaches: itself, and those in whatever it holds, closes over or names."""

import functools
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from torch import nn

from fastadv.diagnostics import ExecutionWarning, emit

_DEPTH = 6  # of containers, functions, objects and modules in one another
_MOST = 2_000  # objects looked at, the nearest first: a closure may hold a whole data set

_PLAIN = frozenset(
    (type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type)
    + (torch.Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device, np.ndarray)
    + (types.ModuleType, types.BuiltinFunctionType, types.CodeType, torch.Generator)
)
_CONTAINERS = (list, tuple, set, frozenset, deque)
_EXACT = frozenset((*_CONTAINERS, dict, functools.partial, types.MethodType, types.FunctionType))
# what every module has, and one that has been compiled in place
_OF_MODULES = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# what a class has that is no data of its
_DESCRIBING = (types.FunctionType, types.GetSetDescriptorType, types.MemberDescriptorType)
_DESCRIBING += (staticmethod, classmethod, property, functools.cached_property)
# models that were said to hold too much, by id
_TOLD: weakref.WeakValueDictionary[int, object] = weakref.WeakValueDictionary()
_OTHERS = ("torch", "numpy", "logging", "threading")  # whose objects hold no model of the user's


def modules_behind(model: object) -> list[nn.Module]:
    """The modules that a model reaches, without those that are submodules of others before them.

    A module comes first itself, then what its attributes hold beside its submodules (but for
    torch's own layers), and what its hooks and its forward close over. Else: those in lists,
    tuples, sets, dicts (keys too) and the attributes of objects and of their classes (slots too),
    in a partial and its arguments, the owner of a bound method, and what a function closes over,
    has as defaults or names globally. All of these in one another, six deep, and of the nearest
    2,000 objects, where plain data (numbers, strings, arrays, tensors, containers of these alone)
    does not count. Beyond that number an ExecutionWarning is emitted, once a model.
    """
    return _reached(model)[0]


def every_module(model: object) -> list[nn.Module]:
    """The same with all of their submodules, each once; of a plain module its `modules()`."""
    return list(_reached(model)[1])


def every_parameter(model: object) -> list[nn.Parameter]:
    """Of every module; one that two of them share as often."""
    return [p for m in every_module(model) for p in m._parameters.values() if p is not None]


def named_parameters(model: object) -> dict[str, torch.Tensor]:
    """As the module names them; from the second of several modules on with its number before."""
    return {
        _numbered(name, i): p
        for i, root in enumerate(modules_behind(model))
        for name, p in root.named_parameters()
    }


def named_buffers(model: object) -> dict[str, torch.Tensor]:
    """The same of buffers."""
    return {
        _numbered(name, i): buffer
        for i, root in enumerate(modules_behind(model))
        for name, buffer in root.named_buffers()
    }


def state_of(model: object) -> dict[str, torch.Tensor]:
    """The state_dict of the first, and those of the others with their numbers before the names."""
    return {
        _numbered(name, i): value
        for i, root in enumerate(modules_behind(model))
        for name, value in root.state_dict().items()
    }


def load_state(model: object, state: Mapping[str, torch.Tensor]) -> None:
    """What `state_of` gave, back into all of them; raises RuntimeError where names do not fit."""
    rest = dict(state)
    for i, root in reversed(list(enumerate(modules_behind(model)))):
        names = {name: _numbered(name, i) for name in root.state_dict()}
        own = {name: rest.pop(key) for name, key in names.items() if key in rest}
        root.load_state_dict(own if i else own | rest)


def _numbered(name: str, index: int) -> str:
    return f"{index}: {name}" if index else name


def _reached(model: object) -> tuple[list[nn.Module], dict[nn.Module, None]]:
    roots: list[nn.Module] = []
    every: dict[nn.Module, None] = {}
    seen: dict[int, object] = {}  # the objects too: an id is used again when one is gone
    queue = deque([(model, _DEPTH)])
    is_cut = False
    while queue:
        value, depth = queue.popleft()
        if isinstance(value, nn.Module):
            if value in every:
                continue
            roots.append(value)
            held: Iterable[object] = _held_by_modules(_visited(value, every), seen)
        elif id(value) not in seen:
            if len(seen) >= _MOST:  # but modules that are found already are taken
                is_cut = True
                continue
            seen[id(value)] = value
            held = _inside(value, seen)
        else:
            continue
        if depth:
            parts = [(part, depth - 1) for part in held if not _is_data(part)]
            is_cut |= len(parts) > _MOST
            queue.extend(parts[:_MOST])
    if is_cut:
        _tell(model)
    return roots, every


def _is_data(value: object) -> bool:
    """Whether it is plain, or holds nothing but what is."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is dict:
        return _PLAIN.issuperset(map(type, value)) and _PLAIN.issuperset(map(type, value.values()))  # type: ignore[attr-defined]
    return kind in _CONTAINERS and _PLAIN.issuperset(map(type, value))  # type: ignore[call-overload]


def _tell(model: object) -> None:
    model = getattr(model, "__self__", model)
    if _TOLD.get(id(model)) is model:
        return
    try:
        _TOLD[id(model)] = model
    except TypeError:  # takes no weak references, and is told of again
        pass
    name = getattr(model, "__qualname__", type(model).__qualname__)
    emit(
        ExecutionWarning(
            f"{name} holds more than {_MOST:,} objects, of which only the nearest were looked at; "
            "a net that was not found is neither frozen nor in eval mode in an attack. Put "
            "its nets where they are found, as in an nn.ModuleList, or hold less data beside them"
        )
    )


def _visited(root: nn.Module, every: dict[nn.Module, None]) -> list[nn.Module]:
    """The modules of `root` that are not in `every` yet, in the order of `modules()`; they are now.

    Several times as fast as `modules()`, which nests a generator for each level.
    """
    new: list[nn.Module] = []
    stack: list[nn.Module | None] = [root]
    while stack:
        module = stack.pop()
        if module is None or module in every:
            continue
        every[module] = None
        new.append(module)
        if children := module._modules:
            stack.extend(reversed(list(children.values())))
    return new


def _held_by_modules(modules: list[nn.Module], seen: dict[int, object]) -> Iterator[object]:
    """What may hold further modules in the attributes, hooks and forwards of modules.

    Torch's own layers hold theirs as submodules only, so that without hooks they are passed over:
    a plain network costs no more than its submodules.
    """
    for module in modules:
        attributes = module.__dict__
        source = type(module).__module__
        # that of a compiled module is torch's own, and long to walk through
        is_replaced = "forward" in attributes and not source.startswith("torch._dynamo.")
        if not is_replaced and source.startswith("torch."):
            for name in _HOOKS:
                if hooks := attributes.get(name):
                    yield from list(hooks.values())
            continue
        for name, value in list(attributes.items()):
            if name in _HOOKS:
                yield from list(value.values())
            elif name not in _OF_MODULES:
                yield value
        if id(type(module)) not in seen:
            yield from _of_classes(type(module), seen)
        forward = getattr(type(module), "forward", None)
        if getattr(forward, "__closure__", None):
            yield from _contents(forward.__closure__)  # type: ignore[union-attr]


def _of_classes(kind: type, seen: dict[int, object]) -> Iterator[object]:
    """The data of a class and of its bases, but for those of others; each class once."""
    for base in kind.__mro__:
        source = base.__module__.partition(".")[0]
        if id(base) in seen or source in _OTHERS or source == "builtins":
            continue
        seen[id(base)] = base
        for name, value in list(vars(base).items()):
            if not name.startswith("__") and not isinstance(value, _DESCRIBING):
                yield value


def _inside(value: object, seen: dict[int, object]) -> Iterable[object]:
    """What an object that is no module holds, one level down."""
    if isinstance(value, types.FunctionType):
        return _of_function(value)
    if isinstance(value, types.MethodType):
        return value.__self__, value.__func__
    if isinstance(value, type | types.ModuleType | torch.Tensor | np.ndarray):
        return ()
    parts: list[object] = []
    if isinstance(value, dict):
        both = (part for part in (*value, *value.values()) if not _is_data(part))
        parts += islice(both, _MOST + 1)
    elif isinstance(value, _CONTAINERS):
        parts += islice((part for part in value if not _is_data(part)), _MOST + 1)
    elif isinstance(value, functools.partial):
        parts += value.func, *value.args, *value.keywords.values()
    elif isinstance(value, weakref.ref):
        parts.append(value())
    if type(value) not in _EXACT and type(value).__module__.partition(".")[0] not in _OTHERS:
        parts += _of_object(value)
        parts += _of_classes(type(value), seen)
    return parts


def _of_function(function: types.FunctionType) -> list[object]:
    parts = [*_contents(function.__closure__ or ()), *(function.__defaults__ or ())]
    parts += (function.__kwdefaults__ or {}).values()
    parts += vars(function).values()  # a decorator's __wrapped__
    names = function.__globals__
    if names.get("__name__", "").partition(".")[0] not in _OTHERS:
        parts += (names[name] for name in _named_in(function.__code__) if name in names)
    return parts


def _contents(cells: Iterable[types.CellType]) -> Iterator[object]:
    for cell in cells:
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _named_in(code: types.CodeType) -> Iterator[str]:
    """Names that a function may look up globally, inner functions and comprehensions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named_in(constant)


def _of_object(value: object) -> Iterator[object]:
    """Its attributes, without asking its class for any, and its `__call__`."""
    try:
        yield from list(object.__getattribute__(value, "__dict__").values())
    except AttributeError:
        pass
    for base in type(value).__mro__:
        if "__slots__" in vars(base):
            for slot in vars(base).values():
                if isinstance(slot, types.MemberDescriptorType):
                    try:
                        yield slot.__get__(value)
                    except AttributeError:  # not set
                        continue
    call = getattr(type(value), "__call__", None)  # noqa: B004, the function and not whether
    if isinstance(call, types.FunctionType):
        yield call
