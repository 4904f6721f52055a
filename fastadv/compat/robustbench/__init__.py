"""RobustBench's benchmark over fastadv's AutoAttack.

To move a script: `from fastadv.compat.robustbench import benchmark`. Arguments, prints, returned
pair and written files are RobustBench's. CIFAR-10, MNIST and digits need no RobustBench installed;
other data sets, downloads, preprocessing and corruptions are left to it. What differs, on purpose:

- The seed is 0 rather than the time: a run can be repeated.
- `aa_state_path` works: a run resumed returns what it would have returned uninterrupted.
- device=None means the model's own device, not the CPU. Models are evaluated in eval mode.
- `dataset` may also be (x, y), tensors of images in [0, 1] and labels.
- A missing `eps` or `model_name` is reported before the work, not after it.
"""

from fastadv.compat.robustbench.eval import benchmark, clean_accuracy

__all__ = ["benchmark", "clean_accuracy"]


def __dir__() -> list[str]:
    return sorted(__all__)
