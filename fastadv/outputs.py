"""What a model may return: its logits, bare, in an object or a dict, for as many rows as it got."""

from collections.abc import Mapping

import torch

from fastadv import memory

# what torch and Python raise where sizes do not fit: these alone may mean too few rows
OF_SIZES = (RuntimeError, ValueError, IndexError, AssertionError)
_TAKEN = (
    'A tensor, an object with .logits (as transformers returns) and a dict with "logits" are taken'
)


IN_PLACE = "the model modifies its input in place: make its first operation out of place"


def logits_in(output: object, x: torch.Tensor) -> torch.Tensor:
    """The logits in `output`, what a model returned at x: itself, its `.logits` or ["logits"].

    Looks at types alone, and at nothing but one where `output` is a tensor. Raises ValueError for
    anything else: a tuple may hold its logits anywhere.

    >>> logits_in({"logits": torch.ones(1, 2), "loss": None}, torch.zeros(1, 3))
    tensor([[1., 1.]])
    """
    if isinstance(output, torch.Tensor):
        return output
    is_mapping = isinstance(output, Mapping)
    held = output.get("logits") if is_mapping else getattr(output, "logits", None)
    if isinstance(held, torch.Tensor):
        return held
    raise ValueError(
        f"the model must return (B, C) logits, here ({len(x)}, C); got {type(output).__name__}"
        f"{_details(output, held)}. Wrap it to return its logits alone{_remedy(output)}. {_TAKEN}"
    )


def _details(output: object, held: object) -> str:
    if held is not None:
        return f" with logits that are no tensor but {type(held).__name__}"
    if isinstance(output, Mapping):
        return f" with keys {list(output)}"
    if isinstance(output, tuple | list):
        return f" of {', '.join(type(part).__name__ for part in output) or 'nothing'}"
    return ""


def _remedy(output: object) -> str:
    """How to, where a tensor lies that may be the logits."""
    if isinstance(output, Mapping):
        named = list(output.items())
    elif isinstance(output, tuple | list):
        named = list(enumerate(output))
    else:
        return ""
    key = next((key for key, part in named if isinstance(part, torch.Tensor)), None)
    return "" if key is None else f": lambda x: model(x)[{key!r}]"


def explain(error: Exception, x: torch.Tensor, extra: int, whole: int) -> None:
    """Raise `error`, of a model at x and `extra` tensors, again with more words where there are
    any; whole: rows that the model has answered, 0 if none yet."""
    explain_arguments(error, extra)
    explain_layout(error, x)
    explain_rows(error, len(x), whole)


def explain_arguments(error: Exception, extra: int) -> None:
    """Raise `error` again with more words where a model does not take x and `extra` tensors."""
    if type(error) is not TypeError or "positional argument" not in str(error):
        return
    if extra:
        raise TypeError(
            f"the model was given x and {extra} more, and fails: {error}. What extra= holds, and "
            "what data yield after x and y, is given to it as model(x, *extra): leave out what it "
            "does not take"
        ) from error
    raise TypeError(
        f"the model was given x alone, and fails: {error}. What it takes beside x is given as "
        "extra=(tensor, ...), with a row a sample, and by data of (x, y, *extra)"
    ) from error


def explain_layout(error: Exception, x: torch.Tensor) -> None:
    """Raise `error` again with more words where a model views what lies in channels_last."""
    if type(error) is not RuntimeError or "view size is not compatible" not in str(error):
        return
    raise RuntimeError(
        f"the model fails at x of strides {x.stride()}: {error} What it views lies in "
        "channels_last here: write .reshape() or .flatten() in the model, or give x.contiguous() "
        "and leave channels_last out of Execution"
    ) from error


def explain_rows(error: Exception, rows: int, whole: int) -> None:
    """Raise `error` again with more words where a model fails with `rows` samples that has answered
    `whole`, 0 if none yet."""
    is_of_sizes = type(error) in OF_SIZES and not memory.is_out_of_memory(error)
    if is_of_sizes and whole not in (0, rows):
        raise type(error)(
            f"the model fails on {rows} samples, of a batch of {whole}: {error}. If it is tied to "
            "the whole batch (by a mask, a hidden state or a second input of its size, or because "
            "it was exported for this size): keep='last' with batch_size=len(x) passes whole "
            "batches; give per-sample inputs as extra="
        ) from error
