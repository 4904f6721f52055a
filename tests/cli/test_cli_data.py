"""What --data names: digits, archives, tensors, folders of images, functions; mistakes."""

import builtins
import sys

import numpy as np
import pytest
import torch

from fastadv.cli import image_folder, sources
from fastadv.cli.user_error import UserError
from fastadv.data import load_digits, to_unit_interval

X = (torch.arange(6 * 48) * 37 % 256).byte().view(6, 3, 4, 4)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("data_of_cli_tests", None)


def test_the_digits_by_name_and_by_split():
    for split in ("test", "train"):
        x, y = sources.load_data("digits", "auto", split, None)
        assert torch.equal(x, load_digits(split)[0]) and torch.equal(y, load_digits(split)[1])


@pytest.mark.parametrize(
    "names",
    [("x", "y"), ("images", "labels"), ("x_test", "y_test"), ("test_images", "test_labels")],
)
def test_archives_by_the_names_that_are_usual(names):
    columns = X.numpy(), Y.numpy()[:, None].astype(np.uint8)
    np.savez("a.npz", **dict(zip(names, columns, strict=True)))
    torch.save(dict(zip(names, (X, Y), strict=True)), "a.pt")
    for file in ("a.npz", "a.pt"):
        x, y = sources.load_data(file, "auto", "test", None)
        assert torch.equal(x, to_unit_interval(X)) and torch.equal(y, Y)


def test_a_pair_of_tensors_and_a_split():
    torch.save((X, Y), "pair.pt")
    assert torch.equal(sources.load_data("pair.pt", "auto", "test", 2)[0], to_unit_interval(X[:2]))
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2]}
    np.savez("both.npz", **{name: value.numpy() for name, value in arrays.items()})
    assert [len(sources.load_samples("both.npz", split=s).y) for s in ("train", "test")] == [6, 2]


@pytest.mark.parametrize("name", ["tensors", "arrays", "data_set", "loader"])
def test_functions_that_return_samples(folder, name):
    (folder / "data_of_cli_tests.py").write_text("""
import torch
x, y = torch.arange(12.).view(6, 2) / 12, torch.arange(6) % 3
def tensors(): return x, y
def arrays(): return x.numpy(), y.numpy()
def data_set(): return [(x[k], int(y[k])) for k in range(6)]
def loader(): return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 4)
def number(): return 3
""")
    x, y = sources.load_data(f"data_of_cli_tests:{name}", "auto", "test", None)
    assert torch.equal(x, torch.arange(12.0).view(6, 2) / 12) and torch.equal(y, Y)
    with pytest.raises(UserError, match=r"number\(\) must return a Dataset of \(x, y\) pairs"):
        sources.load_samples("data_of_cli_tests:number")


def test_a_folder_of_images_is_read_and_written_to_the_byte(folder):
    pytest.importorskip("PIL", reason="needs pillow")
    names = image_folder.png_names((), Y)
    (folder / "images").mkdir()
    image_folder.write(X, names, folder / "images" / "test")
    samples = sources.load_samples("images")
    assert samples.classes == ("0", "1", "2") and samples.names[0] == "0/000000.png"
    order = torch.tensor([0, 3, 1, 4, 2, 5])  # by class
    assert torch.equal(samples.x, X[order]) and torch.equal(samples.y, Y[order])
    image_folder.write(X[:, :1], names, folder / "grey")
    assert torch.equal(sources.load_samples("grey").x, X[order, :1])
    image_folder.write(X[:1, :, :2], ["3/a.png"], folder / "other")
    (folder / "other" / "3").rename(folder / "grey" / "3")
    with pytest.raises(UserError, match="images must have one size; grey/0/000000.png is 4 x 4"):
        sources.load_samples("grey")
    (folder / "grey" / "3" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="--data: grey/3/a.png is not a readable image"):
        sources.load_samples("grey")
    assert image_folder.png_names(("c/a.jpg", "c/a.png"), Y) == ["c/a.jpg.png", "c/a.png.png"]


def test_missing_pillow_says_what_to_install(folder, monkeypatch):
    (folder / "images" / "a").mkdir(parents=True)
    (folder / "images" / "a" / "0.png").write_bytes(b"")

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(image_folder.importlib, "import_module", missing)
    with pytest.raises(UserError, match='image files need Pillow: pip install "pillow>=10"'):
        sources.load_samples("images")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("data/", "--data: no such file: data/$"),
        ("one.npy", r"one.npy holds one array, .*: save both in an npz file, numpy.savez\("),
        (
            "named.npz",
            "must hold the arrays x and y, images and labels, .*; it has a, b$",
        ),
        ("trap.pt", "trap.pt holds more than tensors, or is damaged, and nothing of it was run"),
        ("three.pt", r"three.pt must hold two tensors, \(x, y\); got tuple"),
        ("no_module:f", "--data: importing 'no_module' fails"),
        ("empty.npz", "--data: it holds no samples"),
    ],
)
def test_mistakes_name_the_option(folder, data, message):
    np.save("one.npy", X.numpy())
    np.savez("named.npz", a=X.numpy(), b=Y.numpy())
    np.savez("empty.npz", x=X.numpy()[:0], y=Y.numpy()[:0])
    torch.save({"x": X, "y": builtins.print}, "trap.pt")
    torch.save((X, Y, Y), "three.pt")
    with pytest.raises(UserError, match=message):
        sources.load_samples(data)
