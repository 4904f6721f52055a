"""The training suite: rows from end to end on the digits, work by counting, no wrong provider."""

import contextlib
import dataclasses
import io

import pytest
import torch

from benchmarks.harness import harness, report, schema
from benchmarks.training import __main__ as training
from benchmarks.training import cases as training_cases
from benchmarks.training import tables as training_tables
from benchmarks.training.cases import CASES
from benchmarks.training.providers import BASELINE, CHANNELS_LAST, PER_SAMPLE, PROVIDERS, Setting

CPU = torch.device("cpu")
EPOCH = 23  # minibatches of the digits: 1,437 samples in batches of 64


@pytest.fixture(scope="module")
def split():
    return training_cases.load(CASES["digits-fast"], None, test_samples=16)


@pytest.fixture
def no_comparison(monkeypatch):
    """For tests of what is made of the times: `run` compares the weights, as a run does."""
    equal = schema.Equality(0.0, 1e-10, "nothing", "nothing")
    monkeypatch.setattr(training, "parity", lambda *arguments: equal)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(rows of a small run, what it printed, the folder it wrote to)."""
    folder = tmp_path_factory.mktemp("results")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        training.main(
            ["--case", "digits-fast", "--rounds", "2", "--batches", "2", f"--results={folder}"]
        )
    return schema.read_rows("training", folder), printed.getvalue(), folder


def test_a_run_ends_with_the_table_of_its_rows(run):
    rows, printed, _ = run
    table, _, _ = training_tables.training(rows).rpartition("\n\n")  # versions are sorted in files
    assert table in printed


def test_a_run_writes_one_row_a_provider_that_says_what_was_timed(run):
    rows, _, folder = run
    assert [row.provider for row in rows] == [
        "fastadv",
        CHANNELS_LAST,
        PER_SAMPLE,
        BASELINE,
        f"{BASELINE}, channels_last",
    ]
    for row in rows:
        assert row.case == "digits: Fast-AT" and row.baseline == BASELINE and row.unit == "s"
        assert row.shape == (64, 1, 8, 8) and row.n == 2 * 64 and row.rounds == 2
        assert row.timed == (
            "2 consecutive minibatches, loader and optimizer included, times 23/2 for an epoch "
            "of 23"
        )
        assert (row.extra["batches"], row.extra["epoch_batches"]) == (2, EPOCH)
        assert "peak_memory_mib" not in row.extra  # a CPU: left out rather than invented
        assert row.robustness is None
        assert str(folder) not in row.environment.command
    by_provider = {row.provider: row for row in rows}
    assert by_provider[BASELINE].ratio == by_provider[PER_SAMPLE].extra["over_per_sample"] == 1
    assert by_provider["fastadv"].equality.metric == (
        "max |w - textbook| after 24 optimizer steps on batches of 32 from the same weights, "
        "batches and noise, float64"
    )
    assert all(row.equality.tolerance == 1e-10 for row in rows)
    assert by_provider["fastadv"].equality.error > 0  # two implementations were compared


@pytest.mark.usefixtures("no_comparison")
def test_an_epoch_is_extrapolated_from_the_minibatches_of_a_round(split, environment, monkeypatch):
    seconds = {name: [1.0 + i, 2.0 + i] for i, name in enumerate(PROVIDERS)}
    monkeypatch.setattr(harness, "time_interleaved", lambda *_, **__: seconds)
    rows = training.run_case(
        CASES["digits-fast"], split, environment, Setting(CPU), rounds=2, batches=2
    )
    assert [row.q50 for row in rows] == [(1.5 + i) * EPOCH / 2 for i in range(5)]
    assert [row.ratio for row in rows] == pytest.approx(
        [(4 / 1 + 5 / 2) / 2, (4 / 2 + 5 / 3) / 2, (4 / 3 + 5 / 4) / 2, 1, (4 / 5 + 5 / 6) / 2],
        rel=1e-3,
    )
    assert rows[0].extra["over_per_sample"] == pytest.approx((3 / 1 + 4 / 2) / 2, rel=1e-3)


@pytest.mark.usefixtures("no_comparison")
def test_a_round_is_an_epoch_at_most(split, environment, monkeypatch):
    seconds = {name: [1.0] for name in PROVIDERS}
    monkeypatch.setattr(harness, "time_interleaved", lambda *_, **__: seconds)
    rows = training.run_case(
        CASES["digits-fast"], split, environment, Setting(CPU), rounds=1, batches=50
    )
    assert rows[0].q50 == 1.0
    assert rows[0].timed == f"{EPOCH} consecutive minibatches, loader and optimizer included"


@pytest.mark.parametrize(
    ("name", "ours", "textbook", "reads"),
    [
        ("digits-fast", 5, 6, 1),
        ("digits-pgd", 13, 18, 1),
        ("digits-trades", 27, 39, 1),
        ("digits-free", 3, 3, 1 / 8),  # one .item() for eight optimizer steps
    ],
)
def test_work_is_counted_for_an_optimizer_step(split, name, ours, textbook, reads):
    case = CASES[name]
    counts = {
        provider: training.counted(PROVIDERS[provider](case, split, Setting(CPU)), case)
        for provider in ("fastadv", BASELINE)
    }
    assert counts["fastadv"]["units"] == ours
    assert counts[BASELINE]["units"] == textbook
    assert counts["fastadv"]["data_dependent_ops"] == 0
    assert counts[BASELINE]["data_dependent_ops"] == reads
    assert 0 < counts["fastadv"]["ops"] < counts[BASELINE]["ops"]


@pytest.mark.parametrize("name", ["digits-pgd", "digits-trades", "digits-free"])
def test_our_weights_are_those_of_the_textbook_step(split, name):
    equality = training.parity(CASES[name], "fastadv", split, CPU)
    assert 0 < equality.error <= equality.tolerance


@pytest.mark.parametrize("name", ["digits-fast", "digits-free"])
def test_a_provider_with_other_weights_is_refused(split, environment, monkeypatch, name):
    right = PROVIDERS["fastadv"]

    def wrong(case, *more):
        return right(dataclasses.replace(case, eps=1.05 * case.eps), *more)

    monkeypatch.setitem(PROVIDERS, "fastadv", wrong)
    with pytest.raises(ValueError, match=f"fastadv on {name}: .* a wrong result has no time"):
        training.run_case(CASES[name], split, environment, Setting(CPU), rounds=1, batches=1)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_loader_gives_every_sample_once_an_epoch(split, provider):
    trainer = PROVIDERS[provider](CASES["digits-fast"], split, Setting(CPU))
    assert len(trainer.loader) == EPOCH
    batches = [trainer.next_batch() for _ in range(EPOCH)]
    seen = torch.cat([x.flatten(1).sum(1) * 16 + y for x, y in batches])
    expected = (split.images / 255).flatten(1).sum(1) * 16 + split.labels
    torch.testing.assert_close(seen.sort().values, expected.sort().values, rtol=0, atol=1e-3)


def test_a_trained_network_is_attacked_with_all_that_makes_it_a_number(split):
    case = CASES["digits-fast"]
    found = training.robust_accuracy(case, PROVIDERS["fastadv"], split, Setting(CPU), epochs=4)
    assert (found.steps, found.restarts, found.n, found.eps) == (50, 10, 16, 0.15)
    assert found.model == "digits_net, 4 epochs" and found.data == "digits, test"
    assert found.clean_accuracy > 0.5  # it has learned


def test_data_that_is_read_from_files_needs_a_folder():
    with pytest.raises(ValueError, match="mnist-fast needs --data, the folder"):
        training_cases.load(CASES["mnist-fast"], None, test_samples=1)


def test_the_readme_table_holds_what_the_rows_say(run, tmp_path):
    rows, _, results = run
    readme = tmp_path / "README.md"
    arguments = ["--readme", str(readme), "--results", str(results)]
    readme.write_text("# nothing here\n")
    report.main([*arguments, "--check"])
    readme.write_text("<!-- benchmark:training -->\n<!-- /benchmark -->\n")
    report.main(arguments)
    report.main([*arguments, "--check"])
    row, text = rows[0], readme.read_text()
    cells = f"| digits: Fast-AT | fastadv | {row.q50:.4g} s ({row.ratio:.2f}x) | "
    assert cells in text
    assert f"| 5 | {row.extra['ops']:.4g} | 0 | {row.equality.error:.1g} (1e-10) |" in text
    assert "robust accuracy" not in text


def test_the_readme_table_shows_robust_accuracy_where_there_is_one(run, row):
    trained = [dataclasses.replace(r, robustness=row.robustness) for r in run[0]]
    text = training_tables.training(trained)
    assert "| robust accuracy |" in text and "| 50.0 % |" in text
    assert f"PGD-10, 1 restarts, seed 0, n=8, on {row.robustness.model}, of which one" in text
