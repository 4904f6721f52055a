"""Runs whose steps are recorded, where the fixture `tapes` is in force."""

import torch
from toy_models import Problem

import fastadv
from fastadv.attacks import Attack


def run(
    attack: Attack,
    problem: Problem,
    model: torch.nn.Module | None = None,
    *,
    graph: bool | str = "auto",
    **execution,
) -> fastadv.AttackResult:
    return attack.run(
        model or problem.model,
        problem.x,
        problem.y,
        execution=fastadv.Execution(cuda_graph=graph, **execution),
    )
