"""Whether a replay does what the step does: both are made from one state and compared."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch

_MOST_STEPS = 8  # eager ones that show how far a step is from itself, before its replay is refused


class Saved:
    """Named tensors, and generators, as they are now.

    Tensors that no step can write in place are left out: sparse ones, those made under inference
    mode, those of which several entries share a place.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], generators: Iterable[torch.Generator] = ()
    ) -> None:
        self._tensors = {name: t.detach() for name, t in tensors.items() if _is_written(t)}
        self._values = self.values()
        self._generators = [(one, one.get_state()) for one in generators]

    def values(self) -> dict[str, torch.Tensor]:
        """Copies of what the tensors hold by now."""
        return {name: tensor.clone() for name, tensor in self._tensors.items()}

    def put_back(self) -> None:
        """Everything as it was when this was made."""
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(self._values[name])
        for generator, state in self._generators:
            generator.set_state(state)

    def distances(self, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """How far each tensor now is from `values`, see `distance`; synchronises."""
        return {name: distance(tensor, values[name]) for name, tensor in self._tensors.items()}


def replays_differently(
    replay: Callable[[], None], eager: Callable[[], None], before: Saved
) -> str | None:
    """Make the step by `replay`, from `before` and on top of what is known of `eager`; None if it
    does the same, else how it differs, in words, with everything as before.

    eager: the step itself, run from `before` too. Two runs of it say how far it is from itself. A
    tensor in which they agree in bits must be the same bits after the replay; in another, which
    operations that add in any order have touched, no entry may be off by more than twice the
    largest difference of that tensor. Where that fails though the step is not always the same, it
    is run up to eight times, lest a rare difference be blamed on the replay. Synchronises.
    """
    eager()
    first = before.values()
    spread = dict.fromkeys(first, 0.0)

    def spread_further() -> None:
        before.put_back()
        eager()
        for name, value in before.distances(first).items():
            spread[name] = max(spread[name], value)

    spread_further()
    before.put_back()
    replay()
    off = before.distances(first)
    if not _beyond(off, spread):
        return None
    for _ in range(_MOST_STEPS - 2):
        if not any(spread.values()):
            break  # the same step each time: its replay is not
        spread_further()
        if not _beyond(off, spread):
            before.put_back()
            replay()
            return None
    before.put_back()
    name = max(_beyond(off, spread), key=lambda name: off[name])
    return (
        f"a replay left {name} {off[name]:.3g} away from what the step itself makes of it, "
        f"which is within {spread[name]:.3g} of itself"
    )


def _beyond(off: Mapping[str, float], spread: Mapping[str, float]) -> list[str]:
    return [name for name, value in off.items() if value > 2 * spread[name]]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of an entry; 0.0 only for the same bits, inf where one is not finite.

    a, b: same shape and dtype. Synchronises.
    """
    a, b = _real(a), _real(b)
    differ = _bits(a) != _bits(b)
    if not bool(differ.any()):
        return 0.0
    if not a.is_floating_point():
        a, b = a.double(), b.double()
    gap = (a[differ].double() - b[differ].double()).abs()
    largest = float(gap.nan_to_num(nan=math.inf, posinf=math.inf).max())
    return largest or math.ulp(0.0)  # zeros of either sign


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


_AS_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(_AS_BITS[tensor.element_size()])


def _is_written(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_inference():
        return False
    is_expanded = any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
    return not (tensor.is_quantized or is_expanded)
