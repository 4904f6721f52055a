"""The tasks: a model, its samples, the attack with its objective, and the rule in plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import fastadv
from benchmarks.tasks import networks
from fastadv import objectives
from fastadv.data import load_digits
from fastadv.threat_model import ThreatModel

STEPS = 20
_EPOCHS = 40
_IGNORED = 255
_TRAITS = ((0, 2, 4, 6, 8), (5, 6, 7, 8, 9), (2, 3, 5, 7), (0, 6, 8, 9))  # even, large, prime, hole


@dataclass(frozen=True)
class Problem:
    """A model in eval mode, its test samples, and what each is to be."""

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True)
class Task:
    """name, network, measure: what the table says. attack: PGD with the task's objective or loss.
    failed: (output, y) to (B,) bool, what counts as a success, written out without fastadv. mask:
    where x may change, everywhere if None.
    """

    name: str
    network: str
    measure: str
    attack: fastadv.Attack
    problem: Callable[[], Problem]
    failed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    mask: torch.Tensor | None = None

    @property
    def eps(self) -> float:
        """In input units; of elements, as a share of their range, which must be the same in all."""
        eps, bounds = self.attack.threat.eps, self.attack.threat.bounds
        if not isinstance(eps, torch.Tensor) or bounds is None:
            return float(eps)
        low, high = (eps / (bounds[1] - bounds[0])).aminmax()
        assert high - low < 1e-6, "one share of all ranges"
        return round(float(high), 6)


def _pgd(threat: ThreatModel, loss: object = "ce") -> fastadv.Attack:
    return fastadv.pgd(threat, steps=STEPS, loss=loss)  # type: ignore[arg-type]


def _prepared(
    build: Callable[[], nn.Module],
    loss: networks.Loss,
    *,
    inputs: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    labels: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda x, digits: digits,
) -> Problem:
    """A network trained on what `inputs` and `labels` make of the digits, and the test samples."""
    x, digits = load_digits("train")
    model = networks.trained(build, inputs(x), labels(x, digits), loss, epochs=_EPOCHS)
    x, digits = load_digits("test")
    return Problem(model, inputs(x), labels(x, digits))


def _misclassified(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return output.argmax(1) != y


def _binary() -> Problem:
    return _prepared(
        lambda: networks.perceptron(64, 1),
        lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y),
        labels=lambda x, digits: (digits >= 5).float(),
    )


def _traits(x: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.isin(digits, torch.tensor(trait)) for trait in _TRAITS], 1)


def _multilabel() -> Problem:
    return _prepared(
        lambda: networks.perceptron(64, len(_TRAITS)),
        lambda z, y: F.binary_cross_entropy_with_logits(z, y.float()),
        labels=_traits,
    )


def _regression() -> Problem:
    return _prepared(
        lambda: networks.perceptron(64, 1),
        lambda f, y: F.mse_loss(f[:, 0], y),
        labels=lambda x, digits: digits.float(),
    )


def _pixel_labels(x: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """The digit on its ink; paper does not count."""
    return torch.where(x[:, 0] >= 0.5, digits[:, None, None], _IGNORED)


def _segmentation() -> Problem:
    return _prepared(
        lambda: networks.pixel_classes(10),
        lambda z, y: F.cross_entropy(z, y, ignore_index=_IGNORED),
        labels=_pixel_labels,
    )


def _few_pixels_right(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """At most half of the pixels that count."""
    right = ((output.argmax(1) == y) & (y != _IGNORED)).flatten(1).sum(1)
    return 2 * right <= (y != _IGNORED).flatten(1).sum(1)


def _sums(x: torch.Tensor) -> torch.Tensor:
    """Ink in each row, in percent, and in each column, in cells of 16: features of two units."""
    return torch.cat([100 * x[:, 0].mean(2), 16 * x[:, 0].sum(1)], 1)


def _tabular() -> Problem:
    return _prepared(lambda: networks.Scaled(_RANGES, 10), F.cross_entropy, inputs=_sums)


def _digits() -> Problem:
    return _prepared(lambda: networks.perceptron(64, 10), F.cross_entropy)


def _sequence() -> Problem:
    return _prepared(lambda: networks.Rows(8, 10), F.cross_entropy, inputs=lambda x: x[:, 0])


def _embeddings() -> Problem:
    """Levels of ink, 0 to 16, are the tokens; what is attacked are their embeddings."""
    whole = _prepared(
        lambda: networks.Tokens(17, 64, 10),
        F.cross_entropy,
        inputs=lambda x: (16 * x).long().flatten(1),
    )
    assert isinstance(whole.model, networks.Tokens)
    return Problem(whole.model.reader, whole.model.table(whole.x), whole.y)


_RANGES = torch.tensor([100.0] * 8 + [128.0] * 8)
_PATCH = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
_PATCH[..., 3:6, 3:6] = True
_TABULAR = fastadv.Linf(0.03 * _RANGES[None], bounds=(torch.zeros(1, 16), _RANGES[None]))
_REGRESSION = objectives.regression(tolerance=1.0)
_SEGMENTATION = objectives.segmentation(fraction=0.5, ignore_index=_IGNORED)

TASKS = (
    Task(
        "binary: is the digit 5 or more?",
        "perceptron, one logit",
        "right",
        _pgd(fastadv.Linf(0.1), objectives.binary()),
        _binary,
        lambda z, y: (z[:, 0] > 0).float() != y,
    ),
    Task(
        "multi-label: even, large, prime, has a hole",
        "perceptron, four logits",
        "labels right",
        _pgd(fastadv.Linf(0.1), objectives.multilabel()),
        _multilabel,
        lambda z, y: ((z > 0) != y).sum(1) > 0,
    ),
    Task(
        "regression: the digit as a number",
        "perceptron, one number",
        "mean error",
        _pgd(fastadv.Linf(0.1), _REGRESSION),
        _regression,
        lambda f, y: (f[:, 0] - y).abs() > 1.0,
    ),
    Task(
        "segmentation: which digit's ink, paper ignored",
        "four convolutions, (B, 10, 8, 8)",
        "pixels right",
        _pgd(fastadv.Linf(0.1), _SEGMENTATION),
        _segmentation,
        _few_pixels_right,
    ),
    Task(
        "tabular: ink of rows and columns, eps and bounds of each feature",
        "perceptron, 16 features of two units",
        "right",
        _pgd(_TABULAR),
        _tabular,
        _misclassified,
    ),
    Task(
        "sequence: the image, row by row",
        "LSTM, 32 wide",
        "right",
        _pgd(fastadv.Linf(0.1)),
        _sequence,
        _misclassified,
    ),
    Task(
        "embeddings: levels of ink as tokens",
        "perceptron on 64 x 4 embeddings",
        "right",
        _pgd(fastadv.L2(2.0, bounds=None), "margin"),
        _embeddings,
        _misclassified,
    ),
    Task(
        "mask: 3 x 3 of the 64 pixels may change",
        "perceptron",
        "right",
        _pgd(fastadv.Linf(1.0)),
        _digits,
        _misclassified,
        mask=_PATCH,
    ),
)
