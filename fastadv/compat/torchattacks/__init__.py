"""The classes of torchattacks over fastadv's attacks.

To move a script: `import fastadv.compat.torchattacks as torchattacks`. Constructor arguments,
defaults, modes and return values are those of torchattacks 3.5.1: images and labels in, the last
iterate out, in [0, 1] or normalised. From the same start the iterates are the same to a rounding.
What differs, on purpose:

- Random starts have torchattacks' distributions but come from Philox, keyed by the object's `seed`
  and by how many images it has attacked before: two calls differ, a fresh object repeats them
  whatever the batch size, and the global generators are left alone.
- Training flags of every submodule, also of those frozen in eval mode, gradients and weights are as
  before the call, also after an exception. Attacks run in eval mode only.
- Images outside [0, 1], or not normalised although `set_normalization_used` says so, raise an
  error; labels=None means the model's own predictions.
- A zero gradient adds nothing to MIFGSM's momentum (torchattacks freezes the image for ever).
- `save` rounds to uint8 inside the eps-ball where torchattacks truncates, writes its file once and
  atomically, measures L2 in [0, 1] units and returns the seconds of the whole run.

Subclassing `Attack` with a `forward` of one's own is not supported.
"""

from fastadv.compat.torchattacks.attack import Attack
from fastadv.compat.torchattacks.attacks import (
    BIM,
    EOTPGD,
    FFGSM,
    FGSM,
    PGD,
    RFGSM,
    TPGD,
)
from fastadv.compat.torchattacks.directions import MIFGSM, PGDL2

__all__ = [
    "BIM",
    "EOTPGD",
    "FFGSM",
    "FGSM",
    "MIFGSM",
    "PGD",
    "PGDL2",
    "RFGSM",
    "TPGD",
    "Attack",
]


def __dir__() -> list[str]:
    return sorted(__all__)
