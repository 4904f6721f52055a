"""The package of AutoAttack's authors over fastadv's attacks.

To move a script: `from fastadv.compat.autoattack import AutoAttack`; to move a library that imports
`autoattack`, such as RobustBench: `sys.modules["autoattack"] = fastadv.compat.autoattack` before
it is imported. Signatures, attributes, versions, order of the attacks, bookkeeping, log lines and
what is returned are the authors'. What differs, on purpose:

- Random starts and proposals come from Philox, keyed by the seed and by the sample's position: the
  same for any `bs`, and the global generators are left alone. seed=None takes the time, as there.
- The log reports each attack as one batch, `- 1/1 -`, since batches are refilled as samples fall.
- `state_path` also holds the adversarial examples, so that a resumed run returns all of them. It
  is written atomically after every attack, with the seed, and refused for another run's arguments.
- Attributes count as they are when a run starts: a new `n_iter` also changes APGD's schedule, a new
  `eps` also its large radii (the authors compute both in the constructor), `x_init` is honoured.
  The attacks of one run must agree on eps and norm, and attack `AutoAttack.model`.
- The model is evaluated in eval mode and left as it was, and x must lie in [0, 1].
- More targets than there are wrong classes are as many as there are; in a run, too few classes for
  the DLR loss mean the margin loss, with a warning.
- A CUDA device that does not exist means the device of the model. All of x moves there at once.
- `run_standard_evaluation_individual` leaves `attacks_to_run` and `verbose` as they were.
- TensorFlow models, `SquareAttack(targeted=True)` and its loss "ce" raise NotImplementedError;
  `verbose` of a single attack prints nothing.
"""

from fastadv.compat.autoattack.autoattack import AutoAttack

__all__ = ["AutoAttack"]


def __dir__() -> list[str]:
    return sorted(__all__)
