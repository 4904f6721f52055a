"""The bars of a GPU run and those of ops: each is compared with the right rows."""

from types import SimpleNamespace

import pytest
import torch
from gpu_verdicts import verdicts

from benchmarks.autoattack.entrants import AUTHORS
from benchmarks.gpu import bars as gpu_bars
from benchmarks.gpu import epochs as gpu_epochs
from benchmarks.gpu import op_cases as gpu_op_cases
from benchmarks.gpu import ops as gpu_ops
from benchmarks.gpu import training as gpu_training
from benchmarks.harness import schema
from benchmarks.ops import cases as op_cases

OURS = "fastadv (triton)"


EAGER, COMPILED = "eager chain", "torch.compile of the chain"


LARGE, SMALL, LOGITS = (256, 3, 224, 224), (128, 3, 32, 32), (4096, 21000)


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
    chains = {(op, shape) for op, shape, _ in gpu_ops.cases_to_compile(SimpleNamespace(tiny=False))}
    assert {("linf_step", LARGE), ("l2_step", LARGE)} <= chains
    heads = ("ce_head", "margin_head", "dlr_head")
    assert {(op, shape) for op in heads for shape in gpu_bars._LOGITS} <= chains
    assert not [*gpu_ops.cases_to_compile(SimpleNamespace(tiny=True))]
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
