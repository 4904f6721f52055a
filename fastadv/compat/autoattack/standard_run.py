"""One standard evaluation: what is logged, kept on the disk and returned."""

import os
import time
from pathlib import Path
from typing import Literal, Protocol

import torch

import fastadv
from fastadv import diagnostics
from fastadv.attacks.call.call import Call
from fastadv.compat.autoattack import checks
from fastadv.compat.autoattack.autopgd_base import APGDAttack_targeted
from fastadv.compat.autoattack.fab_pt import FABAttack_PT
from fastadv.compat.autoattack.other_utils import Logger
from fastadv.compat.autoattack.relay import relayed
from fastadv.compat.autoattack.state import EvaluationState
from fastadv.compat.autoattack.sub_attack import Device, Norm, device_for, threat_of
from fastadv.ensemble.cascade import Progress
from fastadv.evaluation.checkpoint import DataDigest, digest_of_model
from fastadv.isolation import Model, module_of
from fastadv.threat_model import ThreatModel

Version = Literal["standard", "plus", "rand"]  # beside "custom"
_DESCRIBED = {  # in the order in which a difference is reported
    "version": "version of fastadv",
    "attacks": "set of attacks",
    "norm": "norm",
    "eps": "eps",
    "seed": "seed",
    "settings": "settings of the attacks",
    "model": "model (the SHA-256 of its structure and weights)",
    "data": "data (the SHA-256 of samples and labels)",
}


class Settings(Protocol):
    """What a run asks of the `AutoAttack` that it is of."""

    model: Model
    seed: float | None
    verbose: bool
    attacks_to_run: list[str]
    version: Version | Literal["custom"]
    device: Device
    logger: Logger
    fab: FABAttack_PT
    apgd_targeted: APGDAttack_targeted

    @property
    def norm(self) -> Norm: ...

    @property
    def epsilon(self) -> float: ...

    def get_seed(self) -> float: ...

    def attacks(self, seed: int) -> list[fastadv.Attack]: ...


class StandardRun:
    """`AutoAttack.run_standard_evaluation` of the settings, samples and state at hand."""

    def __init__(
        self,
        settings: Settings,
        x_orig: torch.Tensor,
        y_orig: torch.Tensor,
        *,
        bs: int,
        state_path: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value in (("x_orig", x_orig), ("y_orig", y_orig)):
            if not isinstance(value, torch.Tensor):
                raise TypeError(
                    f"{name} must be a torch.Tensor; got {type(value).__name__}: give "
                    f"torch.as_tensor({name})"
                )
        if len(x_orig) == 0:
            raise ValueError("x_orig must hold at least one sample; got none")
        self.settings = settings
        self.names: list[str] = list(settings.attacks_to_run)
        self.execution: fastadv.Execution = fastadv.Execution(batch_size=bs)
        self.x_orig: torch.Tensor = x_orig
        self.y_orig: torch.Tensor = y_orig
        device = device_for(settings.device, settings.model, x_orig)
        self.x: torch.Tensor = x_orig.detach().to(device)
        self.y: torch.Tensor = y_orig.to(device)
        self.path: Path | None = None if state_path is None else Path(state_path)
        self.is_restored: bool = self.path is not None and self.path.exists()
        if self.path is not None and self.is_restored:
            self.state: EvaluationState = EvaluationState.from_disk(self.path)
        else:
            self.state = EvaluationState(set(self.names), self.path)
        kept = self.state.seed if settings.seed is None else None
        self.seed: int = int(settings.get_seed()) if kept is None else kept
        self.attacks: list[fastadv.Attack] = settings.attacks(self.seed)
        ball = threat_of(settings.norm, settings.epsilon)
        self.threat: ThreatModel = self.attacks[0].threat if self.attacks else ball

    def carry_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_adv, classes of the model at x_adv), on the device of the samples given."""
        if self.path is not None:
            self._compare_identity()
        if self.is_restored:
            self._say(f"Restored state from {self.path}")
        elif self.path is not None:
            self._say(f"Created state in {self.path}")
        done = len(self.state.progress["stages"]) if self.state.progress else 0
        names = ", ".join(self.names[done:])
        self._say(f"using {self.settings.version} version including {names}.")
        if done:
            self._say(f"{', '.join(self.names[:done])} was/were already run.")
        silent = ("randomised",) if self.settings.version == "rand" else ()
        with (
            relayed(self.settings.logger.log, samples=len(self.x), silent=silent),
            diagnostics.without("zero_radius", "rounded_input"),
        ):
            progress = self._clean()
            self.began: float = time.time()
            if self.attacks:
                fastadv.autoattack(
                    self.threat,
                    version="custom",
                    attacks=self.attacks,
                    keep="authors",
                    seed=self.seed,
                ).run(
                    self.settings.model,
                    self.x,
                    self.y,
                    execution=self.execution,
                    progress=progress,
                    on_stage=self._after_stage,
                )
        self._say_outcome(progress)
        x_adv = progress.x_adv.to(self.x_orig.device)
        return x_adv, progress.prediction.to(self.y_orig.device, self.y_orig.dtype)

    def _clean(self) -> Progress:
        """What the model does with the samples as they are, or what the state says."""
        look = Call(
            fastadv.fgsm(self.threat, loss="margin", seed=self.seed),
            self.settings.model,
            self.x,
            self.y,
            target=None,
            sample_ids=None,
            x_init=None,
            execution=self.execution,
        )
        logits = look.clean_logits()
        self.x = look.given.x  # clamped, if rounding took it out of bounds
        progress = Progress.of_clean(look.given.x, self.y.to(torch.int64), logits)
        message = checks.classes_text(
            logits.shape[1],
            self.names,
            self.settings.apgd_targeted.n_target_classes,
            self.settings.fab.n_target_classes,
        )
        if message is not None:
            self.settings.logger.log(f"Warning: {message}")
        if not self.is_restored:
            accuracy = self._accuracy(progress)
            self._record(progress, clean_accuracy=accuracy)
            self._say(f"initial accuracy: {accuracy:.2%}")
            return progress
        progress = self.state.restored(progress, look.given.x)
        self._say(f"initial clean accuracy: {self.state.clean_accuracy:.2%}")
        self._say(
            f"robust accuracy at the time of restoring the state: {self._accuracy(progress):.2%}"
        )
        return progress

    def _after_stage(self, progress: Progress) -> None:
        if not progress.stages:
            return
        stage, name = progress.stages[-1], self.names[len(progress.stages) - 1]
        self._record(progress, clean_accuracy=self.state.clean_accuracy)
        if stage.attacked == 0:
            return
        self._say(f"{name} - 1/1 - {stage.broken} out of {stage.attacked} successfully perturbed")
        self._say(
            f"robust accuracy after {name.upper()}: {self._accuracy(progress):.2%} (total time "
            f"{time.time() - self.began:.1f} s)"
        )

    def _record(self, progress: Progress, *, clean_accuracy: float) -> None:
        if self.path is not None:
            self.state.record(progress, self.names, clean_accuracy=clean_accuracy)

    def _say_outcome(self, progress: Progress) -> None:
        x_adv = progress.x_adv
        largest = float(self.threat.distance(x_adv, self.x).max())
        self._say(
            f"max {type(self.threat).__name__} perturbation: {largest:.5f}, nan in tensor: "
            f"{int(x_adv.isnan().sum())}, max: {float(x_adv.max()):.5f}, "
            f"min: {float(x_adv.min()):.5f}"
        )
        self._say(f"robust accuracy: {self._accuracy(progress):.2%}")

    def _accuracy(self, progress: Progress) -> float:
        return int(progress.robust.sum()) / len(self.x)

    def _say(self, line: str) -> None:
        if self.settings.verbose:
            self.settings.logger.log(line)

    def _compare_identity(self) -> None:
        """Raises ValueError if the state is one of something else; else gives a new one its own."""
        digest = DataDigest()
        digest.update(self.x_orig, self.y_orig)
        mine = {
            "version": fastadv.__version__,
            "attacks": ", ".join(self.names),
            "norm": type(self.threat).__name__,
            "eps": repr(self.threat.eps),
            "seed": repr(self.seed),
            "settings": "; ".join(repr(attack) for attack in self.attacks),
            "model": digest_of_model(module_of(self.settings.model)),
            "data": digest.hexdigest(),
        }
        if not self.is_restored:
            self.state.identity, self.state.seed = mine, self.seed
            return
        for name, what in _DESCRIBED.items():
            theirs = self.state.identity.get(name)
            if theirs != mine[name]:
                raise ValueError(
                    f"the state in {self.path} belongs to another {what}: {theirs}, not "
                    f"{mine[name]}. Choose another state_path, or delete it to start again"
                )
