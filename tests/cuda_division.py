"""Division of tensors by host numbers as CUDA's aten does it, on a CPU.

There `tensor / number` is `tensor * (1 / number)` with the reciprocal rounded to the dtype that is
computed in (aten's div_true_kernel_cuda), also where the number is a 0-d tensor of the CPU.
Kernels divide, correctly rounded, so a reference that leaves a number to aten is another function
on a GPU than on a CPU.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# of these CUDA has other rules still, which nothing here needs
_UNKNOWN = {
    _aten.div.Tensor_mode,
    _aten.div_.Tensor_mode,
    _aten.div.out_mode,
    _aten._foreach_div.Scalar,
    _aten._foreach_div_.Scalar,
    _aten.mean.default,
    _aten.mean.dim,
}


class DivisionAsOnCuda(TorchDispatchMode):
    """Tensors count as tensors of a GPU; what `torch.tensor` makes of a number is refused: it lies
    on the CPU, or its copy to the device makes the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.by_numbers = 0  # divisions of float tensors by host numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _aten.lift_fresh.default:
            assert args[0].ndim > 0, "a number is copied to the device: new_full would fill"
        if func not in (_aten.div.Tensor, _aten.div_.Tensor, _aten.div.out):
            floats = any(isinstance(a, torch.Tensor) and a.is_floating_point() for a in args)
            assert func not in _UNKNOWN or not floats, f"{func}: what does CUDA do?"
            return func(*args, **kwargs)
        value, divisor = args
        if isinstance(divisor, torch.Tensor):
            return func(*args, **kwargs)
        self.by_numbers += 1
        dtype = torch.result_type(value, 1.0)  # integers are divided in the default dtype
        computed = torch.promote_types(dtype, torch.float32)
        inverse = torch.ones((), dtype=computed) / torch.full((), divisor, dtype=computed)
        product = (value.to(computed) * inverse).to(dtype)
        if func is _aten.div_.Tensor:
            return value.copy_(product)
        return product if func is _aten.div.Tensor else kwargs["out"].copy_(product)
