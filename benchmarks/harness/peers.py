"""One driver a library, all of one signature: (settings, problem) -> a call to be timed.

A driver builds the library's own objects once and returns a function without arguments that
attacks the whole batch as the library's users would. It raises `Unavailable` where the library is
not installed or has another algorithm under that name; the suite prints the reason and goes on.
"""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness.networks import Problem
from fastadv.textbook import Norm


@dataclass(frozen=True)
class Settings:
    """What is asked of every library. kind: "pgd", "fgsm" or "mifgsm".

    One restart starts from x itself unless random_start says otherwise, several from random points.
    """

    kind: str
    norm: Norm
    eps: float
    step_size: float
    steps: int
    restarts: int = 1
    seed: int = 0
    random_start: bool = False

    @property
    def starts_randomly(self) -> bool:
        return self.random_start or self.restarts > 1


Attack = Callable[[], torch.Tensor]
Driver = Callable[[Settings, Problem], Attack]


class Unavailable(Exception):
    """This library cannot take part in this case; the message says why."""


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Import a peer: its warnings and prints are not ours to fail on."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise Unavailable(f"{name} is not installed: {error}") from error


def torchattacks(settings: Settings, problem: Problem) -> Attack:
    """torchattacks has no restarts: the loop its users write, every sample in every restart."""
    with _quiet("torchattacks"):
        library = importlib.import_module("torchattacks")
    return _torchattacks_calls(library, settings, problem)


def fastadv_compat(settings: Settings, problem: Problem) -> Attack:
    """fastadv under torchattacks' names, called in the same way."""
    try:
        library = importlib.import_module("fastadv.compat.torchattacks")
    except ImportError as error:
        raise Unavailable(f"fastadv.compat.torchattacks is not there yet: {error}") from error
    return _torchattacks_calls(library, settings, problem)


def _torchattacks_calls(library: Any, settings: Settings, problem: Problem) -> Attack:
    model, x, y = problem.model, problem.x, problem.y
    common = {"eps": settings.eps, "alpha": settings.step_size, "steps": settings.steps}
    start = {"random_start": settings.starts_randomly}
    with _quiet("torchattacks"):
        attack = {
            ("fgsm", "linf"): lambda: library.FGSM(model, eps=settings.eps),
            ("mifgsm", "linf"): lambda: library.MIFGSM(model, decay=1.0, **common),
            ("pgd", "linf"): lambda: library.PGD(model, **common, **start),
            ("pgd", "l2"): lambda: library.PGDL2(model, **common, **start),
        }[settings.kind, settings.norm]()
    if settings.restarts == 1:
        return lambda: attack(x, y)

    def restarted() -> torch.Tensor:
        chosen = x.clone()
        fooled = torch.zeros_like(y, dtype=torch.bool)
        for restart in range(settings.restarts):
            torch.manual_seed(settings.seed * 1000 + restart)
            x_adv = attack(x, y)
            with torch.no_grad():
                hit = (model(x_adv).argmax(1) != y) & ~fooled
            chosen[hit] = x_adv[hit]
            fooled |= hit
        return chosen

    return restarted


def foolbox(settings: Settings, problem: Problem) -> Attack:
    """foolbox's attack objects through their public call, whose clip and success test included."""
    with _quiet("foolbox"):
        library: Any = importlib.import_module("foolbox")
    if settings.kind == "mifgsm":
        raise Unavailable("foolbox's MI-FGSM accumulates signs, not g / mean|g|: not the same")
    if settings.kind == "fgsm":
        attack = library.attacks.LinfFastGradientAttack(random_start=False)
    else:
        kind = library.attacks.LinfPGD if settings.norm == "linf" else library.attacks.L2PGD
        attack = kind(
            abs_stepsize=settings.step_size,
            steps=settings.steps,
            random_start=settings.starts_randomly,
        )
    if settings.restarts > 1:
        attack = attack.repeat(settings.restarts)
    device = problem.x.device
    model = library.PyTorchModel(problem.model, bounds=(0, 1), device=device)

    def run() -> torch.Tensor:
        torch.manual_seed(settings.seed)
        return attack(model, problem.x, problem.y, epsilons=settings.eps)[1]

    return run


def art(settings: Settings, problem: Problem) -> Attack:
    """ART's attacks from numpy to numpy, batch_size n; its closing success rate included."""
    with _quiet("adversarial-robustness-toolbox"):
        evasion: Any = importlib.import_module("art.attacks.evasion")
        classification: Any = importlib.import_module("art.estimators.classification")
    if settings.norm == "l2":
        raise Unavailable("ART clips to the bounds before the L2 projection: not the same iterates")
    logging.getLogger("art").setLevel(logging.ERROR)
    x = problem.x.cpu().numpy()
    with torch.no_grad():
        classes = problem.model(problem.x[:1]).shape[1]
    on_gpu = problem.x.device.type == "cuda"
    classifier = classification.PyTorchClassifier(
        problem.model,
        nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if on_gpu else "cpu",
    )
    common: dict[str, Any] = {
        "eps": settings.eps,
        "eps_step": settings.step_size,
        "batch_size": len(x),
    }
    if settings.kind == "fgsm":
        attack = evasion.FastGradientMethod(classifier, **common)
    elif settings.kind == "mifgsm":
        attack = evasion.MomentumIterativeMethod(
            classifier, decay=1.0, max_iter=settings.steps, verbose=False, **common
        )
    else:
        attack = evasion.ProjectedGradientDescentPyTorch(
            classifier,
            norm=np.inf,
            max_iter=settings.steps,
            verbose=False,
            num_random_init=settings.restarts if settings.starts_randomly else 0,
            **common,
        )
    labels = problem.y.cpu().numpy()

    def run() -> torch.Tensor:
        np.random.seed(settings.seed)
        torch.manual_seed(settings.seed)
        with warnings.catch_warnings():  # it hands tensors to numpy by a deprecated way
            warnings.simplefilter("ignore", DeprecationWarning)
            x_adv = attack.generate(x, labels)
        return torch.from_numpy(x_adv).to(problem.x.device)

    return run


DRIVERS: dict[str, Driver] = {
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "art": art,
}
DISTRIBUTIONS = ["torchattacks", "foolbox", "adversarial-robustness-toolbox"]
