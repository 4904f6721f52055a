"""cuDNN's rule for RNNs on a CPU: what ran in eval mode with cuDNN on has no backward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fastadv import isolation

_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}


class CudnnRnn(TorchFunctionMode):
    """Notes how often an RNN ran, and with which flag; refuses backward passes as cuDNN does."""

    def __init__(self) -> None:
        super().__init__()
        self.on = self.off = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in _RECURRENT:
            return out
        enabled = torch._C._get_cudnn_enabled()
        self.on, self.off = self.on + enabled, self.off + (not enabled)
        # (input, hidden or batch sizes, ..., [weights], bias, layers, dropout, training, ...)
        weights = next(i for i, value in enumerate(args) if isinstance(value, list))
        if enabled and not args[weights + 4]:
            for tensor in out:
                if tensor.requires_grad:
                    tensor.register_hook(_refuse)
        return out


def _refuse(grad: torch.Tensor) -> None:
    raise RuntimeError("cudnn RNN backward can only be called in training mode")


@contextmanager
def rnns_on_cudnn(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudnnRnn]:
    """RNNs of the CPU count as RNNs of a GPU."""
    monkeypatch.setattr(isolation, "_CUDNN_DEVICE", "cpu")
    with CudnnRnn() as mode:
        yield mode
