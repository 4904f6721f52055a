"""The search of one call: from the clean samples to what was found, whatever the memory."""

import time
from collections.abc import Hashable

import numpy as np
import torch

from fastadv import memory
from fastadv.attacks.call import inputs, squashing
from fastadv.attacks.call.bounds_watch import BoundsWatch, GradientLostError
from fastadv.attacks.call.preparation import Prepared
from fastadv.attacks.call.result import Cost
from fastadv.attacks.call.settings import Settings
from fastadv.attacks.call.verdict import joined
from fastadv.elements import has_elements
from fastadv.engine import looks
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.engine.continuous import run_continuous
from fastadv.engine.ledger import Ledger
from fastadv.engine.plain import Confirm, run_chunk, run_plain
from fastadv.engine.stepping import Plan, Stepper
from fastadv.engine.work import Work
from fastadv.execution import Execution
from fastadv.graphs.planner import Backend
from fastadv.kernels import slots as columns
from fastadv.oracle.gradient import Oracle

_OVERFLOWED = columns.FAULT_OVERFLOW | columns.FAULT_NAN_LOGITS


class Search:
    """Runs the algorithm of `attack`. cost: what it cost so far, passes apart."""

    def __init__(
        self,
        attack: Settings,
        oracle: Oracle,
        execution: Execution,
        batch_size: int,
        prepared: Prepared,
    ) -> None:
        self.attack = attack
        self.oracle = oracle
        self.execution = execution
        self.batch_size = batch_size
        self.prepared = prepared
        self.cost: Cost = Cost()
        self.attacked: int = 0  # samples
        self._watch = BoundsWatch(oracle, execution.inset)
        oracle.search = prepared.search
        oracle.room = prepared.room
        oracle.is_recorded = prepared.graphs is not None

    @property
    def is_exact(self) -> bool:
        """Whether the user's model itself is searched, so that it has seen every success."""
        return self.oracle.search is None or self.oracle.search.is_exact

    @property
    def recorder(self) -> Backend | None:
        """What records steps, None where they are eager."""
        graphs = self.prepared.graphs
        return graphs.backend if graphs is not None and graphs.refusal is None else None

    def found(
        self, work: Work, pending: np.ndarray, groups: list[tuple[int, np.ndarray]]
    ) -> Ledger:
        """What the attack finds for the samples `pending`; groups: (first step that may count as a
        success, samples)."""
        try:
            return self._found(work, pending, groups)
        except GradientLostError:  # now the oracle knows
            return self._found(work, pending, groups)

    def _found(
        self, work: Work, pending: np.ndarray, groups: list[tuple[int, np.ndarray]]
    ) -> Ledger:
        self.attacked = len(pending)
        self._watch.extra = work.extra
        settles = self.attack.keep != "best" and not self.attack.seeks_nearest
        ledger = Ledger(work.x, settles=settles)
        for first_step, samples in groups:
            own = np.intersect1d(samples, pending)
            parts = 1 + (self.execution.final_pass and not self.is_exact)
            with looks.as_part(0, parts):
                self._run(work, first_step, own, ledger)
            if not self.is_exact:
                with looks.as_part(parts - 1, parts):
                    self._attack_again(work, first_step, own, ledger)
        self.prepared.room = self.oracle.room
        self.prepared.settle(self.oracle.model)
        return ledger

    def last_iterates(self, work: Work) -> tuple[torch.Tensor, np.ndarray]:
        """(iterates, faults) after every step of every sample, batch by batch, read back once."""
        judge = self.oracle.judge
        if judge.loss.function is not None and judge.classes == 0:
            seen = work.labels if work.targets is None else work.targets
            inputs.check_range(seen, None, name="y or target")
            judge.largest_label = int(seen.max())
        self.attacked = len(work)
        self._watch.extra = work.extra
        everything = np.arange(len(work))
        whole, faults = self._all_steps(work, everything)
        if self._watch.inspect is not None:
            try:
                self._watch.inspect(whole, faults, everything, everything)
            except GradientLostError:
                whole, faults = self._all_steps(work, everything)
        overflowed = np.flatnonzero(faults & _OVERFLOWED)
        if len(overflowed) and not self.is_exact:
            with self.oracle.by_own_model():
                rows, faults[overflowed] = self._all_steps(work, overflowed)
            whole[torch.as_tensor(overflowed, device=whole.device)] = rows
        self.prepared.room = self.oracle.room
        self.prepared.settle(self.oracle.model)
        return whole, faults

    def _all_steps(self, work: Work, samples: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        iterates, faults = [], []
        size, done = self.batch_size, 0
        while done < len(samples):
            chunk = samples[done : done + size]
            plan = self._plan(work, 0, size)
            stepper = Stepper(plan, self.prepared.graphs)
            try:
                look = self._watch.is_open
                state = run_chunk(stepper, work, chunk, 0, look=look, is_final=True)
                kept = state.x_adv.detach()
                iterates.append(kept.clone() if stepper.records else kept)
                faults.append(state.slots[:, columns.FAULT].clone())
                done += len(chunk)
                if (heard := looks.listener()) is not None:
                    heard(looks.Look(len(samples), 0, done))
                continue
            except Exception as error:
                if len(chunk) == 1 or not memory.is_out_of_memory(error):
                    raise
            finally:
                plan.algorithm.oracle = None
            size = (len(chunk) + 1) // 2
            del plan, stepper
            memory.free_cached(work.x.device)
        like = work.x if len(samples) == len(work) else work.x[: len(samples)]
        whole = iterates[0] if len(iterates) == 1 else joined(iterates, like)
        return whole, squashing.marked(torch.cat(faults), self.oracle.first).cpu().numpy()

    def _run(self, work: Work, first_step: int, pending: np.ndarray, ledger: Ledger) -> None:
        """Half as many slots after memory has run out where the oracle could not help: what is in
        the ledger stays there, what was under way starts again."""
        run = run_plain if self.execution.batching == "plain" else run_continuous
        size = self.batch_size
        while len(pending):
            plan = self._plan(work, first_step, size)
            try:
                stepper = Stepper(plan, self.prepared.graphs)
                inspect = self._watch.inspect
                run(stepper, work, pending, ledger, size, self._confirm(work), inspect)
                return
            except Exception as error:
                if size == 1 or not memory.is_out_of_memory(error):
                    raise
            finally:
                plan.algorithm.oracle = None
            size = (size + 1) // 2
            del plan, stepper
            memory.free_cached(work.x.device)

    def _confirm(self, work: Work) -> Confirm | None:
        """Asks the user's model about a success of the search, where that asks another one."""
        if self.is_exact or self.attack.keep != "first_success" or self.attack.seeks_nearest:
            return None  # the nearest of all steps is judged once, at the end

        def confirm(samples: np.ndarray, iterates: torch.Tensor) -> np.ndarray:
            rows = torch.as_tensor(samples, device=work.x.device)
            outputs = self.oracle.logits(iterates, tuple(part[rows] for part in work.extra))
            y = None if work.y is None else work.y[rows]
            logits = self.oracle.judge.readable(outputs, y)
            prediction, labels = logits.argmax(1), work.labels[rows]
            aims = work.targets is not None and work.ranking is None
            hits = prediction == work.targets[rows] if aims else prediction != labels  # type: ignore[index]
            confirmed = (hits & ~logits.isnan().any(1)).cpu().numpy()
            denied = self.cost.denied + int((~confirmed).sum())
            self.cost = self.cost._replace(denied=denied)
            return confirmed

        return confirm

    def _attack_again(
        self, work: Work, first_step: int, pending: np.ndarray, ledger: Ledger
    ) -> None:
        """By the user's own model: what overflowed in half precision, and for `final_pass` all that
        survived."""
        survived = ledger.step[pending] < 0
        if not self.execution.final_pass:
            survived &= ledger.faults[pending] & _OVERFLOWED != 0
        ledger.faults[pending] &= ~_OVERFLOWED  # of the search, not of the user's model
        again = pending[survived]
        if len(again) == 0:
            return
        began = time.perf_counter()
        before = self.oracle.forwards + self.oracle.backwards
        ledger.forget(again)
        with self.oracle.by_own_model():
            self._run(work, first_step, again, ledger)
        self.cost = self.cost._replace(
            final_attacked=self.cost.final_attacked + len(again),
            final_broken=self.cost.final_broken + int((ledger.step[again] >= 0).sum()),
            final_passes=self.cost.final_passes
            + (self.oracle.forwards + self.oracle.backwards - before),
            final_seconds=self.cost.final_seconds + time.perf_counter() - began,
        )

    def _plan(self, work: Work, first_step: int, size: int) -> Plan:
        def make() -> SlotAlgorithm:
            return self.attack.algorithm(
                self.oracle, targets=targets, first_step=first_step, room=size
            )

        targets = 0 if work.ranking is None else work.ranking.shape[1]
        threat = self.attack.threat
        changeable = isinstance(threat.eps, torch.Tensor) or has_elements(threat)
        changeable |= not self.oracle.judge.loss.is_named  # what it closes over
        if self.prepared.graphs is None or changeable:
            return Plan(make())
        key: Hashable = (
            self.attack,
            targets,
            first_step,
            size,
            self.oracle.search is None,
            work.x.shape[1:],
            work.x.dtype,
            work.x.stride()[1:],
            work.targets is None,
            None if work.reference is None else work.reference.shape[1],
            self.oracle.inset,
            None if work.region is None else work.region.step_size is None,
            tuple((rows.shape[1:], rows.dtype) for rows in work.extra),
        )
        plan = self.prepared.plans.of(key, make)
        plan.algorithm.oracle = self.oracle
        return plan
