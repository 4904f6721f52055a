"""What the GPU sections measure, on a CPU; their calls of torch.cuda with stand-ins for it."""

import contextlib
import dataclasses
import warnings

import pytest
import torch

from benchmarks.autoattack.entrants import AUTHORS, Budget
from benchmarks.gpu import attack_providers as gpu_attack_providers
from benchmarks.gpu import autoattack as gpu_autoattack
from benchmarks.gpu import epochs as gpu_epochs
from benchmarks.gpu import networks as gpu_networks
from benchmarks.gpu import op_cases as gpu_op_cases
from benchmarks.gpu import ops as gpu_ops
from benchmarks.gpu import session as gpu_session
from benchmarks.gpu import steps as gpu_steps
from fastadv import ops
from fastadv.ops import backend

CPU = torch.device("cpu")


@pytest.fixture
def problem():
    return gpu_networks.problem("preact_resnet18", 4, CPU, tiny=True)


def test_every_op_on_odd_shapes_is_what_its_reference_says(capsys):
    gpu_ops.exercise(CPU)
    said = capsys.readouterr().out.splitlines()
    assert {"l1_start 5x3x9x11", "cw_step_ 3x9x11", "l0_step_ 3x57x59"} <= set(said)


def test_no_reference_takes_the_place_of_a_kernel_on_a_gpu(monkeypatch, session):
    """Else the time of a reference, or its accesses, would stand under the kernel's name."""
    insisted = []

    def note(*_, **__):
        insisted.append(backend.is_triton_chosen())
        raise NotImplementedError("that suffices")

    monkeypatch.setattr(backend, "explain", lambda device: ("triton", "tensors are on cuda"))
    monkeypatch.setattr(gpu_ops, "_host_times", lambda session: None)
    monkeypatch.setattr(gpu_ops, "HEAD_OPS", {"head": note})
    monkeypatch.setattr(gpu_ops, "IMAGE_OPS", {})
    with pytest.raises(NotImplementedError):
        gpu_ops.exercise(CPU)
    gpu_ops.main(session)
    assert len(insisted) >= 2 and all(insisted) and not backend.is_triton_chosen()


def test_bare_passes_have_the_gradient_of_an_eager_pass(problem):
    run = gpu_networks.bare_passes(problem, "fp32", channels_last=True, count=2)
    assert gpu_attack_providers._same_gradient(problem, run(), "fp32").error < 1e-5
    with pytest.raises(ValueError, match="a wrong result has no time"):
        gpu_attack_providers._same_gradient(problem, run().neg(), "fp32")
    assert not problem.x.requires_grad


def test_the_radius_leaves_about_half_of_the_samples():
    problem = gpu_networks.problem("mnist_net", 64, CPU, tiny=True)
    eps = gpu_networks.radius_for_half(problem)
    settings = gpu_attack_providers.Settings("pgd", "linf", eps, eps / 4, 10)
    attack = gpu_attack_providers.attacks.textbook(settings, problem)
    robust = gpu_attack_providers._robust(settings, problem, attack())
    assert 0.2 <= robust.count("1") / 64 <= 0.8


def test_a_claim_outside_the_ball_is_no_success(problem):
    settings = gpu_attack_providers.Settings("pgd", "linf", 1e-6, 1e-6, 1)
    far = torch.rand_like(problem.x)
    assert gpu_attack_providers._robust(settings, problem, far) == "1111"


@pytest.mark.parametrize(
    "few, restarts, bare",
    [
        (False, 1, {"bare passes fp32", "bare passes bf16"}),
        (True, 1, {"bare passes bf16"}),
        (False, 2, set()),
    ],
)
def test_a_gpu_gets_bare_passes_where_every_step_is_made(problem, few, restarts, bare):
    settings = gpu_attack_providers.Settings("pgd", "linf", 0.1, 0.02, 2, restarts)
    failed = []
    runs = gpu_attack_providers.build(
        settings, problem, few=few, on_gpu=True, report=lambda name, error: failed.append(name)
    )
    assert {name for name in runs if name.startswith("bare")} == bare
    assert ("textbook" in runs) != few
    assert any("all steps" in name for name in [*runs, *failed]) == (restarts == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 7), (64, 301)])
@pytest.mark.parametrize("name", gpu_op_cases.HEAD_OPS)
def test_the_eager_chain_of_a_head_has_its_gradient(name, shape, dtype):
    case = gpu_op_cases.HEAD_OPS[name](shape, dtype, CPU)
    eager = case.eager()
    assert eager.any() and case.check("eager chain", eager).error <= case.check("", eager).tolerance
    with pytest.raises(ValueError, match="a wrong result has no time"):
        case.check("eager chain", -eager)


def _sorting(x, delta, eps):
    """The authors' signature and result: what to add to delta."""
    return ops.project_l1(x + delta, x, eps=eps) - (x + delta)


def test_the_authors_projection_is_timed_beside_ours(session, monkeypatch):
    shape = (5, 3, 9, 11)
    case = gpu_op_cases.project_l1(shape, torch.float32, CPU)
    theirs = gpu_op_cases.authors_project_l1(_sorting, shape, CPU)
    assert case.check(AUTHORS, theirs()).error <= case.check("", case.fused()).tolerance
    wrong = gpu_op_cases.authors_project_l1(lambda x, delta, eps: 0 * delta, shape, CPU)
    with pytest.raises(ValueError, match="a wrong result has no time"):
        case.check(AUTHORS, wrong())
    monkeypatch.setattr(gpu_ops, "_authors_project_l1", lambda session, shape: theirs)
    gpu_ops._measure(session, case, 10.0, compiled=False)
    assert [row.provider for row in session.rows][1:] == ["eager chain", AUTHORS]
    session.rows.clear()
    gpu_ops._measure(
        session, gpu_op_cases.project_l1(shape, torch.bfloat16, CPU), 10.0, compiled=False
    )
    assert AUTHORS not in {row.provider for row in session.rows}


def test_a_compiled_chain_is_timed_beside_the_chain_and_adds_one_row(session, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda chain, dynamic: chain)
    case = gpu_ops.IMAGE_OPS["linf_step"]((5, 3, 9, 11), torch.float32, CPU)
    gpu_ops._measure(session, case, 10.0, compiled=True)
    (row,) = session.rows
    assert (row.provider, row.baseline) == ("torch.compile of the chain", "eager chain")


@pytest.mark.parametrize(
    "seconds, n, budget",
    [
        ({1000: 44.0}, 1000, Budget()),
        ({1000: 46.0, 128: 44.0}, 128, Budget()),
        ({1000: 99.0, 128: 99.0}, 128, Budget(10, 100, 1)),
    ],
)
def test_as_many_images_are_attacked_as_the_time_suffices_for(
    session, problem, monkeypatch, seconds, n, budget
):
    whole = dataclasses.replace(problem, x=torch.zeros(1000, 1), y=torch.zeros(1000))
    monkeypatch.setattr(gpu_session.Session, "left", 100.0)
    monkeypatch.setattr(gpu_autoattack, "_predicted", lambda part, _: seconds[len(part.x)])
    session.tiny = False
    part, chosen = gpu_autoattack._fitting(session, whole)
    assert (len(part.x), len(part.y), chosen) == (n, n, budget)


def test_every_loader_gives_each_image_once_an_epoch(session):
    images = torch.arange(24, dtype=torch.uint8)[:, None, None, None].expand(24, 3, 4, 4)
    data = gpu_epochs.Images(images.contiguous(), torch.arange(24))
    for batches in (
        gpu_epochs._on_device(data, 4, CPU),
        gpu_epochs._from_host(data, 4, session),
        gpu_epochs._by_device_loader(data, 4, CPU),
    ):
        for _ in range(2):
            epoch = [next(batches) for _ in range(6)]
            x, y = (torch.cat(parts) for parts in zip(*epoch, strict=True))
            assert y.tolist() != sorted(y.tolist()) == list(range(24))
            assert torch.equal(x[:, 0, 0, 0], y / 255) and x.shape == (24, 3, 4, 4)


class FakeGraph:
    """Stands for torch.cuda.CUDAGraph: what was done under capture is done again."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class FakeStream:
    def wait_stream(self, other: "FakeStream") -> None:
        pass


@pytest.fixture
def fake_cuda(monkeypatch):
    """The calls of torch.cuda that the sections make, without a device."""
    modes = []
    for name, value in {
        "synchronize": lambda device=None: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_allocated": lambda device=None: 2**20,
        "max_memory_allocated": lambda device=None: 3 * 2**20,
        "CUDAGraph": FakeGraph,
        "graph": lambda graph: contextlib.nullcontext(),
        "Stream": lambda device=None: FakeStream(),
        "current_stream": lambda device=None: FakeStream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "set_sync_debug_mode": modes.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return modes


def test_passes_are_captured_once_and_replayed(fake_cuda):
    calls = []

    def once() -> torch.Tensor:
        calls.append(1)
        return torch.ones(1)

    graph, output = gpu_networks._captured(once, CPU)
    graph.replay()
    assert len(calls) == 4 and graph.replays == 1 and output.item() == 1


def test_the_peak_memory_is_of_the_first_call(fake_cuda):
    watched = gpu_attack_providers.Watched(lambda: torch.zeros(1), torch.device("cuda"))
    watched(), watched()
    assert watched.peak_mib == 2.0


def test_synchronisations_are_counted_and_the_mode_put_back(fake_cuda, session):
    session.device = torch.device("cuda")

    def attack(steps: int, eps: float) -> torch.Tensor:
        for _ in range(3 + 2 * steps):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return torch.zeros(1)

    found = gpu_steps._synchronisations(session, attack)
    assert found == {"synchronisations": 2.0, "synchronisations_a_call": 23}
    assert fake_cuda == ["warn", "default"] * 2


def test_the_plain_loop_is_run_with_synchronisations_forbidden(fake_cuda, problem, capsys):
    problem.model.requires_grad_(False)
    gpu_steps._run_strictly(problem)
    assert fake_cuda == ["error", "default"] * 2
    assert capsys.readouterr().out.count("no synchronisation in the plain loop") == 2


def test_a_loop_that_is_not_watched_is_no_proof(fake_cuda):
    with pytest.raises(RuntimeError, match="run_chunk was not called"), gpu_steps._strict_loop():
        pass
