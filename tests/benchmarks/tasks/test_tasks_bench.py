"""The suite of tasks: rows, the table, and what is refused."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from benchmarks.harness import report, schema
from benchmarks.tasks import __main__ as suite
from benchmarks.tasks import cases
from benchmarks.tasks.cases import TASKS, Task
from benchmarks.tasks.networks import perceptron, trained

PAGE = Path(__file__).parents[3] / "docs" / "tasks.md"


def _of(word: str) -> Task:
    (task,) = (task for task in TASKS if task.name.startswith(word))
    return task


@pytest.fixture(scope="module")
def quick() -> list[Task]:
    """Three tasks, with networks that are trained once and briefly."""
    tasks = []
    for word in ("binary", "embeddings", "mask"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cases, "_EPOCHS", 3)
            problem = _of(word).problem()
        tasks.append(dataclasses.replace(_of(word), problem=lambda problem=problem: problem))
    return tasks


def test_a_run_from_the_command_line_ends_in_rows_and_a_table(tmp_path, quick, monkeypatch, capsys):
    monkeypatch.setattr(suite, "TASKS", quick)
    suite.main(["--samples", "40", "--rounds", "2", f"--results={tmp_path}"])
    rows = schema.read_rows("tasks", tmp_path)
    assert [row.case for row in rows] == [task.name for task in quick]
    for row in rows:
        found = row.robustness
        assert found is not None and row.n == 40 and row.rounds == 2
        assert (found.steps, found.restarts, found.seed) == (20, 1, 0)
        assert found.robust_accuracy < found.clean_accuracy - 0.2
        assert row.equality.error == 0
        assert schema.Row.from_json(row.to_json()) == row
        assert str(tmp_path) not in row.environment.command
    binary, embeddings, _ = rows
    assert binary.robustness is not None and embeddings.robustness is not None
    # the score of both is whether a sample is right
    assert binary.extra["right: attacked"] == round(binary.robustness.robust_accuracy, 4)
    assert embeddings.extra["right: clean"] == round(embeddings.robustness.clean_accuracy, 4)
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark:tasks -->\n<!-- /benchmark -->\n")
    report.main(["--readme", str(page), "--results", str(tmp_path)])
    report.main(["--readme", str(page), "--results", str(tmp_path), "--check"])
    fallen = round(40 * (1 - binary.robustness.robust_accuracy))
    text = page.read_text()
    assert f"| {binary.case} | `binary()` | perceptron, one logit | 0.1, L-inf | right | " in text
    assert f" | {fallen} of 40 | " in text and "| 2, L2 |" in text
    assert text.split(" -->\n")[1].rpartition("\n\n")[0] in capsys.readouterr().out


def test_successes_that_the_rule_denies_have_no_row(quick, environment):
    lenient = dataclasses.replace(quick[0], failed=lambda output, y: output[:, 0] > 1e9)
    with pytest.raises(ValueError, match="error .* against the task's rule in plain PyTorch"):
        suite.run_task(lenient, environment, samples=20, rounds=1)


def test_what_has_changed_outside_of_the_mask_has_no_row(quick, environment):
    elsewhere = ~quick[2].mask
    wrong = dataclasses.replace(quick[2], mask=None)
    assert suite.run_task(wrong, environment, samples=20, rounds=1).equality.error == 0
    run = type(wrong.attack).run

    def run_elsewhere(self, model, x, y, *, mask):
        return run(self, model, x, y, mask=elsewhere)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(wrong.attack), "run", run_elsewhere)
        with pytest.raises(ValueError, match="changed outside of the mask"):
            suite.run_task(quick[2], environment, samples=20, rounds=1)


def test_a_network_is_the_same_each_time_and_the_generators_are_left_alone():
    x, y = torch.rand(64, 6), torch.arange(64) % 3
    state = torch.get_rng_state()
    one, other = (
        trained(lambda: perceptron(6, 3), x, y, torch.nn.functional.cross_entropy, epochs=2)
        for _ in range(2)
    )
    assert torch.equal(one(x), other(x)) and not one.training
    assert torch.equal(state, torch.get_rng_state())


def test_the_page_names_the_table_and_every_ready_made_objective():
    page = PAGE.read_text()
    assert re.findall(r"<!-- benchmark:([\w-]+) -->", page) == ["tasks"]
    for name in ("binary", "multilabel", "regression", "segmentation", "soft", "weighted"):
        assert f"| `{name}(" in page


def test_each_task_stands_once():
    names = [task.name for task in TASKS]
    assert len(set(names)) == len(names)
    assert [task.name.partition(":")[0] for task in TASKS] == [
        "binary",
        "multi-label",
        "regression",
        "segmentation",
        "tabular",
        "sequence",
        "embeddings",
        "mask",
    ]
    assert _of("tabular").eps == 0.03  # of each range
    assert _of("tabular").attack.threat.eps[0, [0, -1]].tolist() == pytest.approx([3.0, 3.84])
