"""How good distances are beside the least that are known: the measure of AttackBench."""

import torch


def optimality(found: torch.Tensor, least: torch.Tensor) -> float:
    """1 where an attack found the least known distance of every sample, 0 where it found none.

    The area under the curve of robust accuracy over radii [0, D], D = max(least), is
    mean(min(found, D)); 1 - (mean(min(found, D)) - mean(least)) / (clean * D - mean(least)), clean
    being the share of samples that are right as they are. found, least: (n,) float64, 0 for a
    sample that is wrong as it is, inf where nothing was found. Source: Cina et al. 2024,
    arXiv:2404.19460.
    """
    if found.shape != least.shape or not bool(least.isfinite().all()):
        raise ValueError(
            "found and least must be distances of the same samples, and least finite; got shapes "
            f"{tuple(found.shape)}, {tuple(least.shape)}"
        )
    most = float(least.max())
    clean = float((least > 0).double().mean())
    mean = float(least.mean())
    return 1 - (float(found.clamp(max=most).mean()) - mean) / (clean * most - mean)


def tightened(least: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with d_inf <= d_2 <= d_1: a point found in one norm bounds the larger p's."""
    tight, bound = dict(least), None
    for norm in ("l1", "l2", "linf"):
        if norm not in tight:
            continue
        if bound is not None:
            tight[norm] = torch.minimum(tight[norm], bound)
        bound = tight[norm]
    return tight
