"""What tests of the GPU sections share: rows with a time, and a session on a CPU."""

import dataclasses

import pytest

from benchmarks.gpu import session as gpu_session


@pytest.fixture
def made(with_changes):
    """A row with one time, faster by so much than its baseline."""

    def make(provider, time=1.0, **changes):
        return with_changes(provider=provider, q20=time, q50=time, q80=time, **changes)

    return make


@pytest.fixture
def session(environment, tmp_path):
    plan = gpu_session.Plan(
        section="ops",
        device="cpu",
        tiny=True,
        seconds=60,
        out=str(tmp_path),
        begun=str(tmp_path / "begun"),
        environment=dataclasses.asdict(environment),
    )
    return gpu_session.Session(plan)
