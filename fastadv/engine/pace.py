"""How many steps are made between two looks at the slots, which wait for the device."""

import torch

_MOST = 4  # times the algorithm's own stride
_FEW = 64  # one slot of as many freed in a stride: 1 % of the next stride is idle at most


def may_lengthen(device: torch.device) -> bool:
    """Whether a look costs enough beside the steps: not on a CPU, whose steps are far longer."""
    return device.type != "cpu"


class Pace:
    """The stride of a run: it doubles as long as hardly a slot is freed, up to four times `stride`,
    and falls back to it otherwise.

    A slot that ends in a stride idles until the next look, a look costs the host's time: while
    samples fall one looks often, while they hold out rarely. By counts alone, so that it is the
    same whenever the same is attacked; it changes no result, only the passes of idle slots.
    """

    def __init__(self, stride: int, device: torch.device) -> None:
        self.stride: int = stride
        self._first = stride
        self._longest = stride * (_MOST if may_lengthen(device) else 1)

    def note(self, *, freed: int, busy: int) -> None:
        """That a look has freed as many of the slots that were busy."""
        is_calm = freed * _FEW <= busy
        self.stride = min(2 * self.stride, self._longest) if is_calm else self._first
