"""What a run says while it goes on: lines, a bar, curves for TensorBoard."""

import io
import sys
import types

import pytest
from small_runs import small_data, small_recipe

from fastadv.recipes import progress, run_log, train

pytestmark = pytest.mark.usefixtures("unwarned")


def test_progress_is_one_line_an_epoch(tmp_path, capsys):
    train(small_recipe(), small_data(), tmp_path / "a")
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("digits by fastadv.training.FastAT(fastadv.Linf(0.18)")
    assert "96 samples of digits (24 held out), 3 epochs of 3 batches, seed 0" in header
    assert len(lines) == 3 and lines[2].startswith("epoch 3/3  ")
    for part in (" s  lr 0  eps 0.18  loss ", " %  PGD-10 ", " %  (n 24, eps 0.18)  sentinel: "):
        assert part in lines[2]
    train(small_recipe(), small_data(), tmp_path / "b", progress=False)
    assert capsys.readouterr().out == ""


def test_the_bar_counts_batches_and_redraws_twice_a_second_at_most(monkeypatch):
    rich_progress = pytest.importorskip("rich.progress", reason="needs rich")
    made = []

    class Spy(rich_progress.Progress):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            made.append(self)

    monkeypatch.setattr(rich_progress, "Progress", Spy)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.Progress(wanted=True).bar("epoch 1/3", done=4, total=10) as advance:
        advance()
        (bar,) = made
        assert (bar.tasks[0].completed, bar.tasks[0].total) == (5, 10)
        assert bar.live.refresh_per_second == 2
    with progress.Progress(wanted=False).bar("", done=0, total=1) as advance:
        advance()
    assert len(made) == 1


def test_tensorboard_gets_the_curves_and_forgets_what_is_done_again(tmp_path, monkeypatch):
    written, opened = [], []

    class Writer:
        def __init__(self, folder, purge_step):
            opened.append((folder, purge_step))

        def add_scalar(self, *scalar):
            written.append(scalar)

        def flush(self):
            pass

        close = flush

    module = types.SimpleNamespace(SummaryWriter=Writer)
    data = small_data()  # read before: it imports too
    monkeypatch.setattr(run_log.importlib, "import_module", lambda name: module)
    result = train(small_recipe(), data, tmp_path, progress=False, tensorboard=True)
    assert opened == [(str(tmp_path / "tensorboard"), 1)]
    robust = [(value, epoch) for name, value, epoch in written if name == "robust"]
    assert robust == [(row["robust"], row["epoch"]) for row in result.epochs]
    assert {name for name, *_ in written} == {"loss", "learning_rate", "eps", "clean", "robust"}


def test_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    data = small_data()  # read before: it imports too
    monkeypatch.setattr(run_log.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match='pip install "tensorboard>=2.16"'):
        train(small_recipe(), data, tmp_path, progress=False, tensorboard=True)
