"""`fastadv train`: options in, weights and a log out, mistakes in one line and exit code 2."""

import struct
import warnings

import pytest
import torch
from command_line import run as run_command

from fastadv import models
from fastadv.data import load_digits

pytest.importorskip("typer", reason="needs typer")
pytest.importorskip("rich", reason="needs rich")

from fastadv.cli import entry as cli  # noqa: E402
from fastadv.cli import training as train_command
from fastadv.cli import training_samples
from fastadv.recipes import METHODS, recipe, run, train, training_data  # noqa: E402
from fastadv.recipes.run_log import read_log  # noqa: E402
from fastadv.training import TrainingWarning  # noqa: E402


def command(*more: str, out="run", method="fast") -> list[str]:
    return ["train", "--method", method, "--out", str(out), *more]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def few_digits(monkeypatch):
    """120 digits instead of 1,437."""
    images, labels = training_data("digits")
    monkeypatch.setattr(
        training_samples, "training_data", lambda dataset, data: (images[:120], labels[:120])
    )
    return images[:120], labels[:120]


def test_it_trains_what_the_library_trains_with_the_same_options(folder, capsys, few_digits):
    options = [
        "--eps",
        "1/10",
        "--epochs",
        "2",
        "--batch-size",
        "32",
        "--seed",
        "3",
        "--ema",
        "0.9",
        "--learning-rate",
        "0.002",
        "--on-collapse",
        "warn",
        "--steps",
        "2",
    ]
    code, out, _ = run_command(capsys, command(*options, method="pgd"))
    assert code == 0
    chosen = recipe(
        "digits",
        "pgd",
        eps=0.1,
        epochs=2,
        batch_size=32,
        seed=3,
        ema=0.9,
        learning_rate=0.002,
        on_collapse="warn",
        steps=2,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)  # 3 batches an epoch look stuck
        result = train(chosen, few_digits, folder / "library", progress=False)
    saved = torch.load(folder / "run" / "model.pt", weights_only=True)
    for name, value in result.model.state_dict().items():
        assert torch.equal(saved[name], value), name
    *_, best, last = out.splitlines()
    row = result.epochs[result.best_epoch - 1]
    assert best.startswith(f"best epoch {row['epoch']}: {100 * row['clean']:.1f} % clean, ")
    assert f"{100 * row['robust']:.1f} % under fastadv.pgd(fastadv.Linf(0.1)" in best
    assert last == "saved run/model.pt and run/best.pt"


def test_options_left_out_are_the_recipes(monkeypatch, capsys, few_digits):
    asked = []
    monkeypatch.setattr(
        train_command, "train_recipe", lambda recipe, *rest, **more: asked.append((recipe, more))
    )
    monkeypatch.setattr(train_command, "_print", lambda result: None)
    for method in METHODS:
        run_command(capsys, command(method=method))
    assert [chosen for chosen, _ in asked] == [recipe("digits", method) for method in METHODS]
    rest = dict(model=None, device=None, resume=False, tensorboard=False, checkpoint_every=None)
    assert asked[0][1] == rest


def test_the_weights_saved_load_into_the_reference_network(folder, capsys, few_digits):
    assert run_command(capsys, command("--epochs", "1", "--batch-size", "48"))[0] == 0
    net = models.build("digits")
    net.load_state_dict(torch.load("run/model.pt", weights_only=True))
    assert net(load_digits("test")[0][:3]).shape == (3, 10)


def test_resume_goes_on_where_a_killed_run_was(folder, capsys, few_digits, monkeypatch):
    options = [
        "--epochs",
        "3",
        "--batch-size",
        "32",
        "--checkpoint-every",
        "2",
        "--on-collapse",
        "warn",
    ]
    assert run_command(capsys, command(*options, out="whole"))[0] == 0

    class Killed(BaseException):
        pass

    def killed(*arguments):
        save(*arguments)
        if arguments[2].batches == 4:
            raise Killed

    save = run.save_run
    monkeypatch.setattr(run, "save_run", killed)
    with pytest.raises(Killed):
        cli.main(command(*options))
    monkeypatch.setattr(run, "save_run", save)
    assert run_command(capsys, command(*options, "--resume"))[0] == 0
    states = [torch.load(f"{out}/model.pt", weights_only=True) for out in ("run", "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    code, _, err = run_command(capsys, command(*options))
    assert code == 2 and "--out: run holds a run already (last.pt, model.pt). Resume it" in err
    code, _, err = run_command(capsys, command(*options, "--seed", "1", "--resume"))
    assert code == 2 and "another recipe: seed is 0 there and 1 here" in err


def test_what_the_sentinel_sees_is_one_line_and_a_stop_is_exit_code_three(
    folder, capsys, few_digits
):
    options = ["--epochs", "12", "--batch-size", "96", "--learning-rate", "1e-9"]
    code, _, err = run_command(capsys, command(*options, "--on-collapse", "stop"))
    assert code == 3 and err.count("\n") == 1
    assert err.startswith("fastadv: stopped: stuck: the network answers one class after batch 2")
    assert read_log("run/log.jsonl")[-1]["event"] == "stopped"
    code, _, err = run_command(capsys, command(*options, "--on-collapse", "warn", out="warned"))
    lines = err.splitlines()
    assert code == 0 and lines and all(line.startswith("fastadv: stuck: ") for line in lines)


def test_threads_are_set_for_the_run_only(monkeypatch, capsys, few_digits):
    seen = []
    monkeypatch.setattr(
        train_command, "train_recipe", lambda *rest, **more: seen.append(torch.get_num_threads())
    )
    monkeypatch.setattr(train_command, "_print", lambda result: None)
    before = torch.get_num_threads()
    assert run_command(capsys, command("--threads", "2"))[0] == 0
    assert seen == [2] and torch.get_num_threads() == before


def test_mnist_is_read_from_the_folder_given(folder, capsys):
    (folder / "mnist").mkdir()
    pixels = (torch.arange(40 * 784) * 37 % 256).to(torch.uint8).numpy().tobytes()
    labels = bytes(k % 10 for k in range(40))
    for name, shape, content in (
        ("images-idx3", (40, 28, 28), pixels),
        ("labels-idx1", (40,), labels),
    ):
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        (folder / "mnist" / f"train-{name}-ubyte").write_bytes(header + content)
    options = ["--dataset", "mnist", "--data", "mnist", "--epochs", "1", "--on-collapse", "warn"]
    code, out, _ = run_command(capsys, command(*options))
    assert code == 0 and "mnist by fastadv.training.FastAT(fastadv.Linf(0.3)" in out
    assert "on 32 samples of mnist (8 held out), 1 epoch of 1 batches" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (command("--eps", "8"), "--eps 8 is larger than the box"),
        (command("--eps", "eight"), "--eps must be a number such as 0.03 or 8/255; got 'eight'"),
        (command("--eps", "1/0"), "--eps must be a number such as"),
        (command(method="fgsm"), "--method must be one of free, fast, nfgsm"),
        (command("--dataset", "svhn"), "--dataset must be one of digits, mnist, cifar10"),
        (
            command("--dataset", "mnist"),
            "--data is needed: the folder that holds",
        ),
        (command("--dataset", "mnist", "--data", "no"), "--data: no such file: no"),
        (command("--model", "resnet"), "--model must be one of digits, mnist"),
        (command("--model", "mnist"), "--model 'mnist' does not take images of shape (1, 8, 8)"),
        (command("--epochs", "0"), "--epochs must be an integer of at least 1; got 0"),
        (command("--batch-size", "-1"), "--batch-size must be an integer of at least 1; got -1"),
        (command("--precision", "fp16"), "--precision must be one of fp32, bf16; got 'fp16'"),
        (command("--ema", "2"), "--ema must lie in [0, 1), 0 for no average; got 2.0"),
        (command("--on-collapse", "ask"), "--on-collapse must be one of warn, stop, rollback"),
        (command("--checkpoint-every", "0"), "--checkpoint-every must be at least 1; got 0"),
        (command("--device", "abacus"), "--device must be"),
    ],
    ids=lambda value: " ".join(value[5:]) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_code_two(capsys, arguments, message):
    code, out, err = run_command(capsys, arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("fastadv: ") and message in err


def test_help_names_methods_and_data_sets(capsys):
    code, out, _ = run_command(capsys, ["train", "--help"])
    assert code == 0
    for word in ("nfgsm", "yopo", "cifar10", "preact-resnet18", "rollback", "--resume"):
        assert word in out
