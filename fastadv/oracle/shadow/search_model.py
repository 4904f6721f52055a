"""Which model an attack searches on: the user's, or a faster shadow of it that was checked."""

from dataclasses import dataclass, field, replace

import torch

from fastadv import outputs
from fastadv.isolation import Model, restored_generators
from fastadv.oracle.shadow import folding
from fastadv.oracle.shadow import precision as precisions
from fastadv.oracle.shadow.agreement import First
from fastadv.oracle.shadow.compilation import Backend, compiled
from fastadv.oracle.shadow.copies import Replica, Uncopyable, replica
from fastadv.wrappers import Normalized

_ROWS = 64  # of the first batch, on which a shadow is checked
_WATCHED = 2  # rows of a forward of which only the calls are looked at


@dataclass(frozen=True)
class SearchModel:
    """What is differentiated in place of the user's model `own`; `search_model` builds it.

    model: a `Normalized` if own is one. is_exact: a success here is one of own. scale: the power of
    two that the gradient of the logits is multiplied by before the backward pass. notes: what was
    asked for and could not be had, and why.
    """

    own: Model
    model: Model
    is_exact: bool = True
    scale: float = 1.0
    notes: tuple[str, ...] = ()
    precision: str = "fp32"
    channels_last: bool = False
    replica: Replica | None = field(default=None, repr=False)
    # of a Normalized without hooks, the inner model
    compiled: Model | None = field(default=None, repr=False)

    def forward(self, x: torch.Tensor, *extra: torch.Tensor) -> torch.Tensor:
        """(B, C) logits of `model`; in half precision they come back in the dtype of x."""
        inner = _inner(self.model)
        if self.compiled is not None and inner is not None:
            return self._call(self.compiled, self.model.normalize(x), extra)  # type: ignore[attr-defined]
        return self._call(self.compiled or self.model, x, extra)

    def forward_inner(self, x: torch.Tensor, *extra: torch.Tensor) -> torch.Tensor:
        """The same of `model.model`, for x that is normalised already; of a `Normalized` only."""
        inner = _inner(self.model)
        if inner is None:
            raise TypeError(f"forward_inner needs a Normalized without hooks; got {self.model!r}")
        return self._call(self.compiled or inner, x, extra)

    def _call(self, model: Model, x: torch.Tensor, extra: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if self.is_exact:
            return outputs.logits_in(model(x, *extra), x)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.precision == "fp32":
            return outputs.logits_in(model(x, *extra), x)
        with precisions.autocast(x.device.type, self.precision):
            return outputs.logits_in(model(x, *extra), x).to(x.dtype)

    def refresh(self) -> None:
        """Follow weights of `own` that were changed in place; no tensor moves."""
        if self.replica is not None:
            self.replica.refresh()


def search_model(
    model: Model,
    *,
    precision: str,
    channels_last: bool,
    fold_batchnorm: bool,
    compile: bool | Backend,
    x: torch.Tensor,
    logits: torch.Tensor,
    extra: tuple[torch.Tensor, ...] = (),
) -> SearchModel:
    """A model to search on, checked at the first batch; `model` itself where nothing is asked.

    Must be called inside `isolated(model)`. precision: "fp32", or "bf16" or "fp16" for autocast.
    channels_last, fold_batchnorm: of a copy. compile: True for the backend "inductor", or another
    backend. x: (B, ...) samples, of which 64 are looked at. logits: (B, C), the model's at (x,
    *extra). What half precision, channels_last or a compiler cannot do for the model is left out,
    with a note. Reads the device. Raises ValueError if fold_batchnorm or channels_last is asked of
    a model that cannot be copied, or if the folded copy answers otherwise.

    >>> net = torch.nn.Linear(3, 2).eval()
    >>> x = torch.zeros(4, 3)
    >>> with torch.no_grad():
    ...     search = search_model(net, precision="bf16", channels_last=False,
    ...         fold_batchnorm=False, compile=False, x=x, logits=net(x))
    >>> search.is_exact, search.notes
    (False, ())
    """
    if precision not in precisions.SCALES:
        raise ValueError(f"precision must be one of {list(precisions.SCALES)}; got {precision!r}")
    asked = _Asked(precision, channels_last, fold_batchnorm, compile)
    if asked == _NOTHING or len(x) == 0:
        return SearchModel(model, model)
    more = tuple(rows[:_ROWS] for rows in extra)
    first = First(model, x[:_ROWS].detach(), logits[:_ROWS].detach(), more)
    with restored_generators(x.device, 0), torch.no_grad():
        return _built(first, asked)


@dataclass(frozen=True)
class _Asked:
    precision: str = "fp32"
    channels_last: bool = False
    fold_batchnorm: bool = False
    compile: bool | Backend = False


_NOTHING = _Asked()


def _built(first: First, asked: _Asked) -> SearchModel:
    """Folded, cast, laid out, compiled, in this order; what fails is left out, and all begins anew.

    Each is checked by itself, so that the one that failed is named.
    """
    if asked == _NOTHING:
        return SearchModel(first.model, first.model)
    if reason := precisions.obstacle(asked.precision, first.x):
        return _without(first, asked, "precision", reason)
    search = _copied(first, asked)
    copied = search.replica
    if asked.fold_batchnorm and copied is not None:
        if not folding.fold(copied, *first.rows(_WATCHED)):
            reason = "no BatchNorm layer is given the output of a convolution or linear layer"
            return _without(first, asked, "fold_batchnorm", reason)
        if reason := first.refuses(search.forward, "fp32"):
            raise ValueError(
                f"fold_batchnorm=True: of the folded copy, {reason}; is the output of a "
                "convolution used elsewhere too, not by its BatchNorm alone, or does the model "
                "compute in less than float32? Leave it out"
            )
    if asked.precision != "fp32":
        search = _in_half_precision(search, first, asked.precision)
        if reason := first.refuses(search.forward, asked.precision):
            return _without(first, asked, "precision", reason)
    if asked.channels_last and copied is not None:
        _lay_out(copied)
        search = replace(search, channels_last=True)
        if reason := first.refuses(search.forward, asked.precision):
            return _without(first, asked, "channels_last", reason)
    if asked.compile is not False:
        search = _compiled(search, "inductor" if asked.compile is True else asked.compile)
        if reason := first.refuses(search.forward, asked.precision):
            return _without(first, asked, "compile", reason)
    return search


def _without(first: First, asked: _Asked, name: str, reason: str) -> SearchModel:
    search = _built(first, replace(asked, **{name: getattr(_NOTHING, name)}))
    note = f"{name}={getattr(asked, name)!r} was left out: {reason}"
    return replace(search, notes=(note, *search.notes))


def _copied(first: First, asked: _Asked) -> SearchModel:
    try:
        copied = replica(first.model, *first.rows(_WATCHED))
    except Uncopyable as reason:
        for name in ("fold_batchnorm", "channels_last"):
            if getattr(asked, name):
                raise ValueError(
                    f"{name}=True needs a copy of the model, but {reason}; pass an nn.Module whose "
                    "layers are submodules, or leave it out"
                ) from reason
        return SearchModel(first.model, first.model, is_exact=False)
    return SearchModel(first.model, copied.model, is_exact=False, replica=copied)


def _in_half_precision(search: SearchModel, first: First, precision: str) -> SearchModel:
    if search.replica is not None:
        x, extra = first.rows(_WATCHED)
        precisions.cast(search.replica, x, precisions.DTYPES[precision], extra)
    return replace(search, precision=precision, scale=precisions.SCALES[precision])


def _lay_out(copied: Replica) -> None:
    for p in copied.module.parameters():
        if p.ndim == 4:
            p.data = p.contiguous(memory_format=torch.channels_last)


def _compiled(search: SearchModel, backend: Backend) -> SearchModel:
    inner = _inner(search.model)
    return replace(search, compiled=compiled(inner or search.model, backend))


def _inner(model: Model) -> Model | None:
    """What a Normalized without hooks, which would be skipped, calls for normalised samples."""
    if type(model) is not Normalized or folding.has_hooks(model):  # type: ignore[arg-type]
        return None
    return model.model
