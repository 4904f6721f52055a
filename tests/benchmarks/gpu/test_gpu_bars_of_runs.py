"""The bars of attacks, training and speed-runs: each is compared with the right rows."""

import dataclasses

import pytest
from gpu_verdicts import verdicts

from benchmarks.autoattack.entrants import AUTHORS, Budget
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import attack_providers as gpu_attack_providers
from benchmarks.gpu import attacks as gpu_attacks
from benchmarks.gpu import autoattack as gpu_autoattack
from benchmarks.gpu import bars as gpu_bars
from benchmarks.gpu import epochs as gpu_epochs
from benchmarks.gpu import steps as gpu_steps
from benchmarks.gpu import training as gpu_training
from benchmarks.harness import schema
from benchmarks.training import speedrun

RESNET = gpu_attacks.CASES[0].name


def test_pgd_is_the_best_of_its_kind_and_its_overhead_the_worst(made):
    names = [variant.name for variant in gpu_attack_providers.VARIANTS]
    ratios = {
        "fastadv fp32, all steps": 1.5,
        "fastadv fp32 graph, all steps": 1.9,
        "fastadv fp32 graph": 7.0,
        "fastadv bf16": 2.0,
        "fastadv bf16 graph channels_last": 3.4,
        "fastadv bf16 graph channels_last, all steps": 8.0,
    }
    assert set(ratios) <= set(names)
    over = {name: {"over_bare_percent": 2.0} for name in ratios if "all steps" in name}
    over["fastadv fp32, all steps"] = {"over_bare_percent": 60.0}
    over["fastadv fp32 graph, all steps"] = {"over_bare_percent": 3.5}

    def rows(case, **more):
        return [
            made(
                name, suite="gpu_attacks", case=case, ratio=ratio, extra=over.get(name, {}), **more
            )
            for name, ratio in (ratios | {"torchattacks": 1.0}).items()
        ]

    assert RESNET == "PGD-20 preact_resnet18 batch 128"
    found = verdicts(rows(RESNET, baseline="torchattacks"))
    assert {name: line[::2] for name, line in found.items()} == {
        "PGD-20 over torchattacks, bf16 confirmed": ("3.4 x", "met"),
        "PGD-20 over torchattacks, fp32, all steps": ("1.9 x", "met"),
        "PGD-20's time over bare replayed passes": ("3.5 %", "NOT MET"),
    }
    assert verdicts(rows("PGD-20 wrn-28-10 batch 128", baseline="torchattacks")) == {}
    alone = [row for row in rows(RESNET, baseline="textbook") if row.provider != "torchattacks"]
    assert list(verdicts(alone)) == ["PGD-20's time over bare replayed passes"]


@pytest.fixture
def autoattack(made):
    def make(provider, ratio, missed, beyond, *, n=1000, attack="AutoAttack, standard"):
        robustness = schema.Robustness(
            attack,
            "linf",
            8 / 255,
            16 / 255,
            Budget().steps,
            1,
            0,
            n,
            "preact_resnet18, 900 batches of Fast-AT",
            "CIFAR-10, held out",
            0.8,
            0.4,
        )
        return made(
            provider,
            suite=gpu_autoattack.SUITE,
            case="AutoAttack x",
            n=n,
            ratio=ratio,
            baseline=AUTHORS,
            robustness=robustness,
            extra={"missed": float(missed), "beyond": float(beyond)},
        )

    return make


def test_autoattack_counts_as_the_standard_version_on_a_thousand_images(autoattack):
    rows = [
        autoattack(AUTHORS, 1.0, 0, 0),
        autoattack("fastadv fp32", 3.0, 2, 2),
        autoattack("fastadv fp32 graph", 5.5, 1, 5),
    ]
    found = {name: line[::2] for name, line in verdicts(rows).items()}
    assert found == {
        "AutoAttack, 1,000 images, over the authors'": ("5.5 x", "met"),
        "its flags that differ, in 250 images": ("1.5", "NOT MET"),
        "AutoAttack, net misses in 250 images": ("0", "met"),
    }
    for more in (dict(n=128), dict(attack="AutoAttack, shortened: 2000 queries, 4 targets")):
        few = [
            autoattack(AUTHORS, 1.0, 0, 0, **more),
            autoattack("fastadv fp32", 9.0, 0, 0, **more),
        ]
        assert list(verdicts(few)) == ["AutoAttack, net misses in 250 images"]


def test_kernels_and_synchronisations_are_judged_for_graphs_and_eager_steps_apart(made):
    rows = [
        made(
            f"fastadv{kind}",
            kernels,
            suite=gpu_steps.SUITE,
            case="PGD step",
            unit="kernels",
            extra={"synchronisations": waits},
        )
        for kind, kernels, waits in (("", 3.0, 0.0), (" graph", 2.0, 0.05))
    ]
    rows.append(made("torchattacks", 9.0, suite=gpu_steps.SUITE, case="PGD step"))
    assert verdicts(rows) == {
        "synchronisations of a captured step": ("0.05", "PGD step, fastadv graph", "NOT MET"),
        "kernels of a PGD step": ("3", "fastadv", "NOT MET"),
        "synchronisations of an eager step": ("0", "PGD step, fastadv", "met"),
    }


def test_an_epoch_is_compared_with_both_loops(made):
    times = {gpu_bars.ON_DEVICE: 10.0, gpu_bars.CPU_LOADER: 24.0, gpu_training.GRAPHED: 5.0}
    rows = [
        made(
            name,
            ms,
            suite=gpu_training.SUITE,
            case=gpu_epochs.CASE,
            ratio=10.0 / ms,
            baseline=gpu_bars.ON_DEVICE,
        )
        for name, ms in times.items()
    ]
    found = {name: line[::2] for name, line in verdicts(rows).items()}
    assert found == {
        "Fast-AT epoch over a CPU loader": ("4.8 x", "NOT MET"),
        "Fast-AT epoch over data on the device": ("2 x", "met"),
    }


@pytest.fixture
def run_of(made):
    """The row of a speed-run."""

    def make(data, seconds, robust, *, seeds, samples=10_000, date="2026-01-02T00:00:00+00:00"):
        eps = speedrun.PLANS[data].eps
        row = made(
            "fastadv",
            seconds,
            suite=speedrun.SUITE,
            case=f"{data}, x",
            unit="s",
            extra={"seeds": float(seeds), "worst": robust},
            baseline="fastadv",
            ratio=1.0,
            robustness=schema.Robustness(
                "PGD", "linf", eps, 0.01, 50, 10, 0, samples, "net", data, 0.99, robust
            ),
        )
        return dataclasses.replace(row, environment=dataclasses.replace(row.environment, date=date))

    return make


def test_a_speed_run_counts_if_it_is_as_robust_as_asked_over_enough_seeds(run_of):
    found = verdicts(
        [run_of("cifar10", 19.0, 0.451, seeds=5), run_of("mnist", 2.0, 0.86, seeds=10)]
    )
    assert found == {
        "CIFAR-10 speed-run to 45 % (5 seeds)": ("19 s", "cifar10, x, 45.10 %, 5 seeds", "met"),
        "MNIST speed-run to 87 % (10 seeds)": ("inf s", "mnist, x, 86.00 %, 10 seeds", "NOT MET"),
    }
    few = [
        run_of("cifar10", 1.0, 0.5, seeds=4),
        run_of("mnist", 1.0, 0.9, seeds=9),
        run_of("mnist", 1.0, 0.9, seeds=10, samples=1000),
    ]
    assert verdicts(few) == {}


def test_the_newest_speed_run_of_each_kind_is_in_the_table(run_of, tmp_path, capsys):
    later = "2026-02-02T00:00:00+00:00"
    rows = [
        run_of("cifar10", 30.0, 0.46, seeds=5),
        run_of("cifar10", 18.0, 0.46, seeds=5, date=later),
        run_of("mnist", 2.5, 0.88, seeds=10),
    ]
    schema.append_rows(rows, tmp_path / "results")
    gpu.main(["--only", "table", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "18 s" in out and "2.5 s" in out and "30 s" not in out


def test_the_checks_numbers_are_judged():
    found = verdicts([], {"tests failed": 0.0, "tests error": 1.0, "memcheck errors": 0.0})
    assert found == {
        "GPU tests that fail": ("1", "tests error", "NOT MET"),
        "sanitizer errors": ("0", "memcheck errors", "met"),
    }
