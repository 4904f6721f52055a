"""AutoAttack with the authors' constructor, attributes and evaluations."""

import os
import time
from collections.abc import Iterable
from typing import Literal, get_args

import torch

from fastadv import outputs
from fastadv.attacks.attack import Attack
from fastadv.compat.autoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from fastadv.compat.autoattack.fab_pt import FABAttack_PT
from fastadv.compat.autoattack.other_utils import Logger
from fastadv.compat.autoattack.square import SquareAttack
from fastadv.compat.autoattack.standard_run import StandardRun, Version
from fastadv.compat.autoattack.sub_attack import Device, Norm, SubAttack, device_for, threat_of
from fastadv.isolation import Model, isolated

_VERSIONS = get_args(Version)


class AutoAttack:
    """`fastadv.autoattack` under the authors' name; see the package for what differs.

    norm: "Linf", "L2" or "L1". seed: None for the time of each run. version: "standard", "plus",
    "rand", or "custom" with attacks_to_run of "apgd-ce", "apgd-dlr", "fab", "square", "apgd-t",
    "fab-t". device: where CUDA is asked for and there is none, the model's own. log_path: a file
    that the log is appended to. `apgd`, `apgd_targeted`, `fab` and `square` have the attributes of
    the authors' classes, which count at the next run; `norm` and `epsilon` set those of all four.

    Example: `AutoAttack(model, norm="Linf", eps=8 / 255).run_standard_evaluation(x, y, bs=250)`.
    Source: Croce and Hein 2020, arXiv:2003.01690.
    """

    def __init__(
        self,
        model: Model,
        norm: Norm = "Linf",
        eps: float = 0.3,
        seed: float | None = None,
        verbose: bool = True,
        attacks_to_run: list[str] = [],  # noqa: B006 - the authors' signature; never changed
        version: Version | Literal["custom"] = "standard",
        is_tf_model: bool = False,
        device: Device = "cuda",
        log_path: str | os.PathLike[str] | None = None,
    ) -> None:
        if is_tf_model:
            raise NotImplementedError("fastadv attacks PyTorch models only: leave out is_tf_model")
        if version not in (*_VERSIONS, "custom"):
            raise ValueError(f"version must be one of {(*_VERSIONS, 'custom')}; got {version!r}")
        if isinstance(attacks_to_run, str) or not isinstance(attacks_to_run, Iterable):
            raise TypeError(
                f"attacks_to_run must be a list of names, such as ['apgd-ce']; got "
                f"{attacks_to_run!r}"
            )
        if version in _VERSIONS and len(attacks_to_run) > 0:
            raise ValueError(
                f"attacks_to_run={list(attacks_to_run)} belongs to version='custom'; version "
                f"{version!r} has attacks of its own"
            )
        self.model = model
        self.seed = seed
        self.verbose: bool = verbose
        self.attacks_to_run: list[str] = list(attacks_to_run)
        self.version: Version | Literal["custom"] = version
        self.is_tf_model = is_tf_model
        self.device = device
        self.logger: Logger = Logger(log_path)
        self.apgd: APGDAttack = APGDAttack(
            model, n_restarts=5, norm=norm, eps=eps, seed=seed, device=device, logger=self.logger
        )
        self.fab: FABAttack_PT = FABAttack_PT(
            model, n_restarts=5, norm=norm, eps=eps, seed=seed, device=device
        )
        self.square: SquareAttack = SquareAttack(
            model, norm=norm, eps=eps, seed=seed, device=device, resc_schedule=False
        )
        self.apgd_targeted: APGDAttack_targeted = APGDAttack_targeted(
            model, norm=norm, eps=eps, seed=seed, device=device, logger=self.logger
        )
        self._norm: Norm = norm
        self._epsilon = eps
        if version != "custom":
            self.set_version(version)

    @property
    def norm(self) -> Norm:
        return self._norm

    @norm.setter
    def norm(self, norm: Norm) -> None:
        self._set_ball(norm, self._epsilon)

    @property
    def epsilon(self) -> float:
        return self._epsilon

    @epsilon.setter
    def epsilon(self, epsilon: float) -> None:
        self._set_ball(self._norm, epsilon)

    def _set_ball(self, norm: Norm, epsilon: float) -> None:
        threat_of(norm, epsilon)
        self._norm, self._epsilon = norm, epsilon
        for attack in (self.apgd, self.apgd_targeted, self.fab, self.square):
            attack.norm, attack.eps = norm, epsilon

    def set_version(self, version: Version = "standard") -> None:
        """Set the attacks and their attributes as the authors do for "standard", "plus", "rand"."""
        if version not in _VERSIONS:
            raise ValueError(f"version must be one of {_VERSIONS}; got {version!r}")
        if self.verbose:
            print(f"setting parameters for {version} version")
        if version == "rand":
            self.attacks_to_run = ["apgd-ce", "apgd-dlr"]
            self.apgd.n_restarts, self.apgd.eot_iter = 1, 20
            return
        is_l1, is_plus = self.norm == "L1", version == "plus"
        self.fab.n_target_classes, self.square.n_queries = 9, 5000
        self.apgd_targeted.n_restarts = 1
        self.apgd_targeted.n_target_classes = 5 if is_l1 and not is_plus else 9
        if is_plus:
            self.attacks_to_run = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
            self.apgd.n_restarts, self.fab.n_restarts = 5, 5
            if is_l1:
                print(f'"{version}" version is used with {self.norm} norm: please check')
            return
        self.attacks_to_run = ["apgd-ce", "apgd-t", "fab-t", "square"]
        self.apgd.n_restarts, self.fab.n_restarts = 5 if is_l1 else 1, 1
        if is_l1:
            self.apgd.use_largereps = self.apgd_targeted.use_largereps = True

    def get_logits(self, x: torch.Tensor) -> torch.Tensor:
        return outputs.logits_in(self.model(x), x)

    def get_seed(self) -> float:
        """The seed of a run: the one given, or the time."""
        return time.time() if self.seed is None else self.seed

    def run_standard_evaluation(
        self,
        x_orig: torch.Tensor,
        y_orig: torch.Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | os.PathLike[str] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The adversarial examples, x where none was found; with return_labels also (n,) classes.

        x_orig: (n, ...) in [0, 1]; the results are on its device and of its dtype. bs: samples in a
        batch, which changes no result. The classes are the model's at what is returned. state_path:
        a file to go on from, if it is there, and written after every attack. Raises ValueError for
        a state of other attacks, settings, data, model or seed, and what the attacks raise.
        """
        run = StandardRun(self, x_orig, y_orig, bs=bs, state_path=state_path)
        x_adv, y_adv = run.carry_out()
        return (x_adv, y_adv) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: torch.Tensor, y_orig: torch.Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, torch.Tensor | tuple[torch.Tensor, torch.Tensor]]:
        """Every attack alone on all samples: name -> what `run_standard_evaluation` returns."""
        names, verbose = self.attacks_to_run, self.verbose
        if verbose:
            print(f"using {self.version} version including {', '.join(names)}")
        found = {}
        try:
            self.verbose = False
            for name in names:
                began = time.time()
                self.attacks_to_run = [name]
                x_adv, y_adv = StandardRun(self, x_orig, y_orig, bs=bs).carry_out()
                found[name] = (x_adv, y_adv) if return_labels else x_adv
                if verbose:
                    accuracy = self.clean_accuracy(x_adv, y_orig, bs=bs)
                    space = "\t \t" if name == "fab" else "\t"
                    self.logger.log(
                        f"robust accuracy by {name.upper()} {space} {accuracy:.2%} \t (time "
                        f"attack: {time.time() - began:.1f} s)"
                    )
        finally:
            self.attacks_to_run = names
            self.verbose = verbose
        return found

    def clean_accuracy(self, x_orig: torch.Tensor, y_orig: torch.Tensor, bs: int = 250) -> float:
        """Share of samples that the model, in eval mode, gets right."""
        device = device_for(self.device, self.model, x_orig)
        correct = 0
        with isolated(self.model, device=device, seed=0):
            for x, y in zip(x_orig.split(bs), y_orig.split(bs), strict=True):
                prediction = self.get_logits(x.clone().to(device)).argmax(1)
                correct += int((prediction == y.to(device)).sum())
        accuracy = correct / len(x_orig)
        if self.verbose:
            print(f"clean accuracy: {accuracy:.2%}")
        return accuracy

    def attacks(self, seed: int) -> list[Attack]:
        """The attacks of `attacks_to_run`, in order, with their attributes as they are now.

        As in the authors' code "fab-t" has one restart, and "fab" too where it comes later in the
        same run. Raises ValueError unless all have the same ball.
        """
        made: list[Attack] = []
        restarts = self.fab.n_restarts
        try:
            for name in self.attacks_to_run:
                attack = self._prepared(name)
                attack.seed = seed
                if attack.target_model is not self.model:
                    raise NotImplementedError(
                        f"{name} attacks another model than AutoAttack's: use that attack alone"
                    )
                made.append(attack.settings(keep="authors", seed=seed))
        finally:
            self.fab.n_restarts = restarts  # the authors lose it, and weaken the next run's FAB
        balls = {repr(attack.threat) for attack in made}
        if len(balls) > 1:
            raise ValueError(
                f"the attacks of one run must agree on eps and norm; got {sorted(balls)}: set "
                "AutoAttack.epsilon, which sets all of them"
            )
        return made

    def _prepared(self, name: str) -> SubAttack:
        if name in ("apgd-ce", "apgd-dlr"):
            self.apgd.loss = "ce" if name == "apgd-ce" else "dlr"
            return self.apgd
        if name in ("fab", "fab-t"):
            self.fab.targeted = name == "fab-t"
            if self.fab.targeted:
                self.fab.n_restarts = 1
            return self.fab
        known = {"square": self.square, "apgd-t": self.apgd_targeted}
        if name not in known:
            raise ValueError(
                "attacks_to_run may hold 'apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t' and "
                f"'square'; got {name!r}"
            )
        return known[name]
