"""A valid result row to vary."""

import dataclasses

import pytest

from benchmarks.harness import schema


@pytest.fixture
def environment() -> schema.Environment:
    return schema.Environment(
        device="test-cpu",
        threads=2,
        load=0.5,
        versions={"fastadv": "0.1.0", "torch": "2.13.0"},
        commit="abc1234",
        date="2026-01-01T00:00:00+00:00",
        command="python -m benchmarks.attacks",
    )


@pytest.fixture
def row(environment: schema.Environment) -> schema.Row:
    return schema.Row(
        suite="attacks",
        case="PGD-10 digits_net",
        provider="fastadv, last iterate",
        shape=(8, 1, 8, 8),
        dtype="float32",
        n=8,
        rounds=5,
        q20=1.0,
        q50=2.0,
        q80=3.0,
        unit="ms",
        timed="the call",
        not_timed="import",
        baseline="textbook",
        ratio=1.5,
        equality=schema.Equality(1e-9, 1e-6, "max |x_adv - reference|", "textbook"),
        environment=environment,
        robustness=schema.Robustness(
            attack="pgd",
            norm="linf",
            eps=0.1,
            step_size=0.025,
            steps=10,
            restarts=1,
            seed=0,
            n=8,
            model="digits_net",
            data="digits",
            clean_accuracy=1.0,
            robust_accuracy=0.5,
        ),
    )


@pytest.fixture
def with_changes(row: schema.Row):
    """The row with fields replaced, as `dataclasses.replace` does."""
    return lambda **changes: dataclasses.replace(row, **changes)
