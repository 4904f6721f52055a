"""The backward pass to the input, as `torch.autograd.grad` makes it."""

import torch
from torch.autograd import graph

# absent where torch has renamed it: then torch.autograd.grad does all
_RUN = getattr(graph, "_engine_run_backward", None)


def input_gradient(
    output: torch.Tensor,
    leaf: torch.Tensor,
    grad_output: torch.Tensor | None,
    *,
    retain_graph: bool = False,
) -> torch.Tensor | None:
    """`torch.autograd.grad(output, leaf, grad_output, allow_unused=True)`, None where the output
    does not depend on the leaf. grad_output: of the shape of the output; None for a scalar.

    Without torch's look at the shapes, which imports sympy: a second of the first call of an
    attack, most of what there is to wait for.
    """
    is_plain = grad_output is not None and not torch.overrides.has_torch_function((output, leaf))
    if _RUN is None or not is_plain or torch.compiler.is_compiling():
        (grad,) = torch.autograd.grad(
            output, leaf, grad_output, retain_graph=retain_graph, allow_unused=True
        )
        return grad
    # the flags: keep the graph, create one of the gradient, allow an unused leaf
    (grad,) = _RUN(
        (output,), (grad_output,), retain_graph, False, (leaf,), True, accumulate_grad=False
    )
    return grad
