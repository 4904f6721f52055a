"""The authors' signs of a weak evaluation, in their words, which people search logs for."""

import warnings

import torch

from fastadv import diagnostics, outputs
from fastadv.compat.autoattack.other_utils import L2_norm, Logger
from fastadv.ensemble.checks import examine
from fastadv.isolation import Model, isolated

_SEE = " See flags_doc.md for details."
_TINY = 1e-10  # a model that answers with zeros is not randomised


def _tell(message: str | None, logger: Logger | None) -> None:
    if message is None:
        return
    if logger is None:
        diagnostics.emit(Warning(message))
    else:
        logger.log(f"Warning: {message}")


def randomized_text() -> str:
    return 'it seems to be a randomized defense! Please use version="rand".' + _SEE


def probabilities_text() -> str:
    return (
        "it seems that the output is a probability distribution, please be sure that the logits "
        "are used!" + _SEE
    )


def zero_gradients_text(count: int) -> str:
    return (
        f"there are {count} points with zero gradient! This might lead to unreliable evaluation "
        "with gradient-based attacks." + _SEE
    )


def square_text(gain: float) -> str:
    return (
        f"Square Attack has decreased the robust accuracy of {gain:.2%}. This might indicate that "
        "the robustness evaluation using AutoAttack is unreliable. Consider running Square Attack "
        "with more iterations and restarts or an adaptive attack." + _SEE
    )


def dynamic_text() -> str:
    return (
        "it seems to be a dynamic defense! The evaluation with AutoAttack might be insufficient."
        + _SEE
    )


def classes_text(
    n_cls: int, attacks_to_run: list[str], apgd_targets: int, fab_targets: int
) -> str | None:
    """What a model of n_cls classes has too few of, None if nothing."""
    message = None
    if "apgd-dlr" in attacks_to_run or "apgd-t" in attacks_to_run:
        if n_cls <= 2:
            message = f"with only {n_cls} classes it is not possible to use the DLR loss!"
        elif n_cls == 3:
            message = f"with only {n_cls} classes it is not possible to use the targeted DLR loss!"
        elif "apgd-t" in attacks_to_run and apgd_targets + 1 > n_cls:
            message = _targets_text(apgd_targets, n_cls, "APGD-T")
    if "fab-t" in attacks_to_run and fab_targets + 1 > n_cls:
        if message is None:
            return _targets_text(fab_targets, n_cls, "FAB-T")
        message += (
            f" Also, it seems that too many target classes ({fab_targets}) are used in FAB-T "
            f"({n_cls - 1} possible)!"
        )
    return message


def _targets_text(targets: int, n_cls: int, attack: str) -> str:
    return (
        f"it seems that more target classes ({targets}) than possible ({n_cls - 1}) are used in "
        f"{attack}!"
    )


def check_randomized(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    bs: int = 250,
    n: int = 5,
    alpha: float = 1e-4,
    logger: Logger | None = None,
) -> None:
    """Tell if n answers at x differ by more than alpha, scaled to length 1, or in how many hit y.

    A message goes to the logger, without one it is a Python warning; so in all checks here.
    """
    with isolated(model, device=x.device, seed=0):
        answers = [outputs.logits_in(model(x.clone()), x) for _ in range(n)]
    hits = {int((z.argmax(1) == y).sum()) for z in answers}
    units = [z / (L2_norm(z, keepdim=True) + _TINY) for z in answers]
    spread = max(
        (float(L2_norm(a - b).max()) for i, a in enumerate(units) for b in units[:i]), default=0.0
    )
    _tell(randomized_text() if len(hits) > 1 or spread > alpha else None, logger)


def check_range_output(
    model: Model, x: torch.Tensor, alpha: float = 1e-5, logger: Logger | None = None
) -> int:
    """The number of classes; tells if all answers at x are probabilities."""
    with isolated(model, device=x.device, seed=0):
        z = outputs.logits_in(model(x.clone()), x)
    in_range = bool(((z > -alpha) & (z < 1 + alpha)).all())
    sums_to_one = bool(((z.sum(1) - 1).abs() < alpha).all())
    _tell(probabilities_text() if in_range and sums_to_one else None, logger)
    return z.shape[1]


def check_zero_gradients(grad: torch.Tensor, logger: Logger | None = None) -> None:
    """Tell how many rows of grad are zero."""
    count = int((grad == 0).flatten(1).all(1).sum())
    _tell(zero_gradients_text(count) if count else None, logger)


def check_square_sr(
    acc_dict: dict[str, float], alpha: float = 0.002, logger: Logger | None = None
) -> None:
    """Tell if the accuracy after "square" is more than alpha below that after all others."""
    others = [accuracy for name, accuracy in acc_dict.items() if name != "square"]
    if "square" not in acc_dict or len(others) < 2:
        return
    gain = min(others) - acc_dict["square"]
    _tell(square_text(gain) if gain > alpha else None, logger)


def check_dynamic(
    model: Model, x: torch.Tensor, is_tf_model: bool = False, logger: Logger | None = None
) -> None:
    """Tell if the model takes gradients in its forward pass; debuggers are left alone."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examine(model, x, seed=0, expects_random=True)
    codes = []
    for warning in caught:
        if isinstance(warning.message, diagnostics.AttackWarning):
            codes.append(warning.message.code)
        else:  # the model's own
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    _tell(dynamic_text() if "dynamic" in codes else None, logger)


def check_n_classes(
    n_cls: int,
    attacks_to_run: list[str],
    apgd_targets: int,
    fab_targets: int,
    logger: Logger | None = None,
) -> None:
    """Tell if n_cls classes are too few for the DLR loss or for the targets."""
    _tell(classes_text(n_cls, attacks_to_run, apgd_targets, fab_targets), logger)
