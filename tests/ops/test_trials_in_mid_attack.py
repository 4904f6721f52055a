"""The first calls that attacks make, each as the one on which a kernel is tried."""

import numpy as np
import pytest
import torch
from test_implementations import OPS

from fastadv.ops import agreement, backend, registry, trial
from fastadv.selfcheck.recording import calls_of_attacks, copied


@pytest.fixture(scope="module")
def calls():
    return calls_of_attacks((3, 8, 8))


@pytest.mark.parametrize("name", OPS)
def test_the_first_rows_of_a_call_are_a_call(name, calls):
    """What is shared is named as such: nothing else of the other samples decides their results."""
    one = registry.implementations()[name]
    for arguments in calls[name]:
        shared, names = one.trial.shared, one.trial.parameters
        samples = agreement.rows_of(arguments, shared)
        everything, few = (
            agreement.results(one.reference, names, agreement.copies(arguments, shared, rows))
            for rows in (samples, samples - 1)
        )
        for whole, part in zip(everything, few, strict=True):
            rows = len(part.value)
            if whole.name in names and names.index(whole.name) in shared:
                assert part.value is whole.value
            else:
                assert rows * samples == len(whole.value) * (samples - 1), whole.name
            torch.testing.assert_close(
                part.value, whole.value[:rows], rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.skipif(not backend.triton_is_installed(), reason="needs triton, on Linux only")
@pytest.mark.skipif(not backend.interpreting(), reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("name", OPS)
def test_every_kernel_passes_on_what_attacks_give_it(name, calls, monkeypatch):
    monkeypatch.setattr(trial, "ROWS", 3)
    judge = registry.implementations()[name].trial
    monkeypatch.setattr(judge, "passed", set())
    for arguments in calls[name]:
        judge.passed.clear()
        before = copied(arguments)
        # a GPU divides by zero without a word
        with torch.no_grad(), np.errstate(divide="ignore", invalid="ignore"):
            assert judge.trusts(arguments, insists=True)
        assert judge.passed == {torch.device("cpu")}
        for got, expected in zip(arguments, before, strict=True):
            if isinstance(got, torch.Tensor):
                torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
