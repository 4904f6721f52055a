"""Who takes part: the attacks of fastadv and of the peers, all called as (model, x, y) -> x_adv.

adv-lib imports torchvision and visdom, which no attack here uses: where they are not installed,
empty modules stand in while it is imported.
"""

import contextlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

import fastadv
from benchmarks.harness.peers import Unavailable
from benchmarks.minimum_norm.counted import NORMS
from fastadv.attacks.attack import norms_of

OURS, ADV_LIB, FOOLBOX = "fastadv", "adv-lib", "foolbox"
_THREATS = {"linf": fastadv.Linf, "l2": fastadv.L2, "l1": fastadv.L1, "l0": fastadv.L0}
_FOOLBOX_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}

_BUDGETS = {"linf": (537, 600), "l2": (550, 1000), "l1": (500, 800), "l0": (1000,)}

Attack = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
Arguments = Callable[[str, int], dict[str, Any]]  # (norm, steps) -> what a peer's function takes


@dataclass(frozen=True)
class Entrant:
    """library: whose attack it is. make: of norm and steps, what is called; raises `Unavailable`
    where the library is not installed."""

    library: str
    make: Callable[[str, int], Attack]


@dataclass(frozen=True)
class Algorithm:
    """One algorithm with `steps`, in some norms; the first entrant is what others are held to."""

    name: str
    steps: int
    norms: tuple[str, ...]
    entrants: tuple[Entrant, ...]


def _fastadv(name: str) -> Entrant:
    def make(norm: str, steps: int) -> Attack:
        if norm not in norms_of(name):
            raise Unavailable(f"{name} is not there in {norm}")
        attack = getattr(fastadv, name)(_THREATS[norm](), steps=steps)
        return lambda model, x, y: attack(model, x, y)

    return Entrant(OURS, make)


def minimum_norm(seed: int = 0) -> Entrant:
    """Our ensemble, whose steps are passes."""

    def make(norm: str, steps: int) -> Attack:
        attack = fastadv.minimum_norm(_THREATS[norm](), budget=steps, seed=seed)
        return lambda model, x, y: attack(model, x, y)

    return Entrant(OURS, make)


def _apgd_t_search(norm: str, steps: int) -> Attack:
    """adv-lib's search over ten radii, each with five targets."""
    search = _imported("adv_lib.attacks.auto_pgd", "torchvision", "visdom").minimal_apgd

    def run(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        widest = 1.0 if x.shape[1] == 1 else 64 / 255  # of digits, and of photographs
        return search(
            model,
            x,
            y,
            norm=NORMS[norm],
            max_eps=widest,
            n_iter=steps,
            binary_search_steps=10,
            loss_function="dlr",
            targeted_version=True,
            num_targets=5,
        )

    return run


def _adv_lib(name: str, arguments: Arguments) -> Entrant:
    def make(norm: str, steps: int) -> Attack:
        attack = getattr(_imported("adv_lib.attacks", "torchvision", "visdom"), name)
        return lambda model, x, y: attack(model, x, y, **arguments(norm, steps))

    return Entrant(ADV_LIB, make)


def _foolbox(name: str, arguments: Arguments) -> Entrant:
    """name: of the class, with {norm} where that stands."""

    def make(norm: str, steps: int) -> Attack:
        library = _imported("foolbox")
        kind = getattr(library.attacks, name.format(norm=_FOOLBOX_NORMS[norm]))
        attack = kind(**arguments(norm, steps))

        def run(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            wrapped = library.PyTorchModel(model, bounds=(0, 1), device=x.device)
            return attack(wrapped, x, library.criteria.Misclassification(y), epsilons=None)[1]

        return run

    return Entrant(FOOLBOX, make)


def _named(steps_name: str, **more: Any) -> Arguments:
    """Steps under that name, and the norm as a number."""
    return lambda norm, steps: {"norm": NORMS[norm], steps_name: steps, **more}


def _stepped(steps_name: str, **more: Any) -> Arguments:
    return lambda norm, steps: {steps_name: steps, **more}


def _of_fmn(norm: str, steps: int) -> dict[str, Any]:
    first = {"α_init": 10} if norm == "linf" else {}  # as its authors have it
    return {"norm": NORMS[norm], "steps": steps, **first}


def _of_alma(norm: str, steps: int) -> dict[str, Any]:
    rate = {"l2": 0.1, "l1": 0.5}[norm]  # as its authors have it
    return {"distance": norm, "num_steps": steps, "init_lr_distance": rate}


ALGORITHMS = (
    Algorithm(
        "FAB",
        100,
        ("linf", "l2", "l1"),
        (_adv_lib("fab", _named("n_iter")), _fastadv("fab")),
    ),
    Algorithm("FMN", 100, ("linf", "l2", "l1", "l0"), (_adv_lib("fmn", _of_fmn), _fastadv("fmn"))),
    Algorithm("FMN", 1000, ("linf", "l2", "l1", "l0"), (_adv_lib("fmn", _of_fmn), _fastadv("fmn"))),
    Algorithm(
        "DDN",
        100,
        ("l2",),
        (
            _adv_lib("ddn", _stepped("steps")),
            _foolbox("DDNAttack", _stepped("steps")),
            _fastadv("ddn"),
        ),
    ),
    Algorithm("ALMA", 1000, ("l2", "l1"), (_adv_lib("alma", _of_alma), _fastadv("alma"))),
    Algorithm("PDGD", 500, ("l2",), (_adv_lib("pdgd", _stepped("num_steps")), _fastadv("pdgd"))),
    Algorithm(
        "PDPGD",
        500,
        ("linf", "l2", "l1", "l0"),
        (_adv_lib("pdpgd", _named("num_steps")), _fastadv("pdpgd")),
    ),
    Algorithm(
        "sigma-zero",
        1000,
        ("l0",),
        (_adv_lib("sigma_zero", _stepped("num_steps")), _fastadv("sigma_zero")),
    ),
    Algorithm(
        "DeepFool",
        50,
        ("linf", "l2"),
        (
            _adv_lib("df", _named("steps", return_unsuccessful=True)),
            _foolbox("{norm}DeepFoolAttack", _stepped("steps")),
            _fastadv("deepfool"),
        ),
    ),
    Algorithm(
        "C&W, 9 constants",
        100,
        ("l2",),
        (
            _adv_lib("carlini_wagner_l2", _stepped("max_iterations")),
            _foolbox("L2CarliniWagnerAttack", _stepped("steps")),
            _fastadv("cw"),
        ),
    ),
    Algorithm("APGD-T search", 20, ("linf",), (Entrant(ADV_LIB, _apgd_t_search),)),
    # half of the passes of the best single peer of the norm, and the budget of our goal
    *[
        Algorithm("minimum_norm", passes, (norm,), (minimum_norm(),))
        for norm, budgets in _BUDGETS.items()
        for passes in budgets
    ],
    Algorithm("EAD, 9 constants", 74, ("l1",), (_foolbox("EADAttack", _stepped("steps")),)),
)


def _imported(name: str, *stand_ins: str) -> Any:
    """The module, imported in silence; stand_ins: what it imports for nothing."""
    try:
        with _standing_in(stand_ins), warnings.catch_warnings(), _silence():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name.partition('.')[0]} cannot be imported: {error}") from error


def _silence() -> contextlib.AbstractContextManager[object]:
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def _standing_in(names: tuple[str, ...]) -> Iterator[None]:
    absent = [n for n in names if n not in sys.modules and importlib.util.find_spec(n) is None]
    for name in absent:
        module = ModuleType(name)
        module.models = None  # type: ignore[attr-defined]  # `from torchvision import models`
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
