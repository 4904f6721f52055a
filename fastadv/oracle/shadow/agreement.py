"""Whether a shadow answers as the user's model does at the first batch; reads the device."""

from dataclasses import dataclass

import torch

from fastadv import memory, outputs
from fastadv.isolation import Model
from fastadv.ops import doubles

# Of the largest logit. Folded networks of 10 to 101 layers were off by 1e-6 of it at most, as far
# as they are from float64; a BatchNorm folded wrongly changes the first digit.
_FP32 = 1e-4
_TF32 = 0.05  # 10 bits of mantissa instead of 23: 1e-6 becomes 0.01
_ROUNDINGS = 8  # of a model that is in half precision itself
_LETTERS = 200  # of an error; compilers append pages
_HALF = 0.25  # of the spread of a sample's logits


@dataclass(frozen=True)
class First:
    """A model with samples of the first batch and its own logits there, in its own precision: (B,
    C), or of any shape (B, ...) where an objective judges them.

    extra: what it takes beside x.
    """

    model: Model
    x: torch.Tensor
    logits: torch.Tensor
    extra: tuple[torch.Tensor, ...] = ()

    def rows(self, count: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """(x, extra) of the first `count` samples."""
        return self.x[:count], tuple(part[:count] for part in self.extra)

    def refuses(self, forward: Model, precision: str) -> str:
        """Why `forward`, which runs in `precision`, is no shadow of the model; "" if it is one."""
        try:
            logits = _passes(forward, self.x, self.extra)
        except Exception as error:
            if memory.is_out_of_memory(error):
                raise
            text = " ".join(str(error).split())[:_LETTERS]
            return f"it failed with {type(error).__name__}: {text}"
        if logits.shape != self.logits.shape:
            return f"logits have shape {tuple(logits.shape)}, not {tuple(self.logits.shape)}"
        in_half = precision != "fp32"
        off = _difference(logits, self.logits, in_half)
        allowed = _spread(self.logits) * _HALF if in_half else _tolerance(self.logits)
        if off <= allowed:
            return ""
        # a random model does not answer twice alike
        again = outputs.logits_in(self.model(self.x, *self.extra), self.x)
        allowed += 2 * _difference(again, self.logits, in_half)
        if off <= allowed:
            return ""
        where = f"logits at the first batch differ from the model's by {off:.3g}"
        return f"{where}; {allowed:.3g} is allowed, {_RULES[in_half]}"


_RULES = {True: "a quarter of their spread", False: "for roundings"}


def _passes(forward: Model, x: torch.Tensor, extra: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Logits of a forward pass after which a backward pass went well too."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = forward(leaf, *extra)
    if logits.requires_grad:
        torch.autograd.grad(logits, leaf, torch.ones_like(logits), allow_unused=True)
    return logits.detach()


def _difference(logits: torch.Tensor, own: torch.Tensor, is_mean: bool) -> float:
    """The largest |logits - own| of a sample, of all samples or their mean; NaN is far off."""
    logits, own = doubles.doubled(logits.detach()), doubles.doubled(own.detach())
    same = (logits == own) | (logits.isnan() & own.isnan())  # infinities too: masked classes
    off = torch.where(same, 0.0, (logits - own).abs()).nan_to_num(nan=torch.inf)
    off = off.reshape(len(off), -1).amax(1)
    return float(off.mean() if is_mean else off.max())


def _tolerance(own: torch.Tensor) -> float:
    """What two right ways to compute the same logits in their own precision may differ by."""
    finite = doubles.doubled(own).nan_to_num(0.0, 0.0, 0.0).abs()
    share = _TF32 if _rounds_to_tf32(own.device) else _FP32
    eps = torch.finfo(own.dtype).eps if own.is_floating_point() else 0.0
    return float(finite.max()) * max(share, _ROUNDINGS * eps)


def _rounds_to_tf32(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    # not allow_tf32, which raises once a program has used this newer interface
    kinds = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    return any(kind.fp32_precision == "tf32" for kind in kinds)


def _spread(own: torch.Tensor) -> float:
    """The mean over samples of the largest finite logit less the smallest.

    A single number a sample is one logit against 0, as that of two classes, but spreads no further
    than over the samples: of outputs near 1000 it is their differences that matter.
    """
    own = doubles.doubled(own).reshape(len(own), -1)
    if own.shape[1] > 1:
        return float(_extent(own).mean())
    size = own.nan_to_num(0.0, 0.0, 0.0).abs().mean()
    return float(size if len(own) == 1 else torch.minimum(size, _extent(own.T)[0]))


def _extent(rows: torch.Tensor) -> torch.Tensor:
    """Of each row the largest finite entry less the smallest; 0 if there are none."""
    finite = rows.isfinite()
    largest = torch.where(finite, rows, -torch.inf).amax(1)
    smallest = torch.where(finite, rows, torch.inf).amin(1)
    return (largest - smallest).clamp(min=0)
