"""How an attack is run: nothing here changes which adversarial example is found."""

from dataclasses import dataclass

_BATCHING = ("continuous", "plain")


@dataclass(frozen=True)
class Execution:
    """How to run an attack; results do not depend on it (contract C2).

    batching: "continuous" refills the slot of a finished sample from a queue and shrinks the batch
    when the queue is empty; "plain" runs every sample through every step. batch_size: slots held at
    once, None for all samples. precision other than "fp32", channels_last, fold_batchnorm,
    cuda_graph=True and compile are not available yet and raise NotImplementedError.
    Example: `attack.run(model, x, y, execution=fastadv.Execution(batch_size=128))`.
    """

    precision: str = "fp32"
    channels_last: bool = False
    fold_batchnorm: bool = False
    cuda_graph: bool | str = "auto"
    compile: bool = False
    batching: str = "continuous"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batching not in _BATCHING:
            raise ValueError(f"batching must be one of {_BATCHING}; got {self.batching!r}")
        size = self.batch_size
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise ValueError(f"batch_size must be at least 1, an integer or None; got {size!r}")
        asked = {
            "precision": self.precision != "fp32",
            "channels_last": self.channels_last,
            "fold_batchnorm": self.fold_batchnorm,
            "cuda_graph": self.cuda_graph not in ("auto", False),
            "compile": self.compile,
        }
        for name, is_asked in asked.items():
            if is_asked:
                raise NotImplementedError(
                    f"Execution({name}={getattr(self, name)!r}) is not available yet; leave it out"
                )
