"""state_path of fastadv.compat.autoattack: interrupted anywhere, a run ends with the same bits."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from toy_models import mixed_problem

from fastadv.compat.autoattack import AutoAttack
from fastadv.compat.autoattack.state import EvaluationState

ATTACKS = ["square", "apgd-ce", "fab", "apgd-t"]


class Fragile(torch.nn.Module):
    """A model that fails at the call after `is_armed` is set."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.is_armed = False
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_armed:
            raise ConnectionError("preempted")
        self.calls += 1
        return self.model(x)


class Fuse(list):
    """A log that arms the model at the line that starts with `at`."""

    def __init__(self, model: Fragile, at: str | None) -> None:
        super().__init__()
        self.model, self.at = model, at

    def log(self, line: str) -> None:
        self.append(line)
        if self.at is not None and line.startswith(self.at):
            self.model.is_armed = True


def adversary_of(model: Fragile, *, at: str | None = None, attacks=ATTACKS, **more) -> AutoAttack:
    given = {"eps": 0.06, "seed": 0, "device": "cpu", "version": "custom", **more}
    made = AutoAttack(model, attacks_to_run=list(attacks), **given)
    made.square.n_queries, made.apgd.n_iter, made.apgd.n_restarts = 8, 2, 1
    made.fab.n_iter, made.fab.n_restarts = 1, 2
    made.apgd_targeted.n_iter, made.apgd_targeted.n_target_classes = 5, 3
    made.logger = Fuse(model, at)
    return made


@pytest.fixture
def problem():
    return mixed_problem(48, (1, 8, 8), seed=1)


@pytest.fixture
def model(problem) -> Fragile:
    return Fragile(problem.model)


LINES = ["initial accuracy", *(f"robust accuracy after {name.upper()}" for name in ATTACKS[:-1])]


@pytest.mark.parametrize("done", range(4))
def test_resuming_after_an_interruption_returns_every_adversarial_example(
    problem, model, tmp_path, done
):
    path = tmp_path / "state"
    whole = adversary_of(model).run_standard_evaluation(problem.x, problem.y, return_labels=True)
    with pytest.raises(ConnectionError):
        adversary_of(model, at=LINES[done]).run_standard_evaluation(
            problem.x, problem.y, state_path=path
        )
    model.is_armed = False
    adversary = adversary_of(model)
    resumed = adversary.run_standard_evaluation(
        problem.x, problem.y, bs=11, return_labels=True, state_path=path
    )
    assert torch.equal(resumed[0], whole[0]) and torch.equal(resumed[1], whole[1])
    log = adversary.logger
    assert log[0] == f"Restored state from {path}"
    assert log[1] == f"using custom version including {', '.join(ATTACKS[done:])}."
    if done:
        assert log[2] == f"{', '.join(ATTACKS[:done])} was/were already run."
    assert "initial clean accuracy: 87.50%" in log
    assert sum(" - 1/1 - " in line for line in log) == len(ATTACKS) - done
    state = EvaluationState.from_disk(path)
    assert state.robust_accuracy == float((whole[1] == problem.y).double().mean())
    assert state.clean_accuracy == 42 / 48
    assert state.run_attacks == state.attacks_to_run == set(ATTACKS)


def test_a_finished_state_returns_its_results_for_a_look_at_the_clean_samples(
    problem, model, tmp_path
):
    path = str(tmp_path / "state")
    first = adversary_of(model).run_standard_evaluation(problem.x, problem.y, state_path=path)
    model.calls = 0
    again = adversary_of(model).run_standard_evaluation(problem.x, problem.y, state_path=path)
    assert torch.equal(first, again)
    assert model.calls <= 10


def test_the_times_seed_is_kept_with_the_state(problem, model, tmp_path):
    path = tmp_path / "state"
    first = adversary_of(model, seed=None)
    first.get_seed = lambda: 123.9
    whole = first.run_standard_evaluation(problem.x, problem.y)
    interrupted = adversary_of(model, at=LINES[1], seed=None)
    interrupted.get_seed = first.get_seed
    with pytest.raises(ConnectionError):
        interrupted.run_standard_evaluation(problem.x, problem.y, state_path=path)
    model.is_armed = False
    resumed = adversary_of(model, seed=None)
    assert torch.equal(
        resumed.run_standard_evaluation(problem.x, problem.y, state_path=path), whole
    )
    assert EvaluationState.from_disk(path).seed == 123


def test_a_state_of_something_else_is_refused(problem, model, tmp_path):
    path = tmp_path / "state"
    x, y = problem.x, problem.y
    adversary_of(model, attacks=["square"]).run_standard_evaluation(x, y, state_path=path)
    before = path.read_bytes()

    def refused(what: str, adversary: AutoAttack, x=x, y=y) -> None:
        with pytest.raises(ValueError, match=f"belongs to another {what}"):
            adversary.run_standard_evaluation(x, y, state_path=path)

    refused("set of attacks", adversary_of(model, attacks=["apgd-ce"]))
    refused("eps", adversary_of(model, attacks=["square"], eps=0.05))
    refused("norm", adversary_of(model, attacks=["square"], norm="L2"))
    refused("seed", adversary_of(model, attacks=["square"], seed=1))
    refused("data", adversary_of(model, attacks=["square"]), x=x.flip(0))
    refused("data", adversary_of(model, attacks=["square"]), y=(y + 1) % 5)
    changed = adversary_of(model, attacks=["square"])
    changed.square.n_queries = 9
    refused("settings of the attacks", changed)
    other = Fragile(mixed_problem(1, (1, 8, 8), seed=2).model)
    refused("model", adversary_of(other, attacks=["square"]))
    assert path.read_bytes() == before


def test_damaged_and_foreign_files_are_refused(problem, model, tmp_path):
    path = tmp_path / "state"
    for content in (b"{}", b"", b"PK\x03\x04 half a file"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a state of fastadv.compat.autoattack"):
            adversary_of(model).run_standard_evaluation(problem.x, problem.y, state_path=path)
        assert path.read_bytes() == content


def test_loading_a_state_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": Evil()}, tmp_path / "state")
    with pytest.raises(ValueError, match="not a state"):
        EvaluationState.from_disk(tmp_path / "state")
    assert not (tmp_path / "ran").exists()


def test_states_have_the_authors_properties(tmp_path):
    state = EvaluationState({"square", "fab"}, tmp_path / "state")
    with pytest.raises(ValueError, match="robust_flags is not set"):
        _ = state.robust_accuracy
    state.robust_flags = torch.tensor([True, False, True, True])
    state.clean_accuracy = 0.75
    state.add_run_attack("fab")
    with pytest.raises(ValueError, match="constructor"):
        state.attacks_to_run = {"fab"}
    read = EvaluationState.from_disk(tmp_path / "state")
    assert read.robust_flags is not None and read.robust_flags.tolist() == [1, 0, 1, 1]
    assert (read.clean_accuracy, read.run_attacks) == (0.75, {"fab"})
    with pytest.warns(UserWarning, match="before all attacks have run"):
        assert read.robust_accuracy == 0.75


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import test_autoattack_state as tests
    from toy_models import mixed_problem

    problem = mixed_problem(48, (1, 8, 8), seed=1)
    model = tests.Fragile(problem.model)
    forward = model.model.forward

    def fatal(x):
        if model.is_armed:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(x)

    model.forward = fatal
    tests.adversary_of(model, at="robust accuracy after APGD-CE").run_standard_evaluation(
        problem.x, problem.y, bs=11, state_path=Path(sys.argv[1])
    )
"""


def test_kill_9_and_resume_gives_the_same_bits(problem, model, tmp_path):
    path = tmp_path / "state"
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
        ),
    }
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path)], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert EvaluationState.from_disk(path).run_attacks == {"square", "apgd-ce"}
    resumed = adversary_of(model).run_standard_evaluation(problem.x, problem.y, state_path=path)
    assert torch.equal(resumed, adversary_of(model).run_standard_evaluation(problem.x, problem.y))
