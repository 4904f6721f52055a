"""One call of an attack: check, look at the clean samples, attack, verify on the user's model."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from fastadv import diagnostics, losses
from fastadv.attacks.call import inputs, targets
from fastadv.attacks.call.accounting import cost_of
from fastadv.attacks.call.prepared import prepared
from fastadv.attacks.call.result import AttackResult, Cost
from fastadv.attacks.call.search import Search
from fastadv.attacks.call.settings import Settings
from fastadv.attacks.call.verdict import (
    Fallen,
    count_probabilities,
    loss_at,
    margin_of,
    warn_of_faults,
)
from fastadv.engine.ledger import Ledger
from fastadv.engine.work import Work, spread
from fastadv.execution import Execution
from fastadv.isolation import Model, isolated
from fastadv.kernels import slots as columns
from fastadv.ops import layout
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import check_fits, contains


class Call:
    """The arguments of one call, checked; `result`, `fallen` or `last_iterates` carries it out.

    clean_logits: (n, C) of the model at x, where they are known already. cost: of what was carried
    out.
    """

    def __init__(
        self,
        attack: Settings,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None,
        *,
        target: torch.Tensor | str | None,
        sample_ids: torch.Tensor | None,
        x_init: torch.Tensor | None,
        execution: Execution,
        clean_logits: torch.Tensor | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable; got {type(model).__name__}")
        targets.check_rule(target)
        self.began = time.perf_counter()
        self.cost = Cost()
        self.attack = attack
        self.model = model
        if attack.resolves_finely:
            execution = replace(execution, precision="fp32")
        self.execution = execution
        self.target = target
        self.known_logits = clean_logits
        # a clone made outside inference mode is an ordinary tensor; detached, x keeps its graph
        with torch.inference_mode(False):
            x = inputs.check_images(x, attack.threat.bounds)
            self.x = x.clone() if x.is_inference() else x.detach()
            self.y = None if y is None else inputs.check_labels(y, x, name="y").clone()
            self.x_init = inputs.check_start(x_init, x)
            self.sample_ids = inputs.check_sample_ids(sample_ids, x)
            self.given_format: torch.memory_format | None = None
            if execution.channels_last:
                self.x, self.x_init, self.given_format = inputs.in_channels_last(
                    self.x, self.x_init
                )
        inputs.check_device(model, self.x)
        if x_init is not None and attack.restarts > 1:
            raise ValueError(
                f"restarts={attack.restarts} from one x_init are all the same: use restarts=1"
            )
        if target is not None and attack.most_targets:
            raise ValueError(
                f"{attack.constructor} aims at the likeliest classes itself and takes no target=: "
                "use the attack without _t"
            )
        if attack.keep == "authors" and not execution.is_exact:
            raise ValueError(
                "keep='authors' returns the iterates of the authors' own code and takes the model "
                f"as it is; got {execution!r}. Use keep='first_success'"
            )
        check_fits(attack.threat, self.x)
        self.batch_size = execution.batch_size or max(1, len(x))
        aims = target is not None or attack.most_targets > 0
        self.oracle = Oracle(
            model,
            attack.resolved_loss,
            targeted=aims,
            passes=attack.passes,
            bounds=attack.threat.bounds,
            inset=inputs.check_inset(execution, attack.threat.bounds),
        )

    def result(self) -> AttackResult:
        with self._isolated():
            if len(self.x) == 0:
                return AttackResult.empty(self.x)
            logits = self._clean_logits()
            work = self._work(logits)
            search = self._search(logits)
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
            result = self._verified(work, ledger, wrong, clean_prediction)
            self._account(search)
            return replace(result, cost=self.cost)

    def clean_logits(self) -> torch.Tensor:
        """(n, C) logits of the clean samples, which are checked."""
        with self._isolated():
            logits = self._clean_logits()
        assert logits is not None, "only attacks that stop at a success have this"
        return logits

    def fallen(self) -> Fallen:
        """Only the samples that fell, verified; nothing is evaluated for the others."""
        with self._isolated():
            logits = self._clean_logits()
            assert logits is not None, "only attacks that stop at a success have this"
            work = self._work(logits)
            search = self._search(logits)
            ledger, _ = self._found(search, work, logits.argmax(1))
            self._check_labels(ledger.faults)
            found = self._device(np.flatnonzero(ledger.step >= 0))
            x_adv = self._as_given(layout.gather_rows(ledger.x_adv, found))
            work = work.take(found)
            at_x_adv = self._batched_logits(x_adv) if len(found) else logits[:0]
            margin, prediction = margin_of(at_x_adv, work.labels)
            success = (prediction != work.labels) & ~at_x_adv.isnan().any(1)
            success &= contains(self.attack.threat, x_adv, work.x, work.eps)
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
            if len(self.x) == 0:
                return self.x.clone(memory_format=torch.preserve_format)
            logits = self._clean_logits()
            iterates, faults = self._search(logits).last_iterates(self._work(logits))
            self._report(faults)
            return self._as_given(iterates)

    def _search(self, logits: torch.Tensor | None) -> Search:
        """The search, with what it needs made ready; logits: the model's at x, where known."""
        first = self.x[: self.batch_size]
        if logits is None and not self.execution.is_exact:
            logits = self._batched_logits(first)
        logits = None if logits is None else logits[: len(first)]
        ready = prepared(self.model, self.execution, first, logits)
        return Search(self.attack, self.oracle, self.execution, self.batch_size, ready)

    def _found(
        self, search: Search, work: Work, clean_prediction: torch.Tensor
    ) -> tuple[Ledger, np.ndarray]:
        """(what the attack found, which samples the model gets wrong as they are)."""
        wrong = self._hits(clean_prediction, work).cpu().numpy()
        pending = np.flatnonzero(~wrong | self.attack.attacks_wrong)
        return search.found(work, pending, self._groups(work)), wrong

    def _account(self, search: Search) -> None:
        self.cost = cost_of(
            self.oracle,
            search,
            self.x,
            rows=self.batch_size,
            began=self.began,
            timed=self.execution.timed,
        )

    def _as_given(self, x_adv: torch.Tensor) -> torch.Tensor:
        """In the memory format of the caller's x."""
        return (
            x_adv
            if self.given_format is None
            else x_adv.contiguous(memory_format=self.given_format)
        )

    def _device(self, indices: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(indices, device=self.x.device)

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        with (
            isolated(self.model, device=self.x.device, seed=self.attack.seed),
            inputs.explained_dtype(self.model, self.x),
        ):
            yield

    def _clean_logits(self) -> torch.Tensor | None:
        """(n, C) logits of the clean samples, where anything depends on them."""
        if self.known_logits is not None:
            return self.known_logits
        attack, rule = self.attack, isinstance(self.target, str)
        needed = attack.keep != "last" or attack.resolved_loss.needs_reference or rule
        if not needed and self.y is not None:
            return None
        if not needed and self.target is not None:
            if not attack.resolved_loss.needs_labels_when_targeted:
                return None
        logits = self._batched_logits(self.x)
        bad = int(logits.isnan().any(1).sum())
        if bad:
            raise ValueError(
                f"the model returns NaN logits for {bad} of {len(logits)} clean samples"
            )
        diagnostics.warn("probabilities", count_probabilities(logits), len(logits))
        return logits

    def _batched_logits(self, x: torch.Tensor) -> torch.Tensor:
        # a copy, a batch at a time: a model that writes to its input must not reach the caller's
        chunks = (chunk.clone() for chunk in x.split(self.batch_size))
        return torch.cat([self.oracle.logits(chunk) for chunk in chunks])

    def _work(self, logits: torch.Tensor | None) -> Work:
        x, attack = self.x, self.attack
        if self.y is not None:
            labels = self.y
        else:
            # targeted without labels or logits: only the target is ever compared
            labels = torch.zeros_like(self.sample_ids) if logits is None else logits.argmax(1)
        chosen = None
        if logits is not None:
            inputs.check_range(labels, logits.shape[1], name="y")
        if self.target is not None:
            chosen = targets.choose(
                self.target, logits, labels, seed=attack.seed, sample_ids=self.sample_ids, x=x
            )
            if logits is not None:
                inputs.check_range(chosen, logits.shape[1], name="target")
        reference = None
        if attack.resolved_loss.needs_reference and logits is not None:
            reference = logits.to(layout.compute_dtype(logits)).softmax(1)
        ranking = None
        if attack.most_targets and logits is not None:
            losses.check_classes(attack.resolved_loss, logits.shape[1], targeted=True)
            ranking = targets.rank(logits, labels, attack.most_targets)
            chosen = ranking[:, 0].contiguous()
        eps = spread("eps", attack.threat.eps, x)
        step_size = spread("step_size", attack.effective_step_size, x)
        return Work(
            x=x,
            labels=labels,
            targets=chosen,
            reference=reference,
            ranking=ranking,
            sample_ids=self.sample_ids,
            eps=eps,
            step_size=step_size,
            x_init=self.x_init,
        )

    def _groups(self, work: Work) -> list[tuple[int, np.ndarray]]:
        """(first step that may count as a success, samples): not the start iterate where it may
        lie outside ball or bounds."""
        if self.x_init is not None:
            inside = contains(self.attack.threat, self.x_init, work.x, work.eps).cpu().numpy()
            return [(0, np.flatnonzero(inside)), (1, np.flatnonzero(~inside))]
        return [(0 if self.attack.starts_inside else 1, np.arange(len(work)))]

    def _hits(self, prediction: torch.Tensor, work: Work) -> torch.Tensor:
        if self.target is not None:
            return prediction == work.targets
        return prediction != work.labels

    def _verified(
        self, work: Work, ledger: Ledger, wrong: np.ndarray, clean_prediction: torch.Tensor | None
    ) -> AttackResult:
        """Success as the user's own model sees it, on exactly the tensor that is returned."""
        x_adv, loss_kind = self._as_given(ledger.x_adv), self.attack.reported_loss
        if self.attack.discards_outside:
            outside = ~contains(self.attack.threat, x_adv, work.x, work.eps)
            x_adv[outside] = work.x[outside]
        logits = self._batched_logits(x_adv)
        loss, prediction = loss_at(
            self.oracle, logits, work, loss_kind, targeted=self.target is not None
        )
        success = self._hits(prediction, work) & ~logits.isnan().any(1)
        success &= contains(self.attack.threat, x_adv, work.x, work.eps)
        ledger.faults[logits.isnan().any(1).cpu().numpy()] |= columns.FAULT_NAN_LOGITS
        step = torch.as_tensor(ledger.step, device=x_adv.device).long()
        if self.execution.is_exact or self.attack.keep == "first_success":
            # else the search is not asked to be right on its way
            unconfirmed = (step >= 0) & ~success
            diagnostics.warn("unconfirmed", int(unconfirmed.sum()), len(step))
        step = torch.where(step < 0, self.attack.steps, step)
        step[torch.as_tensor(wrong, device=x_adv.device)] = 0
        self._report(ledger.faults)
        return AttackResult(
            x_adv=x_adv,
            success=success,
            loss=loss,
            distance=self.attack.threat.distance(x_adv, work.x),
            step=torch.where(success, step, -1),
            prediction=prediction,
            clean_prediction=clean_prediction,
            forwards=self.oracle.forwards,
            backwards=self.oracle.backwards,
            inset=self.oracle.inset,
        )

    def _report(self, faults: np.ndarray) -> None:
        """Raise for labels out of range, warn of what weakened the attack."""
        self._check_labels(faults)
        warn_of_faults(faults)
        was_found = self.execution.inset is None and self.oracle.inset > 0
        diagnostics.warn("clamped_input", len(faults) if was_found else 0, len(faults))

    def _check_labels(self, faults: np.ndarray) -> None:
        bad = int((faults & columns.FAULT_BAD_LABEL != 0).sum())
        if bad:
            raise ValueError(
                f"y or target lies outside [0, {self.oracle.classes}), the classes of the model, "
                f"for {bad} of {len(faults)} samples"
            )
