"""Ensembles: what each attack did, and interruptions inside a block that change no bit."""

import itertools
import json
import signal
import time
from dataclasses import replace

import ensemble_runs
import forked
import pytest
import torch
from ensemble_runs import BATCH, ensemble, problem, without_times
from torch import nn

import fastadv
from fastadv.evaluation import Status, evaluate, examples
from fastadv.evaluation.state import State

STAGES = 4
BLOCKS = 3  # 40 samples in blocks of 8 batches of 2


class Killed(BaseException):
    pass


def run(path=None, attack=None, model=None, **more):
    p = problem()
    attack = attack or ensemble()
    data = more.pop("data", (p.x, p.y))
    more = {"batch_size": BATCH, **more}
    return evaluate(model or p.model, data, attack, checkpoint=path, **more)


def columns(report) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in vars(report).items() if isinstance(v, torch.Tensor)}


@pytest.fixture(scope="module")
def whole():
    torch.set_num_threads(1)
    return run()


def test_stages_add_up_over_blocks_to_the_report(whole):
    p = problem()
    result = ensemble().run(p.model, p.x, p.y, sample_ids=torch.arange(40))
    assert torch.equal(whole.broken_by, result.broken_by)
    assert torch.equal(whole.success, result.success) and torch.equal(whole.step, result.step)
    # Linf distances are maxima, which no order of summation changes
    assert torch.equal(whole.distance, result.distance)
    for ours, theirs in zip(whole.stages, result.stages, strict=True):
        assert ours[:4] == theirs[:4]  # name, attack, attacked, broken
    assert sum(stage.broken > 0 for stage in whole.stages) >= 3  # or it could not fail
    assert [s.broken for s in whole.stages] == [
        int((whole.broken_by == index).sum()) for index in range(STAGES)
    ]
    assert whole.accuracies[-1] == whole.robust_accuracy
    first = (int(whole.clean_correct.sum()) - whole.stages[0].broken) / 40
    assert whole.accuracies[0] == first > whole.robust_accuracy
    assert torch.equal(whole.broken_by == -2, ~whole.clean_correct)
    assert whole.forwards == 40 + sum(stage.forwards for stage in whole.stages)
    assert whole.backwards == sum(stage.backwards for stage in whole.stages)


def test_plain_attacks_have_no_stages():
    report = run(attack=fastadv.bim(fastadv.Linf(0.06), steps=2))
    assert report.stages == () and report.broken_by is None and report.accuracies == ()
    assert json.loads(report.to_json())["stages"] == []
    assert "broken_by" not in json.loads(report.to_json())["samples"]


def killed_at(monkeypatch, path, save: int, *, after: bool = True) -> None:
    """Leave the checkpoint as it is right before or after its save number `save`, from 1."""
    count, original = 0, State.save

    def stop(self, where):
        nonlocal count
        count += 1
        if count == save and not after:
            raise Killed
        original(self, where)
        if count == save:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(State, "save", stop)
        with pytest.raises(Killed):
            run(path)


def test_killed_after_any_attack_of_any_block_and_resumed_equals_uninterrupted(
    whole, tmp_path, monkeypatch
):
    expected = without_times(whole.to_json())
    unfinished = 0
    for save in range(1, BLOCKS * (STAGES + 1) + 1):
        path = tmp_path / f"{save}.pt"
        killed_at(monkeypatch, path, save)
        saved = torch.load(path, weights_only=True)
        unfinished += len(saved["unfinished"])
        report = run(path)
        assert without_times(report.to_json()) == expected, save
        assert columns(report) == columns(whole), save
    assert unfinished == BLOCKS * STAGES


def test_killed_again_and_again_equals_uninterrupted(whole, tmp_path, monkeypatch):
    """Every run gets one save further, so no distance is ever that of an image at hand."""
    path = tmp_path / "c.pt"
    for _ in range(BLOCKS * (STAGES + 1)):
        killed_at(monkeypatch, path, 1)
    assert without_times(run(path).to_json()) == without_times(whole.to_json())


def test_examples_of_every_attack_survive_an_interruption(tmp_path, monkeypatch):
    """Also the images of samples that fell before it, which a checkpoint does not hold else."""
    monkeypatch.setattr(examples, "MOST", 40)
    monkeypatch.setitem(globals(), "BATCH", 5)  # one block
    expected = run()
    shown = [one.index for one in expected.examples]
    assert shown == (expected.broken_by >= 0).nonzero()[:, 0].tolist()
    assert len(set(expected.broken_by[shown].tolist())) >= 3
    killed_at(monkeypatch, tmp_path / "c.pt", 3)
    assert run(tmp_path / "c.pt").examples == expected.examples


def test_a_save_that_never_happened_leaves_the_one_before(whole, tmp_path, monkeypatch):
    killed_at(monkeypatch, tmp_path / "c.pt", 8, after=False)
    assert without_times(run(tmp_path / "c.pt").to_json()) == without_times(whole.to_json())


def test_an_unfinished_block_goes_on_where_it_was(tmp_path, monkeypatch):
    """Of four attacks three are done: only the last is run, after the look at clean samples."""
    killed_at(monkeypatch, tmp_path / "c.pt", 3)
    running: list[Status] = []
    run(tmp_path / "c.pt", progress=running.append)
    attacks = [name for name, _ in itertools.groupby(s.attack for s in running)]
    assert attacks[:3] == ["SQUARE", "", "APGD-CE"]
    assert next(s for s in running if not s.attack).done == 16 and running[0].done == 0
    assert all(status.expected == 40 for status in running)


def test_an_unfinished_block_holds_no_images(tmp_path, monkeypatch):
    killed_at(monkeypatch, tmp_path / "c.pt", 3)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)["unfinished"][0]
    assert saved["columns"].pop("x_searched").numel() == 0  # of version="fast" alone
    assert all(column.shape == (16,) for column in saved["columns"].values())
    assert bool((saved["columns"]["distance"] > 0).any())


def test_an_unfinished_block_keeps_its_size_at_another_batch_size(whole, tmp_path, monkeypatch):
    killed_at(monkeypatch, tmp_path / "c.pt", 7)
    report = run(tmp_path / "c.pt", batch_size=5)
    assert columns(report) == columns(whole)


def test_an_unfinished_block_of_other_data_or_another_model_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    killed_at(monkeypatch, path, 2)
    p = problem()
    changed = p.x.clone()
    changed[3] = changed[3].flip(-1)
    with pytest.raises(ValueError, match="belongs to other data: sample 3 was another"):
        run(path, data=(changed, p.y))
    path = tmp_path / "function.pt"

    def function(sign):
        return lambda x: sign * p.model(x)

    def stop(self, where):
        original(self, where)
        raise Killed

    original = State.save
    with monkeypatch.context() as patched:
        patched.setattr(State, "save", stop)
        with pytest.raises(Killed):
            run(path, model=function(1))
    with pytest.raises(ValueError, match="classifies its first clean"):
        run(path, model=function(-1))


def test_warnings_of_an_interrupted_block_are_counted_once(tmp_path, monkeypatch):
    """Two classes: the margin loss in place of DLR, said by a stage; and probabilities, said by
    the look at the clean samples, which a resumed block has again."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = problem().model

        def forward(self, x):
            return self.net(x)[:, :2].softmax(1)

    p = problem()
    with torch.no_grad():
        y = Pair()(p.x).argmax(1)
    arguments = dict(model=Pair(), data=(p.x, y))
    with pytest.warns(fastadv.AttackWarning):
        expected = run(**arguments)
    assert {"few_classes", "probabilities"} <= set(expected.warnings)
    path, original = tmp_path / "c.pt", State.save

    def stop(self, where):
        original(self, where)
        raise Killed

    for _ in range(BLOCKS * (STAGES + 1)):
        with monkeypatch.context() as patched:
            patched.setattr(State, "save", stop)
            with pytest.raises(Killed):
                run(path, **arguments)
    with pytest.warns(fastadv.AttackWarning):
        resumed = run(path, **arguments)
    assert without_times(resumed.to_json()) == without_times(expected.to_json())


def test_kill_nine_inside_a_block_and_resume_equals_uninterrupted(whole, tmp_path):
    path, out = tmp_path / "progress.pt", tmp_path / "report.json"

    call = (ensemble_runs.__file__, path, out)
    for at_least in (1, 25):  # samples that are done when the process is killed, about
        with forked.Forked(*call, 0.02) as process:
            deadline = time.monotonic() + 100
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
                if path.exists():
                    saved = torch.load(path, weights_only=True)
                    count = len(saved["columns"]["success"])
                    begun = [len(part["ids"]) for part in saved["unfinished"]]
                    if begun and count + sum(begun) >= at_least:
                        break
            process.kill()
        assert process.returncode == -signal.SIGKILL and not out.exists()
    forked.run(*call, 0)
    expected = without_times(whole.to_json())
    read = without_times(out.read_text())
    for part in (read, expected):  # of the module around it, which slows it down
        del part["model"]
    assert read == expected


def test_a_seed_by_the_time_cannot_be_resumed(tmp_path):
    with pytest.raises(ValueError, match="checkpoint needs a seed: with seed=None"):
        run(tmp_path / "c.pt", attack=ensemble(seed=None))


def test_a_seed_of_none_runs_without_a_checkpoint():
    assert run(attack=ensemble(seed=None)).seed is None


def test_what_decides_who_is_attacked_next_survives_an_interruption(tmp_path, monkeypatch):
    """ "fast" gives its last attacks only to samples that Square came closer to breaking."""
    p = problem(16)
    fast = fastadv.autoattack(fastadv.Linf(0.03), "fast")
    attacks = [
        replace(attack, queries=60) if attack.constructor == "square" else attack
        for attack in fast.attacks
    ]
    arguments = dict(data=(p.x, p.y), attack=replace(fast, attacks=tuple(attacks)))
    expected = run(**arguments)
    original, path = State.save, tmp_path / "c.pt"

    def stop(self, where):
        original(self, where)
        raise Killed

    for _ in range(STAGES - 1):
        with monkeypatch.context() as patched:
            patched.setattr(State, "save", stop)
            with pytest.raises(Killed):
                run(path, **arguments)
    running: list[Status] = []
    resumed = run(path, progress=running.append, **arguments)
    assert without_times(resumed.to_json()) == without_times(expected.to_json())
    assert running[0].attack == "APGD-T"
    assert running[0].attacked == expected.stages[3].attacked < expected.stages[2].attacked
