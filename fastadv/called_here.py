"""What the names of other libraries are called here: for the errors that answer them."""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

_THREAT = "a part of the threat model, as in fastadv.{name}(fastadv.Linf(8 / 255))"
_BOUNDS = "bounds of the threat model, as in fastadv.Linf(8 / 255, bounds=(0.0, 1.0))"
_AT_CALL = "given at the call, attack(model, x, y{more})"

# a setting of torchattacks, foolbox, ART, advertorch, cleverhans or AutoAttack -> what it is here
_SETTINGS = {
    **dict.fromkeys(("eps", "epsilon", "epsilons", "norm", "ord"), _THREAT),
    **dict.fromkeys(("clip_min", "clip_max", "clip_values", "bounds"), _BOUNDS),
    **dict.fromkeys(("alpha", "eps_iter", "eps_step", "stepsize", "rel_stepsize"), "step_size"),
    **dict.fromkeys(("iters", "nb_iter", "n_iter", "num_steps", "max_iter", "iterations"), "steps"),
    **dict.fromkeys(("n_restarts", "num_random_init", "num_restarts"), "restarts"),
    **dict.fromkeys(("rand_init", "random_init", "rand_minmax"), "random_start"),
    **dict.fromkeys(("n_queries", "max_queries"), "queries"),
    **dict.fromkeys(("loss_fn", "criterion"), "loss"),
    **dict.fromkeys(("momentum", "decay_factor"), "decay"),
    "n_classes": "read from the model's logits",
    "eot_iter": "eot",
    "attacks_to_run": "attacks",
    "batch_size": _AT_CALL.format(more=", execution=fastadv.Execution(batch_size=128)"),
    "device": "the device of x and of the model",
    **dict.fromkeys(("model", "estimator", "predict"), _AT_CALL.format(more="")),
    **dict.fromkeys(("targeted", "target"), _AT_CALL.format(more=", target=classes")),
}

# an attack of other libraries -> its constructor here, and the drop-in with its signature there
_ATTACKS = {
    "FGSM": ("fgsm", "torchattacks.FGSM"),
    "RFGSM": ("rfgsm", "torchattacks.RFGSM"),
    "BIM": ("bim", "torchattacks.BIM"),
    "PGD": ("pgd", "torchattacks.PGD"),
    "PGDL2": ("pgd", "torchattacks.PGDL2"),
    "MIFGSM": ("mifgsm", "torchattacks.MIFGSM"),
    "APGD": ("apgd_ce", ""),
    "APGDT": ("apgd_t", ""),
    "FAB": ("fab", ""),
    "Square": ("square", ""),
    **dict.fromkeys(("DDN", "DDNAttack"), ("ddn", "")),
    "ALMA": ("alma", ""),
    "PDGD": ("pdgd", ""),
    "PDPGD": ("pdpgd", ""),
    **dict.fromkeys(("CW", "L2CarliniWagnerAttack"), ("cw", "")),
    **dict.fromkeys(("FMN", "L1FMNAttack", "L2FMNAttack", "LInfFMNAttack"), ("fmn", "")),
    "AutoAttack": ("autoattack", "autoattack.AutoAttack"),
}


def answered(function: Function) -> Function:
    """`function`, which answers a setting that it has not by what that is called here.

    Raises TypeError for such a setting, and for settings by position.
    """
    name, parameters = function.__name__, inspect.signature(function).parameters
    positional = [n for n, one in parameters.items() if one.kind is not one.KEYWORD_ONLY]

    @functools.wraps(function)
    def asked(*given: Any, **settings: Any) -> Any:
        if len(given) > len(positional):
            example = next(n for n in parameters if n not in positional)
            raise TypeError(
                f"{name} takes {' and '.join(positional)} by position, and its settings by name, "
                f"as in fastadv.{name}(threat, {example}=...); got {len(given)} values by position"
            )
        for setting in settings:
            if setting not in parameters:
                raise TypeError(f"{name} has no {setting!r}: {_answer(name, setting, parameters)}")
        return function(*given, **settings)

    return cast(Function, asked)


def _answer(name: str, setting: str, known: Collection[str]) -> str:
    here = _SETTINGS.get(setting)
    if here == "steps" and "queries" in known:
        here = "queries"
    if here is None or (here.isidentifier() and here not in known):
        return f"its settings are {', '.join(known)}"
    return f"here it is {here.format(name=name)}"


def attack_here(name: str) -> str | None:
    """What to write here for an attack's name in another library; None for other names.

    Example: `attack_here("FAB")` is "fastadv.fab(threat)".
    """
    if name not in _ATTACKS:
        return None
    ours, drop_in = _ATTACKS[name]
    also = f", or fastadv.compat.{drop_in} with its signature there" if drop_in else ""
    return f"fastadv.{ours}(threat){also}"
