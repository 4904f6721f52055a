import pytest
import torch

from benchmarks.harness import harness, schema

_CASE = harness.Case(
    suite="attacks",
    name="sum",
    shape=(2,),
    dtype="float32",
    n=2,
    timed="the call",
    not_timed="nothing",
    baseline="a",
)


def _equal(name: str, output: torch.Tensor) -> schema.Equality:
    error = harness.max_difference(output, torch.zeros(2))
    return schema.Equality(error, 0.0, "max difference", "zeros")


def test_providers_are_timed_in_turn_with_a_rotating_start():
    order = []
    providers = {name: (lambda name=name: order.append(name)) for name in "abc"}
    harness.time_interleaved(providers, rounds=3, warmup=1, clock=harness.cpu_clock)
    assert "".join(order) == "abcbcacababc"


def test_warm_up_is_not_timed():
    seconds = iter(range(100))
    times = harness.time_interleaved(
        {"a": lambda: None, "b": lambda: None}, rounds=2, warmup=2, clock=lambda run: next(seconds)
    )
    assert times == {"a": [4, 7], "b": [5, 6]}


def test_a_wrong_result_raises_before_any_time_is_taken(environment):
    calls = []
    runs = {
        "a": lambda: calls.append("a") or torch.zeros(2),
        "b": lambda: calls.append("b") or torch.ones(2),
    }
    with pytest.raises(ValueError, match="a wrong result has no time"):
        harness.measure(_CASE, runs, _equal, environment, harness.Timing(3))
    assert calls == ["a", "b"]


def test_a_nan_result_raises(environment):
    runs = {"a": lambda: torch.tensor([0.0, float("nan")])}
    with pytest.raises(ValueError, match="a wrong result has no time"):
        harness.measure(_CASE, runs, _equal, environment, harness.Timing(3))


def test_a_missing_baseline_raises(environment):
    with pytest.raises(ValueError, match="baseline 'a' must be one of"):
        harness.measure(
            _CASE, {"b": lambda: torch.zeros(2)}, _equal, environment, harness.Timing(1)
        )


def test_the_ratio_is_the_median_of_ratios_within_a_round(environment, monkeypatch):
    times = {"a": [1.0, 2.0, 9.0], "b": [2.0, 1.0, 3.0]}
    monkeypatch.setattr(harness, "time_interleaved", lambda *args, **options: times)
    runs = {"a": lambda: torch.zeros(2), "b": lambda: torch.zeros(2)}
    rows = harness.measure(_CASE, runs, _equal, environment, harness.Timing(3))
    assert [row.ratio for row in rows] == [1.0, 2.0]
    assert [row.q50 for row in rows] == [2000.0, 2000.0]


def test_bytes_become_a_share_of_the_copy_bandwidth(environment, monkeypatch):
    monkeypatch.setattr(harness, "time_interleaved", lambda *args, **options: {"a": [2.0]})
    case = harness.Case(**(vars(_CASE) | {"bytes_moved": 10**9}))
    runs = {"a": lambda: torch.zeros(2)}
    (row,) = harness.measure(case, runs, _equal, environment, harness.Timing(1), copy_gb_s=2.0)
    assert row.bandwidth == schema.Bandwidth(10**9, 2.0, 25.0)


def test_quantiles_are_ordered_for_any_number_of_rounds():
    for count in range(1, 12):
        q20, q50, q80 = harness.quantiles([float(i) for i in range(count)])
        assert q20 <= q50 <= q80
