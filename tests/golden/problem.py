"""The golden files as problems for our slot algorithms: one state, stepped and looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from golden.tiny_model import TinyModel

from fastadv import L1, L2, Linf
from fastadv.attacks import Attack
from fastadv.engine.work import Work
from fastadv.isolation import isolated
from fastadv.oracle.gradient import Oracle

_FOLDER = Path(__file__).parent
THREATS = {"linf": Linf, "l2": L2, "l1": L1}


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(_FOLDER / f"autoattack_{name}.npz", allow_pickle=False) as stored:
        return {array: stored[array] for array in stored.files}


class Problem:
    """The stored model, samples and labels, on `device`."""

    def __init__(self, device: str) -> None:
        stored = arrays("model")
        self.device = device
        self.model = TinyModel(stored).to(device)
        self.x = torch.from_numpy(stored["x"]).to(device)
        self.y = torch.from_numpy(stored["y"]).long().to(device)

    def work(self, attack: Attack, start: torch.Tensor | None, target: np.ndarray | None) -> Work:
        n = len(self.x)
        eps = torch.full((n,), float(attack.threat.eps), device=self.device)
        ranking = None if target is None else self.tensor(target).long()[:, None]
        return Work(
            x=self.x,
            labels=self.y,
            targets=None if ranking is None else ranking[:, 0],
            reference=None,
            ranking=ranking,
            sample_ids=torch.arange(n, device=self.device),
            eps=eps,
            step_size=torch.full_like(eps, float(attack.effective_step_size)),
            x_init=start,
        )

    @contextmanager
    def started(
        self, attack: Attack, start: np.ndarray | None, target: np.ndarray | None = None
    ) -> Iterator[tuple]:
        """(algorithm, state) of all samples, loaded at `start`."""
        x_init = None if start is None else self.tensor(start)
        work = self.work(attack, x_init, target)
        oracle = Oracle(self.model, attack.resolved_loss, targeted=target is not None)
        count = 0 if target is None else 1
        algorithm = attack.algorithm(oracle, targets=count, first_step=0, room=len(self.x))
        with isolated(self.model, device=self.x.device, seed=0):
            state = algorithm.allocate(work, len(self.x))
            items = torch.zeros(len(self.x), dtype=torch.int32, device=self.device)
            algorithm.start(state, None, work, items)
            yield algorithm, state

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
