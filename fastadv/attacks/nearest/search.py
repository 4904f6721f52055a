"""What the settings of every search for the nearest adversarial point have in common."""

from typing import Literal, Protocol, get_args

from fastadv import losses
from fastadv.attacks.attack import Attack, norms_of
from fastadv.attacks.call.settings import check_settings
from fastadv.elements import common_bounds

Keep = Literal["first_success", "best"]


class NearestAttack(Attack, Protocol):
    """An attack of `NearestSlots`."""

    restarts: int = 1

    def check(self, *counts: str) -> None:
        """What all of them check; counts: settings that are numbers of something."""
        check_settings(self, *counts, keep=get_args(Keep))
        norms = norms_of(self.constructor)
        if self.threat.norm not in norms:
            raise ValueError(
                f"{self.constructor} takes threat models in {' and '.join(norms)} only; got "
                f"{self.threat!r}"
            )

    @property
    def stops_early(self) -> bool:
        """Whether a sample is finished with its first point within the radius."""
        return self.keep == "first_success" and not self.seeks_nearest

    @property
    def width(self) -> float:
        """Of the bounds; 1 without any. The authors' step sizes and radii are for [0, 1]."""
        bounds = common_bounds(self.threat)
        return 1.0 if bounds is None else bounds[1] - bounds[0]

    @property
    def reported_loss(self) -> losses.Loss:
        return losses.UNCAPPED_MARGIN

    @property
    def needs_radius(self) -> bool:
        return False

    @property
    def notes_nearest(self) -> bool:
        return True

    @property
    def attacks_wrong(self) -> bool:
        return False

    @property
    def discards_outside(self) -> bool:
        return self.keep != "best"

    @property
    def resolves_finely(self) -> bool:
        return True  # as FAB's, their points lie beside the decision boundary
