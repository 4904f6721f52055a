"""Ops against the copy bandwidth of the same run: `python -m benchmarks.ops --help`."""

import argparse

import torch

from benchmarks.harness import environment, harness, output, selection
from benchmarks.ops import cases as op_cases

SUITE = "ops"
_TIMED = "one call; on a GPU by events, the L2 cache overwritten before each"
_NOT_TIMED = "allocation of inputs, first call, compilation"

# per device type: image shapes and (B, C) of heads; the CPU runs eager references or numpy
_SHAPES = {
    "cpu": ([(128, 3, 32, 32)], [(128, 10)]),
    "cuda": (
        [(128, 3, 32, 32), (1024, 3, 32, 32), (256, 3, 224, 224)],
        [(128, 10), (1024, 1000), (256, 21000)],
    ),
}
_DTYPES = ("float64", "float32", "bfloat16", "float16")
_COPIED = {"cpu": 2**24, "cuda": 2**28}  # elements: far beyond any cache


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__)
    parser.add_argument("--ops", default="", help="run the ops whose name matches this regex")
    parser.add_argument("--dtypes", nargs="+", choices=_DTYPES, default=["float32"])
    parser.add_argument("--batch", type=int, help="this batch size in place of the table's")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--copied", type=int, help="elements of the copy that measures bandwidth")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the chain too")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; its own choice if none")
    output.add_option(parser)
    options = parser.parse_args(arguments)
    known = (*op_cases.IMAGE_OPS, *op_cases.HEAD_OPS)
    chosen = selection.matching(options.ops, known, option="--ops")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = environment.default_device()
    where = environment.describe([], device=device, module="benchmarks.ops", arguments=arguments)
    on_gpu = device.type == "cuda"
    copy_gb_s = harness.copy_bandwidth(
        device, elements=options.copied or _COPIED[device.type], flush=on_gpu
    )
    print(f"{where.device}: copy {copy_gb_s:.1f} GB/s")
    rows = []
    for case in _cases(chosen, options, device):
        description = harness.Case(
            suite=SUITE,
            name=case.name,
            shape=case.shape,
            dtype=str(case.dtype).removeprefix("torch."),
            n=case.shape[0],
            timed=_TIMED,
            not_timed=_NOT_TIMED,
            baseline="eager chain",
            unit="us",
            bytes_moved=case.floor_bytes,
        )
        runs = op_cases.providers(case, device=device, compiled=options.compile)
        found = harness.measure(
            description,
            runs,
            case.check,
            where,
            harness.Timing(options.rounds, warmup=5, flush=on_gpu),
            copy_gb_s=copy_gb_s,
        )
        print(f"{case.name} {case.shape} {description.dtype}")
        harness.print_rows(found)
        rows += found
    output.record(rows, options.results)


def _cases(
    chosen: list[str], options: argparse.Namespace, device: torch.device
) -> list[op_cases.OpCase]:
    images, logits = _SHAPES[device.type]
    cases = []
    for builders, shapes in ((op_cases.IMAGE_OPS, images), (op_cases.HEAD_OPS, logits)):
        for name, build in builders.items():
            if name not in chosen:
                continue
            for shape in shapes:
                shape = (options.batch or shape[0], *shape[1:])
                cases += [build(shape, getattr(torch, d), device) for d in options.dtypes]
    return cases


if __name__ == "__main__":
    main()
