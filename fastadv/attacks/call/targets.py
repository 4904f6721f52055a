"""Targets of targeted attacks: given, or chosen from the clean logits."""

from typing import Literal, get_args

import torch

from fastadv.attacks.call import inputs
from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox

Rule = Literal["least_likely", "second_best", "random"]
Target = torch.Tensor | Rule
_RULES: tuple[Rule, ...] = get_args(Rule)


def choose(
    target: torch.Tensor | str,
    logits: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    seed: int,
    sample_ids: torch.Tensor,
    x: torch.Tensor,
) -> torch.Tensor:
    """(B,) targets: `target` itself, or by rule, never the label: "least_likely" and "second_best"
    by the clean logits, "random" uniform over the other classes and keyed by (seed, sample_id)."""
    if not isinstance(target, str):
        return inputs.check_labels(target, x, name="target")
    assert logits is not None, "the caller computes clean logits for every rule"
    classes = logits.shape[1]
    others = torch.arange(classes, device=x.device) != labels[:, None]
    if target == "least_likely":
        return logits.masked_fill(~others, float("inf")).argmin(1)
    if target == "second_best":
        return logits.masked_fill(~others, float("-inf")).argmax(1)
    draw = philox.random_integers(seed, sample_ids, streams.TARGET, 0, classes - 1)
    return draw + (draw >= labels)


def rank(logits: torch.Tensor, labels: torch.Tensor, most: int) -> torch.Tensor:
    """(n, T) classes by descending clean logit, without the label; T = min(most, C - 1)."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    others = order[order != labels[:, None]].view(len(logits), logits.shape[1] - 1)
    return others[:, :most].contiguous()


def check_rule(target: object) -> None:
    if isinstance(target, str) and target not in _RULES:
        raise ValueError(f"target must be a (B,) tensor or one of {_RULES}; got {target!r}")
