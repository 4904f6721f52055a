"""What a verdict is called where it is printed: nothing weak is called good."""

import pytest

from fastadv.training import Check
from fastadv.training.verdict import in_short, in_words


def check(verdict: str = "good", *, clean: float = 0.9, pgd: float = 0.6, is_warm: bool = True):
    return Check(
        batch=40,
        clean=clean,
        single_step=0.7,
        pgd=pgd,
        samples=200,
        one_class=0.2,
        train_loss=1.0,
        craft_loss=1.1,
        classes=10,
        is_warm=is_warm,
        verdict=verdict,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (check(), "good"),
        (check(clean=0.11, pgd=0.004), "no collapse, but not robust yet"),
        (check(clean=0.125, pgd=0.083), "no collapse, but not robust yet"),  # chance
        (check(clean=0.0, pgd=0.0), "no collapse, but not robust yet"),
        (check(pgd=0.004, is_warm=False), "no verdict while eps grows"),
        (check("suspect"), "suspect"),
        (check("collapse"), "collapse"),
    ],
)
def test_only_what_is_robust_is_called_good(seen, words):
    assert in_short(seen) == words


def test_a_bad_verdict_has_its_figures():
    said = in_words(check("weak", pgd=0.628), [], threat="fastadv.Linf(0.3)", floor=0.8)
    assert said == (
        "weak: 62.8 % under PGD-10 is below the floor of 80 % (5 restarts, 200 held-out samples, "
        "after batch 40, fastadv.Linf(0.3))."
    )
    assert in_words(check(), [], threat="", floor=0.8) == "good"
    collapsed = in_words(check("collapse", pgd=0.0), [check()], threat="fastadv.Linf(0.3)")
    assert "0.0% under PGD-10" in collapsed
