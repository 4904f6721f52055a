"""Ops beside the eager chains they replace, at CIFAR shapes: `python -m pytest benchmarks`.

Timed by pytest-benchmark; nothing is asserted of a time, only of the result. On a CPU "fastadv" is
the eager reference of the op, written for clarity: the Triton kernels run on GPUs.
"""

import pytest
import torch

from benchmarks.harness import environment
from benchmarks.ops import cases as op_cases

_IMAGES, _LOGITS = (128, 3, 32, 32), (128, 10)
_BUILDERS = {name: (build, _IMAGES) for name, build in op_cases.IMAGE_OPS.items()} | {
    name: (build, _LOGITS) for name, build in op_cases.HEAD_OPS.items()
}


@pytest.mark.parametrize("provider", ["fastadv", "eager"])
@pytest.mark.parametrize("name", _BUILDERS)
def test_op(benchmark, name: str, provider: str):
    device = environment.default_device()
    build, shape = _BUILDERS[name]
    case = build(shape, torch.float32, device)
    runs = op_cases.providers(case, device=device, compiled=False)
    label, run = next((label, run) for label, run in runs.items() if label.startswith(provider))
    equality = case.check(label, run())

    def timed() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.name} {shape}"
    benchmark.extra_info.update(provider=label, device=str(device), error=equality.error)
    benchmark(timed)
