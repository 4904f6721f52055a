"""How many slots a call holds where the caller does not say."""

import torch

from fastadv.attacks.call.settings import Settings
from fastadv.isolation import Model
from fastadv.oracle import pass_size
from fastadv.oracle.gradient import Oracle


def may_pay(attack: Settings, model: Model, x: torch.Tensor) -> bool:
    """Whether to look at the first pass for what is fast: not for a step that is made at once."""
    is_one_pass = attack.steps == 1 and len(x) <= pass_size.first_rows(x)
    return not is_one_pass and pass_size.may_split(model, x)


def held(oracle: Oracle, x: torch.Tensor) -> int:
    """Slots for all of x, (n, ...): n, or parts as equal as can be of what a fast pass takes."""
    most = pass_size.first_rows(x) if oracle.is_sizing else oracle.fast
    parts = max(1, -(-len(x) // most))
    return max(1, -(-len(x) // parts))
