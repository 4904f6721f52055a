"""What the sentinel calls a collapse."""

import dataclasses
import math

import pytest
from healthy_check import HEALTHY

from fastadv.training import Check
from fastadv.training.verdict import judge


def _verdicts(*changes: dict) -> list[str]:
    seen: list[Check] = []
    for change in changes:
        check = dataclasses.replace(HEALTHY, **change)
        seen.append(judge(check, seen, patience=2))
    return [check.verdict for check in seen]


def test_what_one_step_hides_is_a_share_of_what_pgd_takes():
    check = dataclasses.replace(HEALTHY, clean=0.9, single_step=0.8, pgd=0.5)
    assert check.hidden == pytest.approx(0.3 / 0.4)
    assert dataclasses.replace(HEALTHY, pgd=0.98).hidden == 0.0  # PGD takes nothing


def test_low_robustness_in_the_first_epochs_is_no_collapse():
    # MNIST at 0.3, a run that ends well: 0.5 to 2.5 epochs
    early = [(0.47, 0.27, 0.10), (0.93, 0.61, 0.11), (0.97, 0.74, 0.11), (0.97, 0.80, 0.26)]
    early += [(0.98, 0.86, 0.41)]
    rows = [dict(clean=c, single_step=s, pgd=p) for c, s, p in early]
    assert _verdicts(*rows) == ["good"] * 5


def test_a_collapse_from_the_first_batch_is_called_at_its_second_check():
    masked = dict(clean=0.97, single_step=0.96, pgd=0.0)
    assert _verdicts(masked, masked, masked) == ["suspect", "collapse", "collapse"]


def test_a_bad_moment_that_passes_is_only_suspect():
    moment = dict(clean=0.98, single_step=0.92, pgd=0.43)
    assert _verdicts({}, moment, {}) == ["good", "suspect", "good"]


def test_the_slow_form_is_called_while_clean_and_one_step_accuracy_rise():
    fading = dict(clean=0.986, single_step=0.96, pgd=0.87)
    worse = dict(clean=0.987, single_step=0.965, pgd=0.85)
    assert _verdicts({}, fading, worse) == ["good", "suspect", "collapse"]


def test_halved_robustness_is_bad_even_if_one_step_shows_it():
    assert _verdicts({}, dict(clean=0.9, single_step=0.5, pgd=0.4))[-1] == "suspect"


def test_nothing_collapses_while_eps_still_grows():
    masked = dict(single_step=0.97, pgd=0.0, is_warm=False)
    assert _verdicts(masked, masked) == ["good", "good"]


@pytest.mark.parametrize("sign", [dict(train_loss=math.log(10) + 0.01), dict(one_class=0.995)])
def test_a_constant_network_is_stuck_after_patience_checks(sign):
    assert _verdicts(sign, {}, sign, sign) == ["good", "good", "good", "stuck"]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_at_once(loss):
    assert _verdicts(dict(train_loss=loss)) == ["nan"]


def test_what_few_samples_show_is_not_called_hidden():
    few = dataclasses.replace(HEALTHY, clean=1.0, single_step=1.0, pgd=0.4, samples=10)
    assert few.hidden == 0.0 and dataclasses.replace(few, samples=1000).hidden == 1.0
