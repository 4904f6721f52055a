"""Section "ops": every op against the copy bandwidth of the run, and the host's time of a call."""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.autoattack import parties as autoattack_parties
from benchmarks.autoattack.entrants import AUTHORS
from benchmarks.gpu import op_autoattack as gpu_op_autoattack
from benchmarks.gpu import op_cases as gpu_op_cases
from benchmarks.gpu.session import Session
from benchmarks.harness import harness
from benchmarks.ops import cases as op_cases
from benchmarks.ops.cases import OpCase
from fastadv.ops import agreement, backend, registry
from fastadv.ops.registry import Implementations
from fastadv.selfcheck.recording import calls_of_attacks

SUITE = "gpu_ops"
_CALLS = 200  # of one timing of the host
_TIMED = "one call; on a GPU by events, the L2 cache overwritten before each"
_HOST = f"the host's time of a call, the mean of {_CALLS} that nobody waits for"
_NOT_TIMED = "allocation of inputs, first call, compilation"

IMAGE_OPS = op_cases.IMAGE_OPS | gpu_op_cases.IMAGE_OPS | gpu_op_autoattack.IMAGE_OPS
HEAD_OPS = op_cases.HEAD_OPS | gpu_op_cases.HEAD_OPS
# whose eager chain is plain torch, which torch.compile can fuse; in the first two shapes
_COMPILED = {"linf_step", "l2_step", "ce_head", "margin_head", "dlr_head"}
# whose tables of windows would take minutes at 224x224
_SMALL_ONLY = {"square_l2", "square_l1"}

# the most telling first: what the time does not suffice for is the end of this list
IMAGES = ((1024, 3, 32, 32), (256, 3, 224, 224), (128, 3, 32, 32), (64, 3, 224, 224))
LOGITS = ((4096, 1000), (4096, 21000), (128, 10))
_TINY = ((5, 3, 9, 11),), ((5, 7),)
# of kernels that no case above launches: rows longer than a block, and a start of two passes
_LONG = (2, 3, 57, 59)
_LONG_ROWS = ("l1_step", "apgd_l2", "fab_linf")
_OTHER_KERNELS = [
    *[(name, IMAGE_OPS[name], _LONG) for name in _LONG_ROWS],
    ("l2_momentum", gpu_op_cases.step("l2", "momentum"), _LONG),
    ("l1_start", op_cases.random_start("l1_gaussian"), _TINY[0][0]),
]


def main(session: Session) -> None:
    with _insisting(session.device):
        _run(session)


def _insisting(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """No reference may take a kernel's place: its time would stand under the kernel's name."""
    runs_kernels = backend.explain(device)[0] == "triton"
    return backend.use_backend("triton") if runs_kernels else contextlib.nullcontext()


def _run(session: Session) -> None:
    elements = 10**5 if session.tiny else 2**28
    copied = harness.copy_bandwidth(session.device, elements=elements, flush=session.on_gpu)
    print(f"  copy {copied:.1f} GB/s")
    with session.guarded("host time"):
        _host_times(session)
    cases = [(*case, False) for case in _cases(session)]
    # last: compiling ten chains takes a minute, and every other row is worth more
    cases += [(*case, True) for case in cases_to_compile(session)]
    for name, shape, dtype, compiled in cases:
        label = f"{name} {'x'.join(map(str, shape))} {_name(dtype)}{', compiled' * compiled}"
        if session.may_begin(label):
            with session.guarded(label):
                builders = HEAD_OPS if len(shape) == 2 else IMAGE_OPS
                case = builders[name](shape, dtype, session.device)
                _measure(session, case, copied, compiled)


def cases_to_compile(session: Session) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """Cases whose chain torch.compile is given too: none in a rehearsal."""
    for name, shape, dtype in _cases(session):
        shapes = LOGITS if len(shape) == 2 else IMAGES
        if name in _COMPILED and dtype == torch.float32 and shape in shapes[:2]:
            yield name, shape, dtype


def _cases(session: Session) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """(op, shape, dtype), shape by shape, fp32 first."""
    images, logits = _TINY if session.tiny else (IMAGES, LOGITS)
    for dtype in (torch.float32, torch.bfloat16):
        for index in range(max(len(images), len(logits))):
            for builders, shapes in ((HEAD_OPS, logits), (IMAGE_OPS, images)):
                for name in builders if index < len(shapes) else ():
                    shape = shapes[index]
                    if name in _SMALL_ONLY and shape[-1] > 64:
                        continue
                    yield name, shape, dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _measure(session: Session, case: OpCase, copied: float, compiled: bool) -> None:
    description = harness.Case(
        suite=SUITE,
        name=case.name,
        shape=case.shape,
        dtype=_name(case.dtype),
        n=case.shape[0],
        timed=_TIMED,
        not_timed=_NOT_TIMED,
        baseline="eager chain",
        unit="us",
        bytes_moved=case.floor_bytes,
    )
    runs = op_cases.providers(case, device=session.device, compiled=compiled)
    if compiled:  # beside the chain alone: fastadv has its row
        own = next(iter(runs))
        del runs[own]
    if case.name == "project_l1" and case.dtype == torch.float32:
        with session.guarded(f"{case.name}, {AUTHORS}"):
            runs[AUTHORS] = _authors_project_l1(session, case.shape)
    print(f"{case.name} {case.shape} {description.dtype}")
    timing = harness.Timing(rounds=40, warmup=3, seconds=0.4, flush=session.on_gpu)
    rows = session.measure(description, runs, case.check, timing, copy_gb_s=copied)
    session.add([row for row in rows if not compiled or row.provider != row.baseline])


def _authors_project_l1(session: Session, shape: tuple[int, ...]) -> harness.Run:
    folder = session.plan.authors
    module = autoattack_parties.authors_package(None if folder is None else Path(folder))
    base = importlib.import_module(f"{module.__name__}.autopgd_base")
    return gpu_op_cases.authors_project_l1(base.L1_projection, shape, session.device)


def _host_times(session: Session) -> None:
    """What a call of two ops costs the host, on tensors too small to keep a device busy."""
    for name, builders, shape in (
        ("linf_step", IMAGE_OPS, (8, 3, 8, 8)),
        ("ce_head", HEAD_OPS, (8, 10)),
    ):
        case = builders[name](shape, torch.float32, session.device)
        runs = op_cases.providers(case, device=session.device, compiled=False)
        description = harness.Case(
            suite=SUITE,
            name=f"{case.name}, host time",
            shape=shape,
            dtype="float32",
            n=shape[0],
            timed=_HOST,
            not_timed=_NOT_TIMED,
            baseline="eager chain",
            unit="us",
        )
        print(description.name)
        clock = harness.host_clock(session.device, calls=5 if session.tiny else _CALLS)
        session.add(
            session.measure(
                description,
                runs,
                case.check,
                harness.Timing(11, clock=clock),
            )
        )


def exercise(device: torch.device) -> None:
    """Every op and every kernel on odd shapes, results compared: what compute-sanitizer watches.

    Raises ValueError for the first wrong result.
    """
    print(*backend.explain(device), sep=": ")
    images, logits = _TINY
    cases = [(name, build, logits[0]) for name, build in HEAD_OPS.items()]
    cases += [(name, build, images[0]) for name, build in IMAGE_OPS.items()]
    with _insisting(device):
        for name, build, shape in cases + _OTHER_KERNELS:
            print(name, "x".join(map(str, shape)), flush=True)
            case = build(shape, torch.float32, device)
            case.check("fastadv", case.fused())
        _exercise_without_cases(_TINY[0][0][1:], device, most=8)
        _exercise_without_cases(_LONG[1:], device, most=1)


def _exercise_without_cases(shape: tuple[int, ...], device: torch.device, *, most: int) -> None:
    """The ops that no case times, on at most so many of the calls that attacks on images of that
    shape make."""
    calls = calls_of_attacks(shape, device)
    for name, one in registry.implementations().items():
        if name == "l0_step_" or one.reference.__module__.startswith("fastadv.ops.nearest"):
            print(name, "x".join(map(str, shape)), flush=True)
            for arguments in calls[name][:most]:
                _compare(name, one, arguments)


def _compare(name: str, one: Implementations, arguments: tuple) -> None:
    """Raises ValueError where the kernel is not its reference."""
    samples = agreement.rows_of(arguments, one.trial.shared)
    found = one.trial.difference(one.launch, arguments, samples)
    if not found.is_allowed:
        raise ValueError(f"{name}: the kernel is not its reference: {found}")


if __name__ == "__main__":
    exercise(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
