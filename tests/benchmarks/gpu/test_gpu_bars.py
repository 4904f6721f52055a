"""The bars of a GPU run: each is compared with the right rows, and nothing else."""

import dataclasses

import pytest
import torch

from benchmarks.autoattack.entrants import AUTHORS, Budget
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import attack_providers as gpu_attack_providers
from benchmarks.gpu import attacks as gpu_attacks
from benchmarks.gpu import autoattack as gpu_autoattack
from benchmarks.gpu import bars as gpu_bars
from benchmarks.gpu import epochs as gpu_epochs
from benchmarks.gpu import op_cases as gpu_op_cases
from benchmarks.gpu import ops as gpu_ops
from benchmarks.gpu import steps as gpu_steps
from benchmarks.gpu import training as gpu_training
from benchmarks.harness import schema
from benchmarks.ops import cases as op_cases
from benchmarks.training import speedrun

OURS = "fastadv (triton)"
EAGER, COMPILED = "eager chain", "torch.compile of the chain"
LARGE, SMALL, LOGITS = (256, 3, 224, 224), (128, 3, 32, 32), (4096, 21000)
RESNET = gpu_attacks.CASES[0].name


def verdicts(rows, numbers=None):
    """Of each bar that was measured: (value, where, verdict)."""
    lines = gpu_bars.judged(rows, numbers or {})
    return {line[0]: tuple(line[3:]) for line in lines if line[-1] != "not measured"}


@pytest.fixture
def made(with_changes):
    """A row with one time, faster by so much than its baseline."""

    def make(provider, time=1.0, **changes):
        return with_changes(provider=provider, q20=time, q50=time, q80=time, **changes)

    return make


@pytest.fixture
def of_op(made):
    """fastadv, the eager chain and the compiled one on an op, with their times."""

    def make(case, shape, times, dtype="float32", percent=85.0, moved=10**8):
        return [
            made(
                provider,
                time,
                suite="gpu_ops",
                case=case,
                shape=shape,
                dtype=dtype,
                baseline=EAGER,
                ratio=times[EAGER] / time,
                bandwidth=schema.Bandwidth(moved, 4000.0, percent),
            )
            for provider, time in times.items()
        ]

    return make


def test_nothing_is_measured_without_rows():
    lines = gpu_bars.judged([], {})
    assert {line[-1] for line in lines} == {"not measured"}
    assert len({line[0] for line in lines}) == len(lines) == 28
    # what is measured, and the tests and the sanitizer
    assert sum(line[1] == "GPU goals" for line in lines) == 24


def test_every_bar_has_its_goal():
    goals = {line[0]: line[2] for line in gpu_bars.judged([], {}) if line[1] == "GPU goals"}
    assert list(goals.values()) == [
        ">= 90 %",
        ">= 4 x",
        ">= 0.97 x",
        ">= 80 %",
        ">= 4 x",
        ">= 0.97 x",
        "<= 15 us",
        "<= 15 us",
        ">= 80 %",
        ">= 3 x",
        ">= 20 x",
        ">= 20 x",
        ">= 3 x",
        ">= 1.8 x",
        "<= 3 %",
        ">= 5 x",
        "<= 1",
        "<= 0",
        ">= 5 x",
        ">= 1.8 x",
        "<= 20 s",
        "<= 3 s",
        "<= 0",
        "<= 0",
    ]


def test_the_names_in_bars_are_those_that_sections_write():
    device, dtype = torch.device("cpu"), torch.float32
    images = op_cases.IMAGE_OPS | gpu_op_cases.IMAGE_OPS
    names = {
        images[op]((2, 3, 4, 4), dtype, device).name
        for op in ("linf_step", "l2_step", "project_l1")
    }
    of_logits = op_cases.HEAD_OPS | gpu_op_cases.HEAD_OPS
    names |= {build((2, 7), dtype, device).name for build in of_logits.values()}
    heads = {*gpu_bars._HEADS, gpu_bars._TRACKED}
    assert names == {"linf_step_", "l2_step_", "project_l1", *heads}
    assert {LARGE, SMALL} <= set(gpu_ops.IMAGES) and set(gpu_bars._LARGE) <= set(gpu_ops.IMAGES)
    assert set(gpu_bars._LOGITS) <= set(gpu_ops.LOGITS)
    # what is compared with torch.compile is compiled at those shapes
    assert set(gpu_bars._LOGITS) <= set(gpu_ops.LOGITS[:2]) and LARGE in gpu_ops.IMAGES[:2]
    assert {"linf_step", "ce_head", "margin_head", "dlr_head"} <= gpu_ops._COMPILED
    assert RESNET == "PGD-20 preact_resnet18 batch 128"
    assert gpu_training.GRAPHED == gpu_bars.GRAPHED and gpu_epochs.CASE == gpu_bars.EPOCH


def test_ops_are_compared_at_the_shape_and_dtype_that_are_named(of_op):
    slow = {OURS: 9.0, EAGER: 10.0, COMPILED: 1.0}
    rows = of_op("linf_step_", LARGE, {OURS: 2.0, EAGER: 10.0, COMPILED: 1.9}, percent=91.0)
    for others in (
        of_op("linf_step_", SMALL, slow),
        of_op("linf_step_", LARGE, slow, dtype="bfloat16"),
        of_op("linf_step_ (momentum)", LARGE, slow),
        of_op("fab_step_ (linf)", LARGE, slow),
    ):
        rows += others
    where = f"linf_step_ 256x3x224x224, {OURS}"
    assert verdicts(rows) == {
        "L-inf step, of copy bandwidth": ("91 %", where, "met"),
        "L-inf step over the eager chain": ("5 x", where, "met"),
        "L-inf step over torch.compile": ("0.95 x", where, "NOT MET"),
    }


def test_the_worst_head_decides(of_op):
    fast = {OURS: 1.0, EAGER: 8.0, COMPILED: 2.0}
    rows = of_op("loss_head_ (ce)", LOGITS, fast, percent=95.0)
    rows += of_op("loss_head_ (dlr)", (4096, 1000), {OURS: 1.0, EAGER: 3.0, COMPILED: 1.0})
    rows += of_op("loss_head_ (ce)", (128, 10), {OURS: 1.0, EAGER: 1.0}, percent=1.0)
    rows += of_op(gpu_bars._TRACKED, LOGITS, {OURS: 1.0, EAGER: 1.0}, percent=79.0)
    found = verdicts(rows)
    assert found["loss heads, of copy bandwidth"][::2] == ("79 %", "NOT MET")
    assert found["loss heads over the eager chain"] == (
        "3 x",
        f"loss_head_ (dlr) 4096x1000, {OURS}",
        "NOT MET",
    )
    assert found["loss heads over torch.compile"][::2] == ("1 x", "met")
    assert len(found) == 3


def test_the_l2_step_is_judged_where_memory_decides(of_op):
    rows = of_op("l2_step_", LARGE, {OURS: 1.0, EAGER: 3.5}, percent=82.0)
    rows += of_op("l2_step_", SMALL, {OURS: 1.0, EAGER: 2.0}, percent=30.0, moved=9 * 10**6)
    found = verdicts(rows)
    assert {name: line[::2] for name, line in found.items()} == {
        "L2 step, of copy bandwidth": ("82 %", "met"),
        "L2 step over the eager chain": ("3.5 x", "met"),
    }


def test_the_projection_is_compared_with_the_authors_and_each_size_of_images_apart(of_op):
    rows = of_op("project_l1", LARGE, {OURS: 1.0, EAGER: 2.0, AUTHORS: 25.0})
    rows += of_op("project_l1", SMALL, {OURS: 1.0, EAGER: 90.0, AUTHORS: 19.0})
    rows += of_op("project_l1", (1024, 3, 32, 32), {OURS: 1.0, EAGER: 2.0, AUTHORS: 40.0})
    found = verdicts(rows)
    assert found["L1 projection over the authors', 3x224x224"][::2] == ("25 x", "met")
    assert found["L1 projection over the authors', 3x32x32"] == (
        "19 x",
        f"project_l1 128x3x32x32, {OURS}",
        "NOT MET",
    )
    without = [row for row in rows if row.provider != AUTHORS]
    assert verdicts(without) == {}


def test_the_hosts_time_is_of_each_op(made):
    rows = [
        made(provider, us, suite="gpu_ops", case=f"{op}, host time", unit="us")
        for op, provider, us in (
            ("linf_step_", OURS, 14.0),
            ("loss_head_ (ce)", OURS, 16.0),
            ("linf_step_", EAGER, 99.0),
        )
    ]
    assert verdicts(rows) == {
        "host time of linf_step_": ("14 us", OURS, "met"),
        "host time of the cross-entropy head": ("16 us", OURS, "NOT MET"),
    }


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
