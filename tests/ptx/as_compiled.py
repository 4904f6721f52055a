"""Every op's kernel, as compiled, against its reference on what attacks give it in mid-attack.

Run by test_kernels_as_compiled.py, in a process where FASTADV_EMULATE is set.
"""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from fastadv.kernels import slots as columns
from fastadv.ops import agreement, registry
from fastadv.selfcheck.recording import calls_of_attacks

sys.path.append(str(Path(__file__).parents[1] / "ops"))  # where the attacks lie

import test_implementations as implementations  # noqa: E402
from box_problems import box_of  # noqa: E402

SHAPES = {"odd": (3, 5, 7), "aligned": (3, 8, 8)}  # 105 elements, and 192: a multiple of 16
# rows above 64 elements take the kernels for long rows, in chunks of 128
SHORT_ROWS = {
    "steps.l0": dict(ROW_LIMIT=64, LONG_ROW=(128, 4)),
    "steps.l1": dict(ROW_LIMIT=64, LONG_ROW=(128, 4)),
    "steps.l2": dict(ROW_LIMIT=64, BOX_ROW_LIMIT=64, CHUNK=128),
    "apgd.l2": dict(ROW_LIMIT=64, BOX_ROW_LIMIT=64, LONG_ROW=(128, 4)),
    "fab.step": dict(ROW_LIMIT=64, LONG_ROW=(128, 4)),
    "nearest.primal_dual": dict(ROW_BLOCK=64, LONG_ROW=(128, 4)),
    "nearest.radius": dict(ROW_LIMIT=64, LONG_ROW=(128, 4), _LONG_L1=(128, 4)),
}


@pytest.fixture(scope="module", params=SHAPES)
def calls(request):
    return calls_of_attacks(SHAPES[request.param])


def parameters(name: str) -> list[str]:
    overload = getattr(torch.ops.fastadv, name).default
    return [argument.name for argument in overload._schema.arguments]


WITH_ROWS = [name for name in implementations.OPS if "eps_rows" in parameters(name)]
WITH_SLOTS_OR_ROWS = [
    name for name in implementations.OPS if {"slots", "eps_rows"} & set(parameters(name))
]


STEPS = ("l0_step_", "l1_step_", "l2_step_", "linf_step_")


def ops_with(*arguments: str):
    """The ops with one of these arguments; without any, all ops."""
    return [
        name
        for name in implementations.OPS
        if not arguments or set(arguments) & set(parameters(name))
    ]


def given(name: str, arguments: tuple) -> dict:
    """As the attack calls the op."""
    return dict(zip(parameters(name), arguments, strict=True))


def for_each_sample(name: str, arguments: tuple) -> dict:
    """Every radius, step and share another one in each sample, and every second slot at rest."""
    call = given(name, arguments)
    shares = torch.linspace(0.5, 1.5, len(arguments[0]))
    for rows, scalar in (("eps_rows", "eps"), ("step_rows", "step_size")):
        if rows in call:
            call[rows] = call[scalar] * shares
    if "sparsity_rows" in call:
        call["sparsity_rows"] = shares / 4
    if name in STEPS:
        call["slots"] = torch.zeros(len(shares), columns.WIDTH, dtype=torch.int32)
    if call.get("slots") is not None:
        call["slots"] = call["slots"].clone()
        call["slots"][:, columns.ACTIVE] = torch.arange(len(shares), dtype=torch.int32) % 2
    return call


def for_all_samples(name: str, arguments: tuple) -> dict:
    """One radius, step and share, and no slots."""
    call = given(name, arguments)
    optional = ("eps_rows", "step_rows", "sparsity_rows")
    call |= {rows: None for rows in optional if rows in call}
    if name in STEPS:
        call["slots"] = None
    return call


def in_boxes(call: dict) -> dict:
    """With a box for each sample, where 16 divides its size with units; the ball is part of it."""
    units = call["x"][0].numel() % 16 == 0
    return call | dict(box=box_of(call["x"], units=units, ball=0.05))


def with_momentum(call: dict) -> dict:
    momentum = torch.full_like(call["x_adv"], 0.25)
    return call | dict(momentum=momentum, decay=0.5)


def assert_the_kernel_is_the_reference(name: str, call: dict) -> None:
    """Within the op's tolerance: the same bits where nothing is added up.

    What two nearly equal losses decide (IMPROVED) their last bits may decide otherwise, and no GPU
    promises those of an exponential. It must then be what a trial on a device lets pass: decided
    otherwise by the reference too, of arguments that are rounded otherwise.
    """
    run, arguments = registry.implementations()[name], tuple(call.values())
    expected = implementations.results(run.reference, arguments)
    got = implementations.results(run.launch, arguments)
    numbers = [(a, b) for a, b in zip(got, expected, strict=True) if b.is_floating_point()]
    implementations.assert_agree(*zip(*numbers, strict=True), run.trial.tolerance_of(arguments))
    decided = [(a, b) for a, b in zip(got, expected, strict=True) if not b.is_floating_point()]
    if not all(torch.equal(a, b) for a, b in decided):
        samples = agreement.rows_of(arguments, run.trial.shared)
        found = run.trial.difference(run.launch, arguments, samples)
        assert found.is_allowed, found


@pytest.mark.parametrize("name", ops_with())
def test_in_mid_attack(name, calls):
    for arguments in calls[name]:
        assert_the_kernel_is_the_reference(name, given(name, arguments))


@pytest.mark.parametrize("name", ops_with("slots", "eps_rows"))
def test_for_each_sample(name, calls):
    assert_the_kernel_is_the_reference(name, for_each_sample(name, calls[name][0]))


@pytest.mark.parametrize("name", ops_with("eps_rows"))
def test_for_all_samples(name, calls):
    assert_the_kernel_is_the_reference(name, for_all_samples(name, calls[name][0]))


@pytest.mark.parametrize("form", [for_each_sample, for_all_samples])
@pytest.mark.parametrize("name", STEPS)
def test_momentum(name, form, calls):
    assert_the_kernel_is_the_reference(name, with_momentum(form(name, calls[name][0])))


# beside the boxes with units that attacks give
@pytest.mark.parametrize("calls", ["odd"], indirect=True)
@pytest.mark.parametrize("name", ops_with("box"))
def test_boxes_without_units(name, calls):
    call = in_boxes(for_each_sample(name, calls[name][0]))
    assert_the_kernel_is_the_reference(name, call)
    if name == "linf_step_":
        assert_the_kernel_is_the_reference(name, with_momentum(call))


@pytest.mark.parametrize("calls", ["aligned"], indirect=True)
def test_starts_in_boxes_with_units(calls):
    call = in_boxes(for_each_sample("random_start", calls["random_start"][0]))
    assert_the_kernel_is_the_reference("random_start", call)


@pytest.fixture
def short_rows(monkeypatch):
    for module, sizes in SHORT_ROWS.items():
        there = importlib.import_module(f"fastadv.kernels.{module}")
        for constant, value in sizes.items():
            monkeypatch.setattr(there, constant, value)


@pytest.mark.parametrize("name", ["apgd_l2_step_", "fab_step_", "l0_step_", "radius_step_"])
def test_long_rows(name, calls, short_rows):
    for arguments in calls[name]:
        assert_the_kernel_is_the_reference(name, given(name, arguments))
        assert_the_kernel_is_the_reference(name, for_each_sample(name, arguments))


@pytest.mark.parametrize("calls", ["aligned"], indirect=True)
@pytest.mark.parametrize("name", ["apgd_l2_step_", "l2_step_"])
def test_boxes_of_long_rows(name, calls, short_rows):
    call = in_boxes(for_each_sample(name, calls[name][0]))
    assert_the_kernel_is_the_reference(name, with_momentum(call) if name in STEPS else call)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("form", [for_each_sample, for_all_samples])
@pytest.mark.parametrize("name", ["l0_step_", "l1_step_", "l2_step_"])
def test_steps_over_long_rows(name, form, momentum, calls, short_rows):
    call = form(name, calls[name][0])
    assert_the_kernel_is_the_reference(name, with_momentum(call) if momentum else call)
