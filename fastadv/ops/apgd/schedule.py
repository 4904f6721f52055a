"""When APGD checks its progress, and the phases of its L1 form: tables of plain numbers."""

import math

MOVE, CHECK, NEXT_PHASE, GIVEN_START, RANDOM_START = range(5)  # entries of an L1 plan


def apgd_checkpoints(steps: int) -> tuple[int, ...]:
    """Entry t is k > 0 where APGD checks after evaluation t the k evaluations up to it, else 0.

    steps: moves of the attack, at least 1; the table has steps + 1 entries, one an evaluation. The
    first period is 22 % of the steps; each is 3 % shorter than the one before, down to 6 %.

    Example: `[t for t, k in enumerate(apgd_checkpoints(100)) if k]` is
    `[22, 41, 57, 70, 80, 87, 93, 99]`.
    Source: Croce and Hein 2020, arXiv:2003.01690, section 3.1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    period, decrement, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    table = [0] * (steps + 1)
    t = period
    while t <= steps:
        table[t] = period
        period = max(period - decrement, least)
        t += period
    return tuple(table)


def apgd_l1_plan(
    steps: int, *, large_radii: bool, given_start: bool = False
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(plan, radius) of L1-APGD: what happens after each evaluation, and the multiple of eps that
    the next iterate must lie within.

    steps: moves of the attack. large_radii: 30 % of them at 3 eps, 30 % at 2 eps and the rest at
    eps, each phase with an evaluation of its own start (steps + 3 entries, steps at least 3);
    otherwise one phase at eps (steps + 1 entries) that starts at random, or with given_start from
    an iterate whose support sets the sparsity. Plan entries: 0 move; 1 check, then move; 2 project
    the best iterate onto the next phase's ball; 3 and 4 set up a phase from a given and from a
    random start, then move.

    Example: `apgd_l1_plan(2, large_radii=False)` is `((4, 1, 0), (1.0, 1.0, 1.0))`.
    Source: Croce and Hein 2021, arXiv:2103.01208, section 3.2 and appendix.
    """
    least = 3 if large_radii else 1
    if steps < least:
        raise ValueError(f"steps must be at least {least}; got {steps}")
    if large_radii:
        third = math.ceil(0.3 * steps)
        phases = [(3.0, third), (2.0, third), (1.0, steps - 2 * third)]
    else:
        phases = [(1.0, steps)]
    plan, radius = [], []
    for index, (multiple, moves) in enumerate(phases):
        period = max(int(0.04 * moves), 1)
        start = GIVEN_START if large_radii or given_start else RANDOM_START
        inner = [CHECK if t % period == 0 else MOVE for t in range(1, moves)]
        ends = MOVE if index == len(phases) - 1 else NEXT_PHASE  # the last evaluation: no move
        plan += [start, *inner, ends][: moves + 1]  # 4 steps leave the last phase none
        radius += [multiple] * (moves + 1)
        if index + 1 < len(phases):
            radius[-1] = phases[index + 1][0]
    return tuple(plan), tuple(radius)
