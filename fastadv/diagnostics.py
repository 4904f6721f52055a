"""Warnings: what made an attack weaker than it looks, or slower than was asked for."""

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType

# whose lines a warning does not name: torch's and contextlib's stand between ours and the user's,
# the others where a thread begins or waits for one
_NOT_THE_USERS = (
    "fastadv",
    "torch",
    "contextlib",
    "threading",
    "concurrent",
    "multiprocessing",
    "asyncio",
    "selectors",
)


class AttackWarning(UserWarning):
    """Something weakens an attack; `code` names it, `count` says for how many samples.

    Codes: "zero_gradient", "nan_gradient", "nan_logits", "probabilities", "squashed",
    "unconfirmed", "clamped_input", "recorded_in_training", "target_is_label", "zero_radius",
    "small_radius", "rounded_input"; of ensembles also "randomised", "dynamic", "few_classes",
    "square_gains", "empty_gradient".
    """

    def __init__(self, code: str, count: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.count = count


class ExecutionWarning(UserWarning):
    """Something that was to make an attack or a training step faster could not be had."""


_TEXTS = {
    "zero_gradient": "the input gradient is exactly zero, so the attack cannot move them: the "
    "model saturates or masks its gradients; try loss='margin' or loss='dlr', or BPDA; "
    "of an objective, a loss that is not flat there",
    "nan_gradient": "the input gradient has NaN, which counts as 0: the attack is weaker than "
    "it looks",
    "nan_logits": "the model returned NaN logits on the way; such iterates never count as a "
    "success",
    "unconfirmed": "the search saw a success that the returned tensor does not confirm: the "
    "model's answers depend on the batch, or on chance; they count as robust, so robust accuracy "
    "may be overestimated",
    "clamped_input": "the model loses the gradient of entries that lie at a bound, as one that "
    "clamps its input does (clamp since PyTorch 2.14, hardtanh and relu always). It is taken with "
    "such entries moved inside, by at most 1e-6 of the range (in half precision by one rounding); "
    "losses and successes are those of the iterates themselves. To be rid of this, and of the "
    "further pass that it costs: leave the clamp out of the model, as iterates stay in bounds "
    "anyway, or put it into fastadv.BPDA(lambda x: x.clamp(0, 1))",
    "recorded_in_training": "the model was traced or exported in train mode, which no flag "
    "changes any more: dropout and batch statistics stay on, so that its answers depend on chance "
    "or on the batch; trace or export model.eval()",
    "randomised": "the model answers differently when asked again: one lucky draw may count as "
    "a success; use version='rand', which averages over draws",
    "dynamic": "the model computes gradients of its own in its forward pass, as defences that "
    "adapt at test time do: attacks that do not look through that overestimate its robustness",
    "few_classes": "the model has too few classes for the DLR loss (3, targeted 4): the margin "
    "loss was used in its place",
    "square_gains": "the Square Attack, which uses no gradient, broke them behind the gradient "
    "attacks, or a gradient did from where it had ended: gradients are masked, and robust accuracy "
    "is likely overestimated; give Square more queries and restarts, or write an adaptive attack",
    "empty_gradient": "they stood against the first attacks, and FGSM's step gains less than a "
    "quarter of what the gradient foretells, or nothing: the loss is not what gradients see of it, "
    "as where they are masked, and robust accuracy may be overestimated; use version='standard', "
    "or write an adaptive attack",
    "probabilities": "the model returns probabilities (rows sum to 1): attacks need logits, "
    "remove the softmax, or gradients vanish where the model is confident; "
    'fastadv.Unsquashed(model, "softmax") undoes it',
    "target_is_label": "the target is the label (of y, or without y the model's own prediction): "
    "such samples are not attacked, and count as no success; give another class, or leave target= "
    "out to move away from the label",
    "zero_radius": "eps is 0: the samples come back as they are, and only those that the model "
    "gets wrong as they are count as a success",
    "small_radius": "the L2 radius is less than a tenth of the range of the bounds, for samples of "
    "more than 500 elements: is L-infinity meant? 8/255 is usual for L-infinity, 0.5 for L2 on "
    "3 x 32 x 32 pixels in [0, 1]",
    "rounded_input": "x leaves the bounds by at most 1e-6 of their range, as rounding does, and "
    "was clamped; distances are from the clamped samples. To be rid of this, give "
    "x.clamp(*threat.bounds)",
    "squashed": "all outputs lie in [0, 1] or in [-1, 1], and one in ten or more at an end: a "
    "sigmoid or tanh behind the logits, whose gradient vanishes where the model is confident; "
    "attack the logits: remove it, or undo it by fastadv.Unsquashed(model, "
    '"sigmoid" | "tanh" | "softmax")',
}


# where they say something else of an ensemble, whose losses are several
_OF_ENSEMBLES = {
    "zero_gradient": "the input gradient is exactly zero, so attacks with gradients cannot move "
    "them: the model saturates or masks its gradients; give what is flat another backward pass by "
    "fastadv.BPDA, or search without gradients, by fastadv.square with more queries and restarts",
}
_SILENT: ContextVar[frozenset[str]] = ContextVar("fastadv.diagnostics.silent", default=frozenset())


@contextlib.contextmanager
def without(*codes: str) -> Iterator[None]:
    """Inside, in this thread, nothing is said of `codes`: where they are no surprise."""
    token = _SILENT.set(_SILENT.get() | set(codes))
    try:
        yield
    finally:
        _SILENT.reset(token)


def warn(code: str, count: int, total: int, *, of_ensemble: bool = False) -> None:
    """Warn that `count` of `total` samples have the problem `code`; nothing if count is 0."""
    if count and code not in _SILENT.get():
        emit(AttackWarning(code, count, words(code, count, total, of_ensemble=of_ensemble)))


def words(code: str, count: int, total: int, *, of_ensemble: bool = False) -> str:
    """What an `AttackWarning` says; a report of a later version may have codes of its own."""
    texts = _TEXTS | _OF_ENSEMBLES if of_ensemble else _TEXTS
    text = texts.get(code, "a code that this version does not know")
    return f"{code}: {count} of {total} samples: {text}"


def emit(warning: Warning) -> None:
    """`warnings.warn` at the user's line: the innermost one outside of fastadv and torch.

    In a thread whose target is ours, `pool.submit(attack.run, model, x, y)`, none of the lines is
    the user's: nothing of ours runs where the thread begins. Then it is the main thread's line,
    which as a rule waits for the result.
    """
    caller = sys._getframe(1)  # one's own frame would be a cycle that keeps what callers hold
    frame = _of_the_user(caller) or _of_the_user(_of_the_main_thread()) or caller
    warnings.warn_explicit(
        warning,
        type(warning),
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _of_the_user(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user's, from this one on outwards."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_THE_USERS:
            return frame
        frame = frame.f_back
    return None


def _of_the_main_thread() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)
