"""What a call is given: the samples and what is asked of them, checked, and made into work."""

from collections.abc import Sequence

import numpy as np
import torch

from fastadv import diagnostics, losses
from fastadv.attacks.call import inputs, targets
from fastadv.attacks.call.settings import Settings, check_takes_regions
from fastadv.attacks.call.targets import Target
from fastadv.containment import contains
from fastadv.elements import of_elements
from fastadv.engine.work import Work, spread
from fastadv.ops import layout
from fastadv.region import Region, checked_mask, region_of
from fastadv.threat_model import check_fits


class Given:
    """Samples, labels and targets of one call; no model is asked.

    loss, step_size: of the attack, resolved once. x: (n, ...), in channels_last if asked for and
    images; labels: (n,), None for the model's own predictions; y: (n, ...) of an objective, as
    given, else None; largest_class: in that y, where the objective knows it, else -1; extra:
    (n, ...) each. aimless: (n,) on the host, whose target is their label; known once there is work.
    Arguments as in `fastadv.Attack.run`, which raises what this raises.
    """

    def __init__(
        self,
        attack: Settings,
        x: torch.Tensor,
        y: torch.Tensor | None,
        *,
        target: Target | None,
        sample_ids: torch.Tensor | None,
        x_init: torch.Tensor | None,
        extra: Sequence[torch.Tensor],
        mask: torch.Tensor | None,
        channels_last: bool,
        ranks: torch.Tensor | None = None,
    ) -> None:
        targets.check_rule(target)
        self.ranks = ranks
        self.loss = attack.resolved_loss
        objective = self.loss.objective
        self.attack = attack
        self.target = target
        self.aimless: np.ndarray | np.bool_ = np.False_
        # a clone made outside inference mode is an ordinary tensor; detached, x keeps its graph
        with torch.inference_mode(False):
            x = inputs.check_inside(x, attack.threat)
            self.x: torch.Tensor = x.clone() if x.is_inference() else x.detach()
            self.labels: torch.Tensor | None = None
            self.y: torch.Tensor | None = None
            self.largest_class = -1
            if objective is not None:
                self.y = inputs.check_asked(y, x, objective).clone()
                self.largest_class = objective.largest_class(self.y)
            elif y is not None:
                self.labels = inputs.check_labels(y, x, name="y").clone()
            self.extra: tuple[torch.Tensor, ...] = inputs.check_extra(extra, x)
            self.x_init = inputs.check_start(x_init, x)
            self.mask: torch.Tensor | None = checked_mask(mask, x)
            self.sample_ids: torch.Tensor = inputs.check_sample_ids(sample_ids, x)
            self.format: torch.memory_format | None = None
            if channels_last:
                self.x, self.x_init, self.format = inputs.in_channels_last(self.x, self.x_init)
        if x_init is not None and attack.restarts > 1:
            raise ValueError(
                f"restarts={attack.restarts} from one x_init are all the same: use restarts=1"
            )
        if target is not None and objective is not None:
            raise ValueError(
                f"{objective!r} decides what a success is and takes no target=: write the target "
                "into its loss and success"
            )
        if target is not None and attack.most_targets:
            raise ValueError(
                f"{attack.constructor} aims at the likeliest classes itself and takes no target=: "
                "use the attack without _t"
            )
        self.step_size = attack.effective_step_size
        self.region: Region | None = region_of(
            attack.threat, self.x, mask=self.mask, step_size=self.step_size
        )
        check_fits(attack.threat, self.x)
        if self.region is not None:
            check_takes_regions(attack, "step sizes of elements" if mask is None else "mask=")
        if self.mask is not None and self.x_init is not None:
            inputs.check_start_outside(self.x_init, self.x, self.mask)

    @property
    def aims(self) -> bool:
        """Whether the loss is that of a target."""
        return self.target is not None or self.attack.most_targets > 0

    @property
    def needs_logits(self) -> bool:
        """Whether anything depends on the model's logits at x."""
        rule = isinstance(self.target, str)
        if self.attack.keep != "last" or self.loss.needs_reference or rule:
            return True
        if self.labels is not None or self.y is not None:
            return False
        return self.target is None or self.loss.needs_labels_when_targeted

    def work(self, logits: torch.Tensor | None) -> Work:
        """logits: (n, C) of the model at x, where anything depends on them."""
        x, attack = self.x, self.attack
        if self.labels is not None:
            labels = self.labels
        elif self.y is not None or logits is None:
            # of an objective, or targeted without labels: only y or the target is ever looked at
            labels = torch.zeros_like(self.sample_ids)
        else:
            labels = logits.argmax(1)
        chosen = None
        if logits is not None and self.y is None:
            inputs.check_range(labels, logits.shape[1], name="y")
        if self.target is not None:
            chosen = targets.choose(
                self.target, logits, labels, seed=attack.seed, sample_ids=self.sample_ids, x=x
            )
            if logits is not None:
                inputs.check_range(chosen, logits.shape[1], name="target")
            known = self.labels is not None or logits is not None
            if known and not isinstance(self.target, str):
                self.aimless = (chosen == labels).cpu().numpy()
                diagnostics.warn("target_is_label", int(self.aimless.sum()), len(x))
        reference = None
        if self.loss.needs_reference and logits is not None:
            reference = logits.to(layout.compute_dtype(logits)).softmax(1)
        ranking = None
        if attack.most_targets and logits is not None:
            losses.check_classes(self.loss, logits.shape[1], targeted=True)
            ranks = logits if self.ranks is None else self.ranks
            ranking = targets.rank(ranks, labels, attack.most_targets)
            chosen = ranking[:, 0].contiguous()
        given = (("eps", attack.threat.eps), ("step_size", self.step_size))
        # of elements, they are in the region
        eps, step_size = (spread(n, 1.0 if of_elements(v) else v, x) for n, v in given)
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
            y=self.y,
            extra=self.extra,
            region=self.region,
        )

    def groups(self, work: Work) -> list[tuple[int, np.ndarray]]:
        """(first step that may count as a success, samples): not the start iterate where it may
        lie outside ball or bounds."""
        if self.x_init is not None:
            inside = contains(self.attack.threat, self.x_init, work.x, work.eps, work.region)
            inside = inside.cpu().numpy()
            return [(0, np.flatnonzero(inside)), (1, np.flatnonzero(~inside))]
        return [(0 if self.attack.starts_inside else 1, np.arange(len(work)))]

    def hits(self, prediction: torch.Tensor, work: Work) -> torch.Tensor:
        """(n,) bool: the predictions that are a success."""
        if self.target is not None:
            aimed = torch.as_tensor(~self.aimless, device=prediction.device)
            return (prediction == work.targets) & aimed
        return prediction != work.labels

    def as_given(self, x_adv: torch.Tensor) -> torch.Tensor:
        """In the memory format of the caller's x."""
        return x_adv if self.format is None else x_adv.contiguous(memory_format=self.format)
