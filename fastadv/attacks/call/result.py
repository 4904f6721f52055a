"""What an attack returns, one row a sample."""

import os
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch

from fastadv.execution import Execution
from fastadv.files import read_tensors, save_tensors
from fastadv.ops import doubles, layout


class Cost(NamedTuple):
    """What a run took, but for its passes.

    seconds: of the whole call, of an ensemble of its stages. model_seconds: of these in forward and
    backward passes; on a GPU known only if timed=True, else 0. limit_seconds: what the same passes
    take on their own, the physical limit, if timed=True, else 0. denied: successes of the search
    that the user's model denied, after which it was attacked further. final_attacked, final_broken,
    final_passes (forward and backward, samples), final_seconds: of the attack on survivors by the
    user's model itself, for `final_pass` and where half precision overflowed; included in the
    totals.
    """

    seconds: float = 0.0
    model_seconds: float = 0.0
    limit_seconds: float = 0.0
    denied: int = 0
    final_attacked: int = 0
    final_broken: int = 0
    final_passes: int = 0
    final_seconds: float = 0.0

    @property
    def attack_seconds(self) -> float:
        """Beside the model."""
        return self.seconds - self.model_seconds

    @property
    def share_of_limit(self) -> float | None:
        """limit_seconds / seconds: 1.0 is an attack that costs nothing beside the model. An
        estimate: it may exceed 1 where batches shrank or the machine was busy."""
        return self.limit_seconds / self.seconds if self.limit_seconds and self.seconds else None

    def plus(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))  # type: ignore[arg-type]


class Stage(NamedTuple):
    """One attack of an ensemble: of `attacked` samples it broke `broken`.

    name: as AutoAttack's log writes it; attack: its repr. forwards, backwards: samples times
    passes, of which `discarded` forwards were of proposals that came too late. The rest as in
    `Cost`.
    """

    name: str
    attack: str
    attacked: int
    broken: int
    seconds: float
    forwards: int
    backwards: int
    discarded: int
    model_seconds: float = 0.0
    limit_seconds: float = 0.0
    denied: int = 0
    final_attacked: int = 0
    final_broken: int = 0
    final_passes: int = 0
    final_seconds: float = 0.0

    @property
    def cost(self) -> Cost:
        return Cost(**{name: getattr(self, name) for name in Cost._fields})


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult:
    """Adversarial examples and what is known of them; (B,) tensors on the device of x.

    x_adv: (B, ...), dtype, device and memory format of x. success: the user's model, as it is,
    misclassifies (or hits the target) on exactly x_adv, which lies in bounds and within eps. loss:
    the objective ascended, at x_adv. distance: ||x_adv - x|| in the threat model's norm, float64
    (float32 on devices that have none); inf where the threat model has no radius and nothing was
    found, x_adv being x.
    step: of the first success, 0 for a clean x that is already wrong or a start that succeeds, -1
    if none. prediction: the model's at x_adv. clean_prediction: at x, None where the attack never
    looked. best_at: of searches for the nearest adversarial example, how many forward and backward
    passes a sample had taken when x_adv was found, 0 where x is wrong as it is, -1 where nothing
    was found; else None. forwards, backwards: samples times passes. cost: time, and what was
    attacked again.
    inset: by how much entries at a bound were moved inside to be differentiated, 0.0 unless the
    model clamps its input: see `Execution`. With an `Objective` as loss, success is what it says
    and prediction 1 where it is one, else 0; score, clean_score: its scores at x_adv and at x, None
    where it has none or the attack never looked. execution: how it was run, of "auto" what was
    found. Of
    an ensemble: stages, what each attack did, and broken_by, the index of the one that broke a
    sample, -1 if none did, -2 if the model got it wrong as it was.
    """

    x_adv: torch.Tensor
    success: torch.Tensor
    loss: torch.Tensor
    distance: torch.Tensor
    step: torch.Tensor
    prediction: torch.Tensor
    clean_prediction: torch.Tensor | None
    forwards: int
    backwards: int
    cost: Cost = Cost()
    inset: float = 0.0
    broken_by: torch.Tensor | None = None
    stages: tuple[Stage, ...] = ()
    score: torch.Tensor | None = None
    clean_score: torch.Tensor | None = None
    best_at: torch.Tensor | None = None
    execution: Execution = Execution()

    def __repr__(self) -> str:
        n, hits = len(self.success), int(self.success.sum())
        share = f" ({100 * hits / n:.2f} %)" if n else ""
        stages = f", {len(self.stages)} stages" if self.stages else ""
        kind = f"{self.x_adv.dtype} on {self.x_adv.device}"
        return (
            f"<AttackResult: {hits:,} successes of {n:,}{share}, {self.forwards:,} forwards, "
            f"{self.backwards:,} backwards{stages}\n x_adv {tuple(self.x_adv.shape)} {kind}>"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to a .pt file, atomically; `load` reads it again.

        Example: `attack.run(model, x, y).save("examples.pt")`.
        """
        _check_suffix(path)
        plain: dict[str, Any] = {"stages": [stage._asdict() for stage in self.stages]}
        plain.update(cost=self.cost._asdict(), execution=asdict(self.execution))
        save_tensors(path, {"kind": "AttackResult", **vars(self), **plain})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AttackResult":
        """The result that `save` wrote, tensors on the CPU; nothing in the file is executed.

        Raises ValueError for any other file. Example: `AttackResult.load("examples.pt").x_adv`.
        """
        _check_suffix(path)
        content = read_tensors(path, kind="AttackResult")
        try:
            given: dict[str, Any] = {field.name: content[field.name] for field in fields(cls)}
            given["stages"] = tuple(Stage(**stage) for stage in given["stages"])
            given.update(cost=Cost(**given["cost"]), execution=Execution(**given["execution"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no AttackResult of this version: {error}") from error
        return cls(**given)

    @classmethod
    def empty(cls, x: torch.Tensor) -> "AttackResult":
        """Of no samples; x: (0, ...)."""

        def vector(dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(0, dtype=dtype, device=x.device)

        return cls(
            x_adv=x.clone(memory_format=torch.preserve_format),
            success=vector(torch.bool),
            loss=vector(layout.compute_dtype(x)),
            distance=vector(doubles.widest(x)),
            step=vector(torch.int64),
            prediction=vector(torch.int64),
            clean_prediction=vector(torch.int64),
            forwards=0,
            backwards=0,
        )


def _check_suffix(path: str | os.PathLike[str]) -> None:
    if not os.fspath(path).endswith(".pt"):
        raise ValueError(f"path must end in .pt; got {os.fspath(path)}")
