"""The AutoAttack comparison from the command line: models, libraries, files, tables."""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import pytest

from benchmarks.autoattack import __main__ as autoattack
from benchmarks.autoattack import parties as autoattack_parties
from benchmarks.autoattack import tables as autoattack_tables
from benchmarks.autoattack.cases import CASES, reference
from benchmarks.autoattack.entrants import NAMES, OURS, Budget
from benchmarks.harness import report, schema
from fastadv import diagnostics

BUDGET = Budget(steps=5, queries=20, targets=2)
LINES = [*NAMES, "checks", "total"]
PAGE = Path(__file__).parents[3] / "docs" / "autoattack.md"

# four classes by the first pixel, the nearest of 0, 1/3, 2/3, 1: who falls follows from eps
_LOADER = """
import torch
class Nearest(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
    def forward(self, x):
        levels = torch.arange(4) / 3
        return -self.scale * (x[:, 0, 0, :1] - levels).square()
def load(name, n):
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0, 0] = torch.tensor([0.0, 0.16, 1.0, 0.45])[:n]
    model = Nearest().requires_grad_(False)
    return model, x, model(x).argmax(1)
def info(name):
    return {"dataset": "noise"}
"""
# the members of the authors' object, each a step of the sign of x
_PACKAGE = """
class Member:
    def __init__(self, model):
        self.model, self.n_iter, self.n_queries = model, 100, 5000
    def perturb(self, x, y):
        self.model(x)
        return (x + 0.01).clamp(max=1)
class AutoAttack:
    def __init__(self, model, norm, eps, seed, version, verbose, device):
        assert (norm, seed, version, verbose, device) == ("Linf", 0, "standard", False, "cpu")
        assert all(p.requires_grad for p in model.parameters())
        self.model = model
        self.apgd, self.apgd_targeted, self.fab, self.square = (Member(model) for _ in range(4))
    def run_standard_evaluation(self, x, y, bs):
        assert self.attacks_to_run == [] and bs == 250
        print("a warning of theirs")
        self.model(x)
"""


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "checkout"
    (folder / "autoattack").mkdir(parents=True)
    (folder / "autoattack" / "__init__.py").write_text(_PACKAGE)
    monkeypatch.delitem(sys.modules, "autoattack", raising=False)
    yield folder
    sys.modules.pop("autoattack", None)


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    (folder / "reference").mkdir(parents=True)
    (folder / "load_models.py").write_text(_LOADER)
    stored = {"autoattack": {"robust": "101"}}
    (folder / "reference" / "mnist_kw_0.1__Linf_0.1_n3.json").write_text(json.dumps(stored))
    return folder


def test_a_run_from_the_command_line_ends_in_tables_that_the_report_can_write(
    tmp_path, package, models, monkeypatch, capsys
):
    counted = []
    monkeypatch.setattr(autoattack, "Budget", lambda: BUDGET)
    monkeypatch.setattr(autoattack.autoattack_counts, "PROBES", ())
    monkeypatch.setattr(autoattack_tables, "ops", lambda rows: counted.append(rows) or "counted")
    results, out = tmp_path / "results", tmp_path / "out"
    arguments = [
        "--models",
        str(models),
        "--authors",
        str(package),
        "--case",
        "mnist_kw_0.1",
        "cifar_madry_8px",
        "--samples",
        "4",
        f"--results={results}",
        f"--out={out}",
    ]
    autoattack.main(arguments)
    printed = capsys.readouterr().out
    rows = schema.read_rows("autoattack", results)
    assert counted == [[]] and len(rows) >= 2 * 2 * len(LINES)
    assert rows[0].provider == rows[0].baseline == "autoattack"
    assert rows[0].environment.versions["autoattack"].startswith("sha256:")
    assert str(tmp_path) not in rows[0].environment.command and "warning of" not in printed
    ours = [row for row in rows if row.provider == OURS]
    assert ours[0].extra["attacked"] == 4 and "reference_points" not in ours[0].extra
    total = ours[len(LINES) - 1]
    assert total.extra["reference_points"] == 3
    assert total.extra["reference_missed"] == total.extra["reference_beyond"] == 0
    assert total.robustness.robust_accuracy == 0.5  # eps 0.1: 0.16 and 0.45 fall, 0 and 1 do not
    assert ours[-1].robustness.robust_accuracy == 0.75  # 8/255: 0.16 falls
    assert sorted(path.name for path in out.iterdir()) == [
        "cifar_madry_8px.json",
        "mnist_kw_0.1.json",
    ]
    page = tmp_path / "page.md"
    page.write_text(
        "".join(
            f"<!-- benchmark:{name} -->\n<!-- /benchmark -->\n"
            for name in ("autoattack", "autoattack-attacks")
        )
    )
    report.main(["--readme", str(page), "--results", str(results)])
    report.main(["--readme", str(page), "--results", str(results), "--check"])
    text = page.read_text()
    assert f"| mnist_kw_0.1 | 0.1 | 4 | fastadv | {total.q50:.4g} s ({total.ratio:.2f}x) |" in text
    assert f"| mnist_kw_0.1 | FAB-T | fastadv | {ours[2].extra['attacked']:g} |" in text
    mean = math.sqrt(total.ratio * ours[-1].ratio)
    assert f"over the 2 models: end to end {mean:.2f}x" in text


def test_libraries_that_are_not_there_are_named_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("AUTOATTACK_PATH", raising=False)
    for name in ("autoattack", "torchattacks"):
        monkeypatch.setitem(sys.modules, name, None)
    assert list(autoattack_parties.entrants(None)) == [OURS]
    said = capsys.readouterr().err
    assert "without autoattack: " in said and "AUTOATTACK_PATH" in said
    assert "without torchattacks, cascade: " in said
    assert autoattack_parties.authors_version() == {}
    autoattack_parties.entrants(tmp_path)
    assert "holds no folder autoattack" in capsys.readouterr().err


def test_the_authors_package_is_found_by_the_environment(package, monkeypatch):
    monkeypatch.setenv("AUTOATTACK_PATH", str(package))
    before = list(sys.path)
    assert "autoattack" in autoattack_parties.entrants(None)
    assert sys.path == before


def test_a_reference_belongs_to_a_model_and_a_radius(models):
    case = CASES["mnist_kw_0.1"]
    assert reference(case, models) == "101"
    assert reference(dataclasses.replace(case, eps_text="1/255"), models) is None
    assert CASES["cifar_wide_kw"].eps == 2 / 255


def test_a_folder_without_models_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--models must be a folder with load_models.py"):
        autoattack.main(["--models", str(tmp_path / "none"), f"--results={tmp_path}"])


def test_a_drop_in_under_the_authors_name_is_not_taken_for_theirs(monkeypatch, capsys):
    import fastadv.compat.autoattack

    monkeypatch.delenv("AUTOATTACK_PATH", raising=False)
    monkeypatch.setitem(sys.modules, "autoattack", fastadv.compat.autoattack)
    assert "autoattack" not in autoattack_parties.entrants(None)
    assert "is not the authors' package" in capsys.readouterr().err
    assert autoattack_parties.authors_version() == {}


def test_the_page_names_every_warning_and_only_tables_that_there_are():
    text = PAGE.read_text()
    assert [code for code in diagnostics._TEXTS if f"`{code}`" not in text] == []
    blocks = re.findall(r"<!-- benchmark:([\w-]+) -->", text)
    assert blocks and set(blocks) <= report.TABLES.keys()
