"""fastadv.compat.robustbench: values, files, and what is left to RobustBench itself."""

import inspect
import json
import sys
import types

import numpy as np
import pytest
import torch
from toy_models import mixed_problem

import fastadv
from fastadv.compat import robustbench
from fastadv.compat.autoattack import AutoAttack
from fastadv.compat.robustbench import eval as evaluation
from fastadv.compat.robustbench import records
from fastadv.data import load_digits, to_unit_interval


class FewSteps(torch.nn.Module):
    """A model that fails at its call number `until`, so that a run can be interrupted."""

    def __init__(self, model: torch.nn.Module, until: int | None = None) -> None:
        super().__init__()
        self.model, self.calls, self.until = model, 0, until
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.until:
            raise ConnectionError("preempted")
        return self.model(x)


class Quick(AutoAttack):
    """AutoAttack's attacks on small budgets: samples survive it, and cost little."""

    def set_version(self, version: str = "standard") -> None:
        super().set_version(version)
        for attack in (self.apgd, self.apgd_targeted, self.fab):
            attack.n_iter = 5
        self.square.n_queries = 20


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(evaluation, "AutoAttack", Quick)


@pytest.fixture
def problem():
    problem = mixed_problem(12, (1, 6, 6), wrong_every=4)
    problem.model.eval()
    return problem


EPS = 0.02  # some samples survive, some do not


def test_the_pair_is_clean_and_autoattack_accuracy(problem, quick, capsys):
    x, y = problem.x[:5], problem.y[:5]
    clean, robust = robustbench.benchmark(problem.model, dataset=(x, y), eps=EPS, batch_size=9)
    attacks = Quick(problem.model, eps=EPS, verbose=False).attacks(0)
    ensemble = fastadv.autoattack(fastadv.Linf(EPS), "custom", attacks=attacks, keep="authors")
    survived = ~ensemble.run(problem.model, x, y).success
    assert (clean, robust) == (0.6, int(survived.sum()) / 5)
    assert 0 < robust < 0.6 and type(clean) is type(robust) is float
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Clean accuracy: 60.00%"
    assert lines[2] == "using standard version including apgd-ce, apgd-t, fab-t, square."
    assert lines[-2:] == [
        f"robust accuracy: {robust:.2%}",
        f"Adversarial accuracy: {robust:.2%}",
    ]


def test_n_examples_are_the_first(problem, quick):
    pair = robustbench.benchmark(
        problem.model, n_examples=4, dataset=(problem.x, problem.y), eps=1e-6
    )
    assert pair == (0.75, 0.75)  # of each four samples the first is labelled wrong


def test_a_resumed_run_returns_what_the_whole_run_returns(problem, tmp_path, quick):
    path, data = tmp_path / "state", (problem.x, problem.y)
    whole = robustbench.benchmark(problem.model, dataset=data, eps=EPS)
    counted = FewSteps(problem.model)
    robustbench.benchmark(counted, dataset=data, eps=EPS)
    with pytest.raises(ConnectionError):
        robustbench.benchmark(
            FewSteps(problem.model, until=counted.calls // 2),
            dataset=data,
            eps=EPS,
            aa_state_path=path,
        )
    resumed = FewSteps(problem.model)
    assert robustbench.benchmark(resumed, dataset=data, eps=EPS, aa_state_path=path) == whole
    assert resumed.calls < counted.calls


def test_cifar10_is_read_from_its_files(tmp_path, capsys, quick):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5, 9], dtype=np.uint8)
    records_ = np.concatenate([labels[:, None], pixels], 1)
    records_.tofile(tmp_path / "test_batch.bin")
    seen = []

    def model(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return torch.zeros(len(x), 10)

    pair = robustbench.benchmark(
        model, n_examples=4, dataset="cifar10", threat_model="L2", eps=0.5, data_dir=str(tmp_path)
    )
    assert torch.equal(seen[0], to_unit_interval(torch.from_numpy(pixels[:4]).view(4, 3, 32, 32)))
    assert pair == (0.0, 0.0)  # class 0 everywhere, and no sample has it


def test_digits_need_no_files(quick):
    x, y = load_digits("test")

    def model(z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((len(z),), 3), 10).float() + 0 * z.sum()

    clean, robust = robustbench.benchmark(model, n_examples=30, dataset="digits", eps=1e-3)
    assert clean == robust == int((y[:30] == 3).sum()) / 30 > 0


def test_what_cannot_be_is_said_before_the_work(problem):
    data = (problem.x, problem.y)
    with pytest.raises(NotImplementedError, match="one model on one device"):
        robustbench.benchmark([problem.model], dataset=data, eps=EPS)
    with pytest.raises(NotImplementedError, match="one model on one device"):
        robustbench.benchmark(problem.model, dataset=data, eps=EPS, device=["cpu", "cpu"])
    with pytest.raises(ValueError, match="eps must be given"):
        robustbench.benchmark(problem.model, dataset=data)
    with pytest.raises(ValueError, match="threat_model must be one of"):
        robustbench.benchmark(problem.model, dataset=data, threat_model="L0", eps=EPS)
    with pytest.raises(ValueError, match="give model_name, and a dataset by name"):
        robustbench.benchmark(problem.model, dataset="digits", eps=EPS, to_disk=True)
    with pytest.raises(TypeError, match="a name or"):
        robustbench.benchmark(problem.model, dataset=3, eps=EPS)


def test_what_needs_robustbench_says_how_to_install_it(problem, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    how = "pip install git.https://github.com/RobustBench/robustbench"
    with pytest.raises(ImportError, match=f"dataset='imagenet' needs RobustBench.*{how}"):
        robustbench.benchmark(problem.model, dataset="imagenet", eps=EPS)
    with pytest.raises(ImportError, match=f"threat_model='corruptions' needs RobustBench.*{how}"):
        robustbench.benchmark(problem.model, threat_model="corruptions")
    with pytest.raises(FileNotFoundError, match=f"test_batch.*downloading cifar10 needs.*{how}"):
        robustbench.benchmark(problem.model, eps=EPS, data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="idx3-ubyte"):
        robustbench.benchmark(problem.model, dataset="mnist", eps=EPS, data_dir=str(tmp_path))


def test_other_data_and_corruptions_are_left_to_robustbench(problem, monkeypatch, quick):
    asked = []

    def module(name: str, **content) -> None:
        stand_in = types.ModuleType(name)
        vars(stand_in).update(content)
        monkeypatch.setitem(sys.modules, name, stand_in)

    module("robustbench")
    module("robustbench.model_zoo")
    module("robustbench.model_zoo.enums", BenchmarkDataset=str.upper, ThreatModel=str.lower)
    module(
        "robustbench.data",
        get_preprocessing=lambda *given: asked.append(given) or "prepare",
        load_clean_dataset=lambda *given: asked.append(given) or (problem.x, problem.y),
    )
    module("robustbench.eval", benchmark=lambda *given: asked.append(given) or (0.5, 0.25))
    pair = robustbench.benchmark(
        problem.model,
        12,
        "imagenet",
        "Linf",
        model_name="M",
        data_dir="d",
        eps=1e-6,
        preprocessing="Crop288",
    )
    assert pair == (0.75, 0.75)
    assert asked == [("IMAGENET", "linf", "M", "Crop288"), ("IMAGENET", 12, "d", "prepare")]
    asked.clear()
    given = (problem.model, 7, "cifar10", "corruptions", True, "M", "d", "c", "cpu", 8)
    assert robustbench.benchmark(*given) == (0.5, 0.25)
    assert asked == [(*given, None, None, None, None)]


def test_records_are_written_when_asked_and_keep_other_fields(tmp_path, monkeypatch, quick):
    monkeypatch.chdir(tmp_path)

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((len(x),), 3), 10).float() + 0 * x.sum()

    def run(**more) -> None:
        robustbench.benchmark(model, n_examples=30, dataset="digits", eps=1e-3, **more)

    run()
    assert list(tmp_path.iterdir()) == []
    run(to_disk=True, model_name="Constant")
    path = tmp_path / "model_info" / "digits" / "Linf" / "Constant.json"
    record = json.loads(path.read_text())
    share = str(round(int((load_digits("test")[1][:30] == 3).sum()) / 30 * 100, 2))
    written = {"dataset": "digits", "eps": 1e-3, "clean_acc": share, "autoattack_acc": share}
    assert record == {**dict.fromkeys(records._FIELDS), **written}
    path.write_text(json.dumps({"venue": "here", "clean_acc": "0"}))
    run(to_disk=True, model_name="Constant")
    assert json.loads(path.read_text()) == {"venue": "here", **written}


def test_clean_accuracy_counts_in_eval_mode_and_leaves_the_mode(problem):
    model = torch.nn.Sequential(torch.nn.Dropout(0.999), problem.model).train()
    accuracy = robustbench.clean_accuracy(model, problem.x, problem.y, batch_size=5)
    assert accuracy == 0.75 and model.training
    with pytest.raises(ValueError, match="at least one sample"):
        robustbench.clean_accuracy(model, problem.x[:0], problem.y[:0])


def test_signatures_and_records_are_robustbenchs():
    theirs = pytest.importorskip("robustbench", reason="needs robustbench", exc_type=ImportError)
    del theirs
    from robustbench import eval as their_eval
    from robustbench import utils

    for mine, other in (
        (robustbench.benchmark, their_eval.benchmark),
        (robustbench.clean_accuracy, utils.clean_accuracy),
    ):
        names = list(inspect.signature(mine).parameters)
        assert names == list(inspect.signature(other).parameters)
    fields = utils.ModelInfo.__dataclass_fields__
    assert list(records._FIELDS) == list(fields)


@pytest.mark.parametrize("classes", [1, None])
def test_outputs_that_have_no_accuracy_are_refused_before_one_is_printed(classes, capsys):
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    model = torch.nn.Conv2d(1, 3, 1)
    if classes:
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))
    with pytest.raises(ValueError, match=r"must return \(B, C\) logits"):
        robustbench.benchmark(model.eval(), dataset=(x, y), threat_model="Linf", eps=0.1)
    assert "accuracy" not in capsys.readouterr().out
