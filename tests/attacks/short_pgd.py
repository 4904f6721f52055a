"""PGD in a few steps, for problems of mixed outcomes."""

from toy_models import threat_of

import fastadv
from fastadv.attacks import Attack

STEPS = 6
SAMPLES = 34


def short_pgd(
    norm: str,
    keep: str = "first_success",
    *,
    restarts: int | None = None,
    scale: float = 1.0,
    **more,
) -> Attack:
    threat = threat_of(norm, scale)
    if restarts is None:
        restarts = 1 if keep == "last" else 2
    step = threat.eps / 5 if norm == "linf" else threat.eps / 4
    options = dict(sparsity=0.2) if norm == "l1" else {}
    return fastadv.pgd(
        threat, steps=STEPS, step_size=step, restarts=restarts, keep=keep, **options, **more
    )
