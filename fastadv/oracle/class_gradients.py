"""The gradients of several outputs of a model: one backward pass each, all at once where it can."""

import time
import warnings

import torch

from fastadv import memory
from fastadv.engine.state import SlotState
from fastadv.oracle.gradient import Oracle

_AT_ONCE = 16  # classes: what a pass back through the model holds grows with them


class ClassGradients:
    """Input gradients of one pass of a model, for several gradients of its logits.

    Vectorised (torch's `is_grads_batched`) where the model's operations allow it, which its first
    pass tells; else one by one. Each counts as a backward pass. Bits do not depend on the batch.
    """

    def __init__(self) -> None:
        self.vectorises: bool | None = None  # None: not tried

    def of(
        self, oracle: Oracle, output: torch.Tensor, state: SlotState, grad_outputs: torch.Tensor
    ) -> list[torch.Tensor]:
        """(B, ...) each. output: (B, C) of `oracle.graph(state)`; grad_outputs: (K, B, C)."""
        if self.vectorises is None:
            self.vectorises = _is_scaled(oracle) is False and len(state) > 0
            if self.vectorises:
                with warnings.catch_warnings():
                    # of an operation that torch can only repeat: then nothing is gained
                    warnings.filterwarnings("error", message=".*performance drop.*")
                    try:
                        return self._at_once(oracle, output, state, grad_outputs)
                    except Exception as error:
                        if memory.is_out_of_memory(error):
                            raise
                self.vectorises = False
        if self.vectorises:
            return self._at_once(oracle, output, state, grad_outputs)
        last = len(grad_outputs) - 1
        return [
            oracle.backward(output, state, rows, keep_graph=k < last)
            for k, rows in enumerate(grad_outputs)
        ]

    def _at_once(
        self, oracle: Oracle, output: torch.Tensor, state: SlotState, grad_outputs: torch.Tensor
    ) -> list[torch.Tensor]:
        began = time.perf_counter()
        grads: list[torch.Tensor] = []
        for part in grad_outputs.split(_AT_ONCE):
            (found,) = torch.autograd.grad(
                output, state.leaf, part, retain_graph=True, is_grads_batched=True
            )
            grads.extend(found.unbind())
        oracle.seconds += time.perf_counter() - began
        oracle.count_backwards(len(grad_outputs) * len(state))
        return grads


def _is_scaled(oracle: Oracle) -> bool:
    """Whether gradients are scaled for half precision, which looks at each for an overflow."""
    return oracle.search is not None and oracle.search.scale != 1.0
