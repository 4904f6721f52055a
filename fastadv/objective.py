"""What an adversary wants of a model that is no plain classifier: a loss, a verdict, a score."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch

from fastadv.values import pasteable_value, same_value

Judgement = Callable[..., torch.Tensor]  # (output, y, **parameters) -> one value a sample

_READY_MADE = "fastadv.objectives"
IGNORE_PIXELS = (
    "Where 255 marks pixels that do not count, as in VOC and Cityscapes, give "
    "fastadv.objectives.segmentation(ignore_index=255)"
)
_OF_LOGITS = ("binary", "multilabel", "soft", "weighted")


class _Parameters(Mapping[str, Any]):
    """A copy that nobody can change."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._held = dict(given)

    def __getitem__(self, name: str) -> Any:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        return repr(self._held)


@dataclass(frozen=True, repr=False, eq=False)
class Objective:
    """What is ascended, `loss(output, y, **parameters)`, and what then counts as a success.

    output: what the model returns for a batch, any shape (B, ...). y: what the caller gave, of any
    dtype and shape (B, ...). loss: to one value a sample, (B,), differentiable in output. success:
    to (B,) bool, which alone decides: the attack stops there, and it is asked again about exactly
    the tensor that is returned; an output with NaN is none. Without it nothing is claimed, and
    `keep` must be "last" or "best". score: to (B,), how good the output is, for reports. name: by
    which reports and checkpoints know it; parameters: keyword arguments of all three, shown with
    the name, and copied. check: of (y, **parameters), asked once a call and of the first batch in
    training; raises for a y that cannot be judged, and may return the largest class in it, which
    the output must have along its second axis. Two objectives are equal if they have the same
    functions, name and parameters. Takes no `target=`: write the target into loss and success.

    Raises TypeError for what is not callable, ValueError for a name that is empty; and where it is
    used, for values of another shape.
    Example: `fastadv.Objective(lambda out, y: (out - y).square().mean(1))`; ready-made ones are in
    `fastadv.objectives`.
    """

    loss: Judgement
    success: Judgement | None = None
    score: Judgement | None = None
    name: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    check: Callable[..., int | None] | None = None

    def __post_init__(self) -> None:
        for what in ("loss", "success", "score", "check"):
            value = getattr(self, what)
            if not callable(value) and (value is not None or what == "loss"):
                of = "(y)" if what == "check" else "(output, y)"
                raise TypeError(f"{what} must be a function of {of}; got {value!r}")
        if self.name is not None and not (isinstance(self.name, str) and self.name):
            raise ValueError(f"name must be a text or None; got {self.name!r}")
        if not isinstance(self.parameters, Mapping):
            raise TypeError(f"parameters must be a dict; got {self.parameters!r}")
        object.__setattr__(self, "parameters", _Parameters(self.parameters))

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is Objective
            and self._functions() == other._functions()
            and self.name == other.name
            and self.parameters.keys() == other.parameters.keys()
            and all(same_value(v, other.parameters[k]) for k, v in self.parameters.items())
        )

    def __hash__(self) -> int:
        return hash((self._functions(), self.name))

    def __repr__(self) -> str:
        parameters = {k: pasteable_value(v) for k, v in self.parameters.items()}
        if self._is_ready_made:
            given = ", ".join(f"{name}={value}" for name, value in parameters.items())
            return f"{_READY_MADE}.{self.name}({given})"
        shown = [_name_of(self.loss)]
        for what in ("success", "score"):
            if getattr(self, what) is not None:
                shown.append(f"{what}={_name_of(getattr(self, what))}")
        if self.name is not None:
            shown.append(f"name={self.name!r}")
        if parameters:
            pairs = ", ".join(f"{name!r}: {value}" for name, value in parameters.items())
            shown.append(f"parameters={{{pairs}}}")
        if self.check is not None:
            shown.append(f"check={_name_of(self.check)}")
        return f"fastadv.Objective({', '.join(shown)})"

    def _functions(self) -> tuple[Callable[..., Any] | None, ...]:
        return self.loss, self.success, self.score, self.check

    @property
    def _is_ready_made(self) -> bool:
        return getattr(self.loss, "__module__", "") == _READY_MADE

    @property
    def expects_logits(self) -> bool:
        """Whether squashed outputs are warned of, as those of some ready-made ones are."""
        return self._is_ready_made and self.name in _OF_LOGITS

    @torch.no_grad()
    def largest_class(self, y: torch.Tensor) -> int:
        """The largest class in y, -1 where there are none. Raises what `check` raises, and may
        synchronise."""
        largest = None if self.check is None else self.check(y, **self.parameters)
        return -1 if largest is None else int(largest)

    def check_classes(self, output: torch.Tensor, largest: int) -> None:
        """Raises ValueError where the model has no class `largest`."""
        classes = output.shape[1] if output.ndim > 1 else largest + 1
        if largest >= classes:
            hint = ""
            if self._is_ready_made and self.name == "segmentation":
                hint = f". {IGNORE_PIXELS}"
            raise ValueError(
                f"y must lie in [0, {classes}), the classes of the model; got {largest}{hint}"
            )

    def losses(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B,) what is ascended."""
        return self._rows("loss", self.loss, output, y)

    @torch.no_grad()
    def verdict(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B, 2) in float32 whose larger column says whether a sample is a success, (0, 1), or not,
        (1, 0); NaN where the output has NaN. So what reads two logits of the class 0 can read it.
        """
        success = torch.zeros(len(output), dtype=torch.bool, device=output.device)
        if self.success is not None:
            success = self._rows("success", self.success, output, y)
            if success.dtype != torch.bool:
                raise TypeError(f"success must give (B,) bool; got {success.dtype}")
        judged = torch.stack([~success, success], 1).float()
        if output.is_floating_point():
            judged.masked_fill_(output.reshape(len(output), -1).isnan().any(1)[:, None], torch.nan)
        return judged

    @torch.no_grad()
    def scores(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
        """(B,) for reports; None without a score."""
        return None if self.score is None else self._rows("score", self.score, output, y).detach()

    def _rows(
        self, what: str, function: Judgement, output: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        rows = function(output, y, **self.parameters)
        if not isinstance(rows, torch.Tensor) or rows.shape != output.shape[:1]:
            got = tuple(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
            raise ValueError(
                f"{what} of {self!r} must give one value a sample, ({len(output)},); got {got}"
            )
        return rows


def uncalled(loss: object) -> str | None:
    """What to say of a ready-made objective whose call was forgotten; None for anything else."""
    name = getattr(loss, "__name__", "_")
    if getattr(loss, "__module__", "") != _READY_MADE or name.startswith("_"):
        return None
    needed = "" if name not in ("regression", "weighted") else "..."
    return f"loss={_READY_MADE}.{name} must be called: loss={_READY_MADE}.{name}({needed})"


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
