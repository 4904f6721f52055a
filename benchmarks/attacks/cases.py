"""What attacks are compared on: settings, networks and samples of each case."""

from dataclasses import dataclass, replace

from benchmarks.harness.peers import Settings

# a gradient that is zero but for rounding may take either sign, and the sample then goes its way
_OUTLIERS = 32  # one sample in so many; measured: 5 of 256 (mnist_net, PGD-40)
# of random weights and 40 steps in L2 the kinks of ReLUs amplify last bits, of torchattacks and
# foolbox too: one run had 1 of 32 and 4 of 64 beyond 1e-4
_OUTLIERS_L2_RANDOM = 8


@dataclass(frozen=True)
class AttackCase:
    """A comparison: what is asked, on which problem (a key of `problems`), of how many samples.

    one_in: one sample in so many may be further off than the tolerance.
    """

    name: str
    problem: str
    n: int
    settings: Settings
    most_rounds: int = 99
    one_in: int = _OUTLIERS


def _case(problem: str, n: int, name: str, kind: str, eps: float, **more) -> AttackCase:
    settings = Settings(
        kind=kind, eps=eps, **({"norm": "linf", "steps": 1, "step_size": eps} | more)
    )
    return AttackCase(f"{name} {problem}", problem, n, settings, 3 if settings.restarts > 1 else 99)


def _batchnorm(n: int) -> list[AttackCase]:
    eps, level = 8 / 255, 1 / 255
    net = "BatchNormNet"
    return [
        _case(net, n, "FGSM", "fgsm", eps),
        _case(net, n, "PGD-10", "pgd", eps, steps=10, step_size=2 * level),
        _case(net, n, "PGD-40", "pgd", eps, steps=40, step_size=level),
        replace(
            _case(net, n, "PGD-L2-40", "pgd", 1.0, norm="l2", steps=40, step_size=0.1),
            one_in=_OUTLIERS_L2_RANDOM,
        ),
        _case(net, n, "MI-FGSM-10", "mifgsm", eps, steps=10, step_size=0.8 * level),
    ]


# n are powers of two: torchattacks averages its loss, and 1/n then rounds no gradient
CASES = [
    _case("digits_net", 256, "FGSM", "fgsm", 0.15),
    _case("digits_net", 256, "PGD-10", "pgd", 0.15, steps=10, step_size=0.04),
    _case("digits_net", 256, "PGD-40", "pgd", 0.15, steps=40, step_size=0.015),
    _case("digits_net", 256, "PGD-L2-40", "pgd", 0.75, norm="l2", steps=40, step_size=0.075),
    _case("digits_net", 256, "MI-FGSM-10", "mifgsm", 0.15, steps=10, step_size=0.015),
    _case("digits_net", 64, "PGD-50-10", "pgd", 0.15, steps=50, step_size=0.04, restarts=10),
    _case("mnist_net", 128, "FGSM", "fgsm", 0.15),
    _case("mnist_net", 128, "PGD-10", "pgd", 0.15, steps=10, step_size=0.04),
    _case("mnist_net", 128, "PGD-40", "pgd", 0.15, steps=40, step_size=0.015),
    _case("mnist_net", 128, "PGD-L2-40", "pgd", 1.5, norm="l2", steps=40, step_size=0.15),
    _case("mnist_net", 128, "MI-FGSM-10", "mifgsm", 0.15, steps=10, step_size=0.015),
    *_batchnorm(32),
    *_batchnorm(64),
]
