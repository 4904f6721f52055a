"""Wheel, sdist and editable install work in a clean environment, without the checkout's symlink."""

import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import house
import pytest

_USE = """
import torch, fastadv, fastadv.kernels.slots
x = torch.full((2, 3), 0.5)
weight = torch.tensor([[1.0, -1.0], [2.0, 0.5], [0.0, 1.0]])
result = fastadv.pgd(fastadv.Linf(0.25), steps=2).run(lambda x: x @ weight, x, torch.tensor([0, 0]))
assert float(result.distance.max()) <= 0.25, result
print(fastadv.__file__)
"""


def _environment(folder: Path) -> Path:
    """A new venv that borrows torch, numpy, triton and setuptools from this one; its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    # a plain path line: .pth files in there, such as an editable fastadv's, are not processed
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin" / "python"


def _install(python: Path, *what: object, cwd: Path) -> None:
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    site = python.parents[1] / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    house.run(
        python, "-m", "pip", "install", *options, "--target", site / "site-packages", *what, cwd=cwd
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist."""
    pytest.importorskip("build", reason="needs the optional package build")
    tree = house.copy_of_the_tree(tmp_path_factory.mktemp("tree"))
    out = tmp_path_factory.mktemp("dist")
    house.run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, cwd=tree)
    return out


def test_the_wheel_of_the_sdist_works_and_leaves_other_kernels_alone(built, tmp_path):
    wheel = next(built.glob("*.whl"))
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"fastadv", wheel.name.split("-py3")[0] + ".dist-info"}
    python = _environment(tmp_path / "venv")
    hugging_face = tmp_path / "hf" / "kernels"
    hugging_face.mkdir(parents=True)
    (hugging_face / "__init__.py").write_text("owner = 'Hugging Face'\n")
    (hugging_face.parent / "setup.py").write_text(
        "import setuptools; setuptools.setup(name='kernels', version='1', packages=['kernels'])"
    )
    _install(python, hugging_face.parent, wheel, cwd=tmp_path)
    kernels = [f"fastadv.kernels.{name}" for name in house.kernel_modules(house.ROOT)]
    code = (
        f"import kernels; assert kernels.owner == 'Hugging Face'\n{_USE}\n"
        f"import {', '.join(kernels)}"
    )
    assert str(tmp_path / "venv") in house.run(python, "-c", code, cwd=tmp_path).stdout


def test_the_wheel_carries_its_data(built):
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    for wanted in (
        "fastadv/py.typed",
        "fastadv/data/digits.npz",
        "fastadv/models/digits_fast_at.npz",
        "fastadv/models/digits_standard.npz",
        "fastadv/kernels/steps/linf.py",
        "fastadv/cli/entry.py",
    ):
        assert wanted in names


def test_a_tree_whose_symlink_became_a_text_file(tmp_path):
    tree = house.copy_of_the_tree(tmp_path / "tree")
    (tree / "fastadv" / "kernels").unlink()
    (tree / "fastadv" / "kernels").write_text("../kernels")
    python = _environment(tmp_path / "venv")
    failed = house.run(python, "-c", "import fastadv", cwd=tree, check=False)
    assert failed.returncode != 0
    assert "lost its symbolic link" in failed.stderr and "pip install ." in failed.stderr
    _install(python, tree, cwd=tmp_path)
    house.run(python, "-c", _USE, cwd=tmp_path)


def test_an_editable_install_works(tmp_path):
    tree = house.copy_of_the_tree(tmp_path / "tree")
    python = _environment(tmp_path / "venv")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    house.run(python, "-m", "pip", "install", *options, "--editable", tree, cwd=tmp_path)
    assert str(tree) in house.run(python, "-c", _USE, cwd=tmp_path).stdout


_HINTS = {
    "fastadv/cli/entry.py": "cli",
    "fastadv/plots/style.py": "plot",
    "fastadv/ops/compiled.py": "cpu",
    "fastadv/recipes/run_log.py": "train",
    "examples/accelerate_training.py": "accelerate",
    "examples/lightning_training.py": "lightning",
}


@pytest.mark.parametrize("name", _HINTS)
def test_a_hint_names_the_packages_of_the_extra(name):
    settings = tomllib.loads((house.ROOT / "pyproject.toml").read_text())
    extra = settings["project"]["optional-dependencies"][_HINTS[name]]
    wanted = [f'"{package}"' for package in extra if not package.startswith("fastadv")]
    assert f"pip install {' '.join(wanted)}" in (house.ROOT / name).read_text()


def test_no_hint_takes_fastadv_from_pypi_where_it_is_not():
    texts = [
        p for folder in ("fastadv", "examples", "docs") for p in (house.ROOT / folder).rglob("*")
    ]
    for path in (*texts, *house.ROOT.glob("*.md")):
        if path.suffix in (".py", ".md"):
            assert 'install "fastadv' not in path.read_text(), path
