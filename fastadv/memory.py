"""Out of memory: how it shows on each device, and what is to be done before the next try."""

from collections.abc import Callable

import torch

_PHRASES = (
    "out of memory",
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",
    "STATUS_ALLOC_FAILED",  # cuDNN, cuBLAS
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _PHRASES)


def may_halve(error: Exception, rows: int, device: torch.device) -> bool:
    """Whether to try `rows` again in two halves; not while a graph is recorded, which memory that
    runs out ends."""
    if rows < 2 or not is_out_of_memory(error):
        return False
    return not (device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def free_cached(device: torch.device) -> None:
    """Hand cached blocks back: those of the failed batch do not fit a smaller one."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def in_parts(
    function: Callable[..., torch.Tensor], x: torch.Tensor, *more: torch.Tensor, rows: int
) -> torch.Tensor:
    """function(x, *more), at most `rows` rows at a time, and half as many once memory runs out."""
    parts, done = [], 0
    while done < len(x) or not parts:
        part, *others = (tensor[done : done + rows] for tensor in (x, *more))
        try:
            parts.append(function(part, *others))
            done += len(part)
            continue
        except Exception as error:
            if not may_halve(error, len(part), x.device):
                raise
        rows = (len(part) + 1) // 2
        free_cached(x.device)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
