"""Who takes part in the AutoAttack comparison: one attack at a time, each on its own survivors."""

import contextlib
import copy
import importlib
import io
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn

import fastadv
from benchmarks.harness.networks import Problem
from fastadv.ensemble.cascade import Attacked, Progress, run_cascade

NAMES = ("APGD-CE", "APGD-T", "FAB-T", "Square")
OURS, AUTHORS, TORCHATTACKS = "fastadv", "autoattack", "torchattacks, cascade"
BATCH = 250  # of the others: the authors' default

Search = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x, y) -> x_adv


@dataclass(frozen=True)
class Budget:
    """Of each attack; the defaults are those of AutoAttack's standard version."""

    steps: int = 100
    queries: int = 5000
    targets: int = 9


class Watched(nn.Module):
    """A model that counts its calls by (rows, whether a backward pass to its input follows)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: Counter[tuple[int, bool]] = Counter()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls[len(x), torch.is_grad_enabled() and x.requires_grad] += 1
        return self.model(x)


class Entrant(Protocol):
    """A library's attacks on one problem; model: what they call. searches: each of them alone."""

    model: Watched
    searches: tuple[Search, ...]

    @property
    def robust(self) -> torch.Tensor:
        """(n,) bool, by the library's own verdict."""
        ...

    @property
    def x_adv(self) -> torch.Tensor:
        """(n, ...): what was found, x where nothing was."""
        ...

    def attack(self, index: int) -> None:
        """Attack number `index` of `NAMES` on the samples that are still robust."""
        ...

    def check(self) -> None:
        """What else a run does: clean accuracy, checks of the model, the result."""
        ...


Build = Callable[[Problem, float, Budget], Entrant]


class Fastadv:
    """`fastadv.autoattack`, keep="first_success", its stages one by one."""

    def __init__(self, problem: Problem, eps: float, budget: Budget) -> None:
        threat = fastadv.Linf(eps)
        self.model = Watched(copy.deepcopy(problem.model))
        self.x, self.y = problem.x, problem.y
        # what `AutoAttack.run` takes where the caller does not say
        look = fastadv.autoattack(threat, version="custom", attacks=[fastadv.fgsm(threat)])
        self.execution = look.run(problem.model, self.x, self.y).execution
        self.ensemble = fastadv.autoattack(threat)
        if budget != Budget():
            targeted: dict[str, Any] = dict(steps=budget.steps, n_target_classes=budget.targets)
            attacks = (
                fastadv.apgd_ce(threat, steps=budget.steps),
                fastadv.apgd_t(threat, **targeted),
                fastadv.fab_t(threat, **targeted),
                fastadv.square(threat, queries=budget.queries),
            )
            self.ensemble = fastadv.autoattack(threat, version="custom", attacks=attacks)
        self.searches = tuple(
            lambda x, y, attack=attack: attack(self.model, x, y, execution=self.execution)
            for attack in self.ensemble.attacks
        )
        with torch.no_grad():
            self.logits = problem.model(self.x)
        self.progress = Progress.of_clean(self.x, self.y, self.logits)

    @property
    def robust(self) -> torch.Tensor:
        return self.progress.robust

    @property
    def x_adv(self) -> torch.Tensor:
        return self.progress.x_adv

    def attack(self, index: int) -> None:
        run_cascade(
            self.ensemble.attacks[: index + 1],
            Attacked(self.model, self.x, self.y, self.logits, torch.arange(len(self.x))),
            self.progress,
            reserved=(),
            execution=self.execution,
            on_stage=None,
        )

    def check(self) -> None:
        """The public call, for which every attack is done already."""
        result = self.ensemble.run(self.model, self.x, self.y, progress=self.progress)
        assert torch.equal(result.success, ~self.robust), "the result is what the stages found"


class Cascade:
    """Attacks in order, by hand as AutoAttack's authors do: batches of 250, what falls is left."""

    def __init__(
        self,
        model: Watched,
        problem: Problem,
        searches: tuple[Search, ...],
        check: Callable[[], None],
        mode: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.model, self.searches, self.mode = model, searches, mode
        self._check = check
        self.x, self.y = problem.x, problem.y
        with torch.no_grad():
            self.robust = problem.model(self.x).argmax(1) == self.y
        self.x_adv = self.x.clone()

    def check(self) -> None:
        self._check()

    def attack(self, index: int) -> None:
        left = self.robust.nonzero()[:, 0]
        for rows in left.split(BATCH) if len(left) else ():
            with self.mode():
                x_adv = self.searches[index](self.x[rows].clone(), self.y[rows].clone())
            with torch.no_grad():
                fooled = self.model(x_adv).argmax(1) != self.y[rows]
            self.x_adv[rows[fooled]] = x_adv[fooled].detach()
            self.robust[rows[fooled]] = False


def authors(module: ModuleType) -> Build:
    """The authors' package, from the members of its own `AutoAttack` object."""

    def build(problem: Problem, eps: float, budget: Budget) -> Entrant:
        model = Watched(copy.deepcopy(problem.model))
        whole = module.AutoAttack(
            model,
            norm="Linf",
            eps=eps,
            seed=0,
            version="standard",
            verbose=False,
            device=str(problem.x.device),
        )
        whole.apgd.loss, whole.fab.targeted = "ce", True
        for member in (whole.apgd, whole.apgd_targeted, whole.fab):
            member.n_iter = budget.steps
        for member in (whole.apgd_targeted, whole.fab):
            member.n_target_classes = budget.targets
        whole.square.n_queries = budget.queries
        whole.attacks_to_run = []  # what is left of a run: its checks and the clean accuracy

        def check() -> None:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                whole.run_standard_evaluation(problem.x, problem.y, bs=BATCH)

        members = (whole.apgd, whole.apgd_targeted, whole.fab, whole.square)
        searches = tuple(member.perturb for member in members)
        return Cascade(model, problem, searches, check, torch.no_grad)

    return build


def torchattacks(problem: Problem, eps: float, budget: Budget) -> Entrant:
    """torchattacks' APGD, APGDT, FAB and Square, which are AutoAttack's with these arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library: Any = importlib.import_module("torchattacks")
    model = Watched(copy.deepcopy(problem.model))
    common: dict[str, Any] = dict(norm="Linf", eps=eps, seed=0)
    targeted = dict(steps=budget.steps, n_classes=budget.targets + 1)
    searches = (
        library.APGD(model, steps=budget.steps, loss="ce", **common),
        library.APGDT(model, **targeted, **common),
        library.FAB(model, multi_targeted=True, **targeted, **common),
        library.Square(model, n_queries=budget.queries, resc_schedule=False, **common),
    )

    def check() -> None:
        with torch.no_grad():
            model(problem.x).argmax(1)

    return Cascade(model, problem, searches, check, contextlib.nullcontext)
