"""One call of an attack: check, look at the clean samples, attack, verify on the user's model."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from fastadv import diagnostics
from fastadv.attacks.call import capacity, inputs, radius
from fastadv.attacks.call.accounting import cost_of
from fastadv.attacks.call.given import Given
from fastadv.attacks.call.preparation import prepared
from fastadv.attacks.call.result import AttackResult, Cost
from fastadv.attacks.call.search import Search
from fastadv.attacks.call.settings import Settings
from fastadv.attacks.call.squashing import warn_of_outputs
from fastadv.attacks.call.targets import Target
from fastadv.attacks.call.verdict import (
    Fallen,
    loss_at,
    margin_of,
    warn_of_faults,
)
from fastadv.containment import contains
from fastadv.elements import common_bounds
from fastadv.engine.ledger import Ledger
from fastadv.engine.state import SlotState
from fastadv.engine.work import Work
from fastadv.execution import Execution
from fastadv.isolation import Model, isolated
from fastadv.kernels import slots as columns
from fastadv.objective import Objective
from fastadv.ops import layout
from fastadv.oracle.gradient import Oracle


class Call:
    """The arguments of one call, checked; `result`, `fallen` or `last_iterates` carries it out.

    clean_logits: (n, C) of the model at x, where they are known already. ranks: (n, C) the classes
    that an attack aims at by itself come in this order, highest first; None: by those logits. cost:
    of what was carried out.
    """

    def __init__(
        self,
        attack: Settings,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None,
        *,
        target: Target | None,
        sample_ids: torch.Tensor | None,
        x_init: torch.Tensor | None,
        execution: Execution,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
        clean_logits: torch.Tensor | None = None,
        ranks: torch.Tensor | None = None,
    ) -> None:
        inputs.check_model(model)
        self.began: float = time.perf_counter()
        self.cost: Cost = Cost()
        self.attack = attack
        self.model = model
        if attack.resolves_finely:
            execution = replace(execution, precision="fp32")
        self.execution = execution
        self.known_logits = clean_logits
        self.given: Given = Given(
            attack,
            x,
            y,
            target=target,
            sample_ids=sample_ids,
            x_init=x_init,
            extra=extra,
            mask=mask,
            channels_last=execution.channels_last,
            ranks=ranks,
        )
        inputs.check_device(model, self.given.x)
        if clean_logits is None:  # else asked before, of the whole ensemble
            radius.question(attack.threat, self.given.x)
        if attack.keep == "authors" and not execution.is_exact:
            raise ValueError(
                "keep='authors' returns the iterates of the authors' own code and takes the model "
                f"as it is; got {execution!r}. Use keep='first_success'"
            )
        bounds = common_bounds(attack.threat)
        self.oracle: Oracle = Oracle(
            model,
            self.given.loss,
            targeted=self.given.aims,
            passes=attack.passes,
            bounds=bounds,
            inset=inputs.check_inset(execution, bounds),
        )
        self.oracle.judge.largest_label = self.given.largest_class
        if execution.batch_size is None and clean_logits is None:
            self.oracle.is_sizing = capacity.may_pay(attack, model, self.given.x)

    @property
    def batch_size(self) -> int:
        """Slots, and rows of a look: until the first pass has been made a guess."""
        return self.execution.batch_size or capacity.held(self.oracle, self.given.x)

    def result(self) -> AttackResult:
        with self._isolated():
            if len(self.given.x) == 0:
                return AttackResult.empty(self.given.x)
            outputs = self._clean_outputs()
            logits = self._readable(outputs)
            work = self.given.work(logits)
            search = self._search(outputs)
            if self.attack.keep == "last":
                iterates, faults = search.last_iterates(work)
                ledger = Ledger(iterates, settles=False)
                ledger.faults |= faults
                clean_prediction = None if logits is None else logits.argmax(1)
                wrong = np.zeros(len(work), dtype=bool)
            else:
                assert logits is not None, "every attack that can stop looks at the clean samples"
                clean_prediction = logits.argmax(1)
                ledger, wrong = self._found(search, work, clean_prediction)
            result = self._verified(work, ledger, wrong, clean_prediction, outputs)
            self._account(search)
            clean_score = None if outputs is None else self._scores(outputs, work)
            return replace(
                result, cost=self.cost, clean_score=clean_score, execution=self.execution
            )

    def clean_logits(self) -> torch.Tensor:
        """(n, C) logits of the clean samples, which are checked; of a named loss."""
        with self._isolated():
            logits = self._clean_outputs()
        assert logits is not None, "only attacks that stop at a success have this"
        return logits

    def fallen(self) -> Fallen:
        """Only the samples that fell, verified; nothing is evaluated for the others. Of a named
        loss."""
        with self._isolated():
            logits = self._clean_outputs()
            assert logits is not None, "only attacks that stop at a success have this"
            work = self.given.work(logits)
            search = self._search(logits)
            ledger, _ = self._found(search, work, logits.argmax(1))
            self._check_labels(ledger.faults)
            found = self._device(np.flatnonzero(ledger.step >= 0))
            x_adv = self.given.as_given(layout.gather_rows(ledger.x_adv, found))
            work = work.take(found)
            at_x_adv = self._batched_outputs(x_adv, work.extra) if len(found) else logits[:0]
            margin, prediction = margin_of(at_x_adv, work.labels)
            success = (prediction != work.labels) & ~at_x_adv.isnan().any(1)
            success &= contains(self.attack.threat, x_adv, work.x, work.eps, work.region)
            diagnostics.warn("unconfirmed", int((~success).sum()), len(logits))
            rows = success.nonzero()[:, 0]
            step = torch.as_tensor(ledger.step, device=found.device)[found[rows]].long()
            self._account(search)
            return Fallen(
                found[rows],
                layout.gather_rows(x_adv, rows),
                prediction[rows],
                margin[rows],
                step,
                ledger.faults,
                ledger.loss,
                ledger.x_adv,
            )

    def last_iterates(self) -> torch.Tensor:
        """The iterates after the last step: no early stop, no verification."""
        with self._isolated():
            if len(self.given.x) == 0:
                return self.given.x.clone(memory_format=torch.preserve_format)
            outputs = self._clean_outputs()
            work = self.given.work(self._readable(outputs))
            iterates, faults = self._search(outputs).last_iterates(work)
            self._report(faults)
            return self.given.as_given(iterates)

    def outputs_at(self, x: torch.Tensor) -> torch.Tensor:
        """What the model returns for other points of the samples, (n, ...) as x."""
        with self._isolated():
            return self._batched_outputs(x, self.given.extra)

    def slopes_at(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """((n, ...) gradients of the attack's loss at other points of the samples, (n,) its values
        there); clean_logits are known."""
        work = self.given.work(self.known_logits)
        state = SlotState.empty(work, len(work), keep_best=False, momentum=False, model_input=False)
        state.load(None, work, x, best=x)
        with self._isolated():
            return self.oracle.gradient(state, None), state.loss

    def _search(self, outputs: torch.Tensor | None) -> Search:
        """The search, with what it needs made ready; outputs: the model's at x, where known."""
        first = self.given.x[: self.batch_size]
        if outputs is None and not self.execution.is_exact:
            outputs = self._batched_outputs(first, self.given.extra)
        outputs = None if outputs is None else outputs[: len(first)]
        extra = tuple(rows[: len(first)] for rows in self.given.extra)
        ready = prepared(self.model, self.execution, first, outputs, extra)
        return Search(self.attack, self.oracle, self.execution, self.batch_size, ready)

    def _found(
        self, search: Search, work: Work, clean_prediction: torch.Tensor
    ) -> tuple[Ledger, np.ndarray]:
        """(what the attack found, which samples the model gets wrong as they are)."""
        wrong = self.given.hits(clean_prediction, work).cpu().numpy()
        pending = np.flatnonzero((~wrong | self.attack.attacks_wrong) & ~self.given.aimless)
        return search.found(work, pending, self.given.groups(work)), wrong

    def _account(self, search: Search) -> None:
        self.cost = cost_of(
            self.oracle,
            search,
            self.given.x,
            rows=self.batch_size,
            began=self.began,
            timed=self.execution.timed,
            extra=self.given.extra,
        )

    def _device(self, indices: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(indices, device=self.given.x.device)

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        with (
            isolated(self.model, device=self.given.x.device, seed=self.attack.seed) as is_left,
            inputs.explained_dtype(self.model, self.given.x),
        ):
            self.oracle.is_left_in_training = is_left
            yield

    def _clean_outputs(self) -> torch.Tensor | None:
        """What the model returns for the clean samples, where anything depends on it; of a named
        loss (n, C) logits."""
        if self.known_logits is not None:
            return self.known_logits
        if not self.given.needs_logits:
            return None
        outputs = self._batched_outputs(self.given.x, self.given.extra)
        self.oracle.first = None  # looked at here
        bad = warn_of_outputs(outputs, are_logits=self.oracle.judge.of_logits)
        if bad:
            raise ValueError(
                f"the model returns NaN logits for {bad} of {len(outputs)} clean samples"
            )
        return outputs

    @property
    def _objective(self) -> Objective | None:
        return self.given.loss.objective

    def _readable(self, outputs: torch.Tensor | None) -> torch.Tensor | None:
        """Logits that say what the outputs at the clean samples are worth."""
        return None if outputs is None else self.oracle.judge.readable(outputs, self.given.y)

    def _scores(self, outputs: torch.Tensor, work: Work) -> torch.Tensor | None:
        if self._objective is None or work.y is None:
            return None
        return self._objective.scores(outputs, work.y)

    def _batched_outputs(self, x: torch.Tensor, extra: Sequence[torch.Tensor]) -> torch.Tensor:
        # a copy, a batch at a time: a model that writes to its input must not reach the caller's
        outputs, done = [], 0
        while done < len(x) or not outputs:
            rows = slice(done, done + self.batch_size)
            chunk, *more = (part[rows].clone() for part in (x, *extra))
            outputs.append(self.oracle.logits(chunk, tuple(more)))
            done += len(chunk)
        return torch.cat(outputs)

    def _verified(
        self,
        work: Work,
        ledger: Ledger,
        wrong: np.ndarray,
        clean_prediction: torch.Tensor | None,
        clean_outputs: torch.Tensor | None,
    ) -> AttackResult:
        """Success as the user's own model sees it, on exactly the tensor that is returned."""
        x_adv = self.given.as_given(ledger.x_adv)
        if self.attack.discards_outside:
            outside = ~contains(self.attack.threat, x_adv, work.x, work.eps, work.region)
            x_adv[outside] = work.x[outside]
        outputs = self._batched_outputs(x_adv, work.extra)
        unreadable = self.oracle.judge.readable(outputs, work.y).isnan().any(1)
        ledger.faults[unreadable.cpu().numpy()] |= columns.FAULT_NAN_LOGITS
        loss, prediction, hits = self._judged(outputs, work)
        success = hits & ~unreadable
        success &= contains(self.attack.threat, x_adv, work.x, work.eps, work.region)
        distance = self.attack.threat.distance(x_adv, work.x)
        if self.attack.seeks_nearest and clean_outputs is not None:
            distance[~success] = torch.inf
            x_adv[~success], outputs[~success] = work.x[~success], clean_outputs[~success]
            loss, prediction, _ = self._judged(outputs, work)
        step = torch.as_tensor(ledger.step, device=x_adv.device).long()
        keep = self.attack.keep
        if keep == "first_success" or (self.execution.is_exact and keep != "best"):
            # else the search is not asked to be right on its way, or returns another iterate
            unconfirmed = (step >= 0) & ~success
            diagnostics.warn("unconfirmed", int(unconfirmed.sum()), len(step))
        step = torch.where(step < 0, self.attack.steps, step)
        step[torch.as_tensor(wrong, device=x_adv.device)] = 0
        self._report(ledger.faults)
        return AttackResult(
            x_adv=x_adv,
            success=success,
            loss=loss,
            distance=distance,
            step=torch.where(success, step, -1),
            prediction=prediction,
            clean_prediction=clean_prediction,
            forwards=self.oracle.forwards,
            backwards=self.oracle.backwards,
            inset=self.oracle.inset,
            score=self._scores(outputs, work),
            best_at=self._best_at(ledger, hits, wrong) if self.attack.notes_nearest else None,
        )

    def _best_at(self, ledger: Ledger, hits: torch.Tensor, wrong: np.ndarray) -> torch.Tensor:
        """(n,) the passes that had been made when x_adv was found: one at x, at each point before
        forwards and backwards, and those forwards at x_adv itself."""
        forwards = 1 + (self.oracle.search is not None) + (self.oracle.inset > 0)
        a_step = forwards + self.attack.backwards_a_step(self.oracle.judge.classes)
        passes = 1 + ledger.nearest_step.astype(np.int64) * a_step + forwards
        passes = np.where(hits.cpu().numpy(), passes, -1)
        passes[wrong] = 0
        return torch.as_tensor(passes, device=hits.device)

    def _judged(
        self, outputs: torch.Tensor, work: Work
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(loss, prediction, whether that is wanted) of what the model returns."""
        kind, targeted = self.attack.reported_loss, self.given.target is not None
        loss, prediction = loss_at(self.oracle, outputs, work, kind, targeted=targeted)
        return loss, prediction, self.given.hits(prediction, work)

    def _report(self, faults: np.ndarray) -> None:
        """Raise for labels out of range, warn of what weakened the attack."""
        self._check_labels(faults)
        warn_of_faults(faults)
        was_found = self.execution.inset is None and self.oracle.inset > 0
        diagnostics.warn("clamped_input", len(faults) if was_found else 0, len(faults))

    def _check_labels(self, faults: np.ndarray) -> None:
        is_bad = faults & columns.FAULT_BAD_LABEL != 0
        if is_bad.any():
            raise ValueError(
                f"y or target lies outside [0, {self.oracle.judge.classes}), the classes of the "
                f"model, for {int(is_bad.sum())} of {len(faults)} samples"
            )
