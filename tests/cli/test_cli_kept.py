"""What commands keep: PNG images to the byte, and all that is finished when they are killed."""

import sys

import numpy as np
import pytest
import torch
from command_line import arrays, command, evaluate_command, run

import fastadv
from fastadv.cli import image_folder, kept_examples, sources
from fastadv.data import load_digits, to_unit_interval
from fastadv.evaluation.state import State
from fastadv.models import digits_net


class Killed(BaseException):
    """What no handler catches."""


MANY = ["--steps", "3", "--batch-size", "1", "--report", "r.json"]  # 40 samples: 5 blocks


@pytest.fixture
def whole(folder, capsys):
    """What an uninterrupted attack saves."""
    assert run(capsys, command(*MANY))[0] == 0
    (folder / "adv.npz").rename(folder / "whole.npz")
    return arrays("whole.npz")


def killing(owner, name, *, before: bool, call: int):
    """`name` of `owner`, killed at its call-th call, before or after it does its work."""
    original, calls = getattr(owner, name), []

    def killed(*arguments, **more):
        calls.append(1)
        if before and len(calls) == call:
            raise Killed
        result = original(*arguments, **more)
        if not before and len(calls) == call:
            raise Killed
        return result

    return killed


@pytest.mark.parametrize(
    ("owner", "name", "before", "call", "done"),
    [
        (kept_examples, "save_tensors", True, 2, 8),  # of the second block nothing is written
        (State, "save", True, 3, 24),  # its examples are, the checkpoint does not know of them
        (State, "save", False, 4, 32),
    ],
    ids=["before its examples", "between the files", "after the checkpoint"],
)
def test_a_killed_attack_goes_on_to_the_same_bits(
    folder, whole, capsys, monkeypatch, owner, name, before, call, done
):
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, killing(owner, name, before=before, call=call))
        with pytest.raises(Killed):
            run(capsys, command(*MANY))
    capsys.readouterr()
    assert (folder / "adv.npz.checkpoint").is_dir() and not (folder / "adv.npz").exists()
    code, _, err = run(capsys, command(*MANY))
    assert code == 0 and err == (
        f"goes on from adv.npz.checkpoint: {done} of 40 samples are done\n"
    )
    again = arrays("adv.npz")
    assert all(np.array_equal(again[key], whole[key]) for key in whole)
    assert not (folder / "adv.npz.checkpoint").exists()


def test_ctrl_c_says_what_is_kept_and_the_command_that_goes_on(folder, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        save = State.save

        def stop(self, path):
            save(self, path)
            raise KeyboardInterrupt

        patched.setattr(State, "save", stop)
        code, _, err = run(capsys, command(*MANY))
    assert code == 130 and err.splitlines() == [
        "fastadv: interrupted: 8 of 40 samples are kept in adv.npz.checkpoint; this goes on from "
        "there:",
        f"  fastadv {' '.join(command(*MANY))}",
    ]
    code, _, err = run(capsys, command(*MANY, eps="1/20"))
    assert code == 2 and "checkpoint.*" not in err and "belongs to another attack" in err


def test_ctrl_c_where_nothing_is_kept(capsys, monkeypatch):
    from fastadv.cli import evaluation

    def stop(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "robustness_curve", stop)
    arguments = ["evaluate", "--data", "digits", "--model", "fastadv.models:digits_net"]
    arguments += ["--eps", "1/10", "--eps", "1/5", "--attack", "fgsm"]
    code, _, err = run(capsys, arguments)
    assert code == 130 and err.splitlines() == [
        "fastadv: interrupted: without --checkpoint FILE nothing is kept, and this begins again:",
        f"  fastadv {' '.join(arguments)}",
    ]


def test_an_evaluation_keeps_its_examples_and_those_of_a_checkpoint(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "nets_of_evaluate_tests", None)
    options = ["--attack", "pgd", "--steps", "2", "--save-adversarial", "e.npz", "--uint8"]
    arguments = evaluate_command(*options, data="bytes.npz")
    arguments[arguments.index("--model") + 1] = "nets_of_cli_tests:digits"
    code, out, _ = run(capsys, arguments)
    assert "\nrounded to 8 bits: " in out and " successes survive\n" in out
    assert code == 0 and "saved e.npz" in out and not (folder / "e.npz.checkpoint").exists()
    saved, raw = arrays("e.npz"), arrays("bytes.npz")
    decoded = to_unit_interval(torch.from_numpy(saved["x_adv"]))
    wrong = digits_net(3)(decoded).argmax(1).numpy() != raw["y"]
    assert saved["x_adv"].dtype == np.uint8 and np.array_equal(saved["success"], wrong)
    kept = [*arguments, "--checkpoint", "c.pt"]
    for _ in range(2):  # the second time all is there
        assert run(capsys, kept)[0] == 0
        again = arrays("e.npz")
        assert all(np.array_equal(again[key], saved[key]) for key in saved)
    plain = [word for word in kept if word not in ("--save-adversarial", "e.npz", "--uint8")]
    assert run(capsys, [*plain[:-1], "d.pt"])[0] == 0
    code, _, err = run(capsys, [*kept[:-1], "d.pt"])
    assert code == 2 and "d.pt was begun without it, and the examples" in err


def test_twelve_png_images_stay_adversarial_when_they_are_read_again(folder, capsys):
    pytest.importorskip("PIL", reason="needs pillow")
    x, y = load_digits("test")
    pixels = (x[:12] * 255).round().byte()
    names = [f"digit-{int(label)}/{k:02d}.png" for k, label in enumerate(y[:12])]
    image_folder.write(pixels, names, folder / "images")
    arguments = command("--steps", "10", data="images", eps="16/255")
    arguments[arguments.index("--out") + 1] = "adversarial"
    code, out, _ = run(capsys, arguments)
    assert code == 0 and "12 PNG images read again: they hold these bytes" in out
    samples, clean = sources.load_samples("adversarial"), sources.load_samples("images")
    found = arrays("adversarial/examples.npz")
    assert samples.names == clean.names and len(samples.y) == 12
    assert torch.equal(samples.x, torch.from_numpy(found["x_adv"]))
    prediction = digits_net(3)(to_unit_interval(samples.x)).argmax(1)
    success = prediction != clean.y
    assert torch.equal(success, torch.from_numpy(found["success"])) and bool(success.any())
    inside = fastadv.contains(
        fastadv.Linf(16 / 255), to_unit_interval(samples.x), to_unit_interval(clean.x)
    )
    assert bool(inside.all())
    code, _, err = run(capsys, arguments)
    assert code == 2 and "--out: adversarial is there already: choose another folder" in err


def evaluated(*more, eps=("1/10",)) -> list[str]:
    arguments = evaluate_command(*more, eps=eps)
    arguments[arguments.index("--model") + 1] = "nets_of_cli_tests:digits"
    return arguments


@pytest.mark.parametrize("place", ["mine", "."])
def test_a_folder_that_holds_other_files_is_neither_used_nor_deleted(folder, capsys, place):
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("kept")
    before = sorted(folder.rglob("*"))
    code, _, err = run(capsys, command("--checkpoint", place))
    assert code == 2 and "--checkpoint must be a folder of its own" in err
    assert sorted(folder.rglob("*")) == before
    (folder / "e.npz.checkpoint").mkdir()
    (folder / "e.npz.checkpoint" / "notes.txt").write_text("kept")
    code, _, err = run(capsys, evaluated("--attack", "fgsm", "--save-adversarial", "e.npz"))
    assert code == 2 and "e.npz.checkpoint must be a folder of its own" in err
    assert (folder / "e.npz.checkpoint" / "notes.txt").read_text() == "kept"


def test_what_comes_into_the_folder_meanwhile_stays(folder, capsys, monkeypatch):
    put = kept_examples.KeptExamples.put

    def and_another(self, *arguments):
        put(self, *arguments)
        (self.folder / "notes.txt").write_text("kept")

    monkeypatch.setattr(kept_examples.KeptExamples, "put", and_another)
    assert run(capsys, command("--checkpoint", "own"))[0] == 0
    assert [file.name for file in (folder / "own").iterdir()] == ["notes.txt"]


def test_what_is_read_is_not_written_over(folder, capsys):
    before = (folder / "digits.npz").read_bytes()
    over = str(folder / "mine" / ".." / "digits.npz")
    (folder / "mine").mkdir()
    for line in (
        command("--out", over),
        evaluated("--attack", "fgsm", "--save-adversarial", over),
    ):
        code, _, err = run(capsys, line)
        assert code == 2 and "digits.npz is read, and would be lost" in err
        assert (folder / "digits.npz").read_bytes() == before


def test_a_refused_command_leaves_no_folder(folder, capsys):
    line = evaluated("--save-adversarial", "e.npz", eps=("0.1", "0.2"))
    code, _, err = run(capsys, line)
    assert code == 2 and "--save-adversarial takes one --eps" in err
    assert not (folder / "e.npz.checkpoint").exists()
