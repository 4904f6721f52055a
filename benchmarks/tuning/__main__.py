"""What `fastadv.tune` finds, and what it is worth: `python -m benchmarks.tuning`.

sweep: its choice, three times, beside the fastest of all batch sizes and copies, on six networks.
attacks: execution="auto" beside torchattacks, 1,000 samples. autoattack: AutoAttack with
precisions=("fp32", "bf16") beside the default, networks with random weights at a radius that leaves
about half of the samples to APGD-CE-20. All of process time.

    python -m benchmarks.tuning sweep --threads 1
    python -m benchmarks.tuning attacks --threads 1 --only "PGD-40 mnist"
    python -m benchmarks.tuning autoattack --threads 1 --samples 20 --version fast
"""

import argparse

import torch

import fastadv
from benchmarks.harness import environment, harness, output, peers, schema, selection
from benchmarks.tuning import ensembles, networks, short_attacks, sweep, tables

_SLOW_NETWORKS = {"PreActResNet-18": 128}  # samples, fewer than of the others
_SHORT = {
    "digits_net": networks.digits,
    "mnist_net": networks.mnist,
    "BatchNormNet": networks.batchnorm,
}


def _sweep(options: argparse.Namespace, where: schema.Environment) -> list[schema.Row]:
    rows = []
    wanted = selection.matching(options.only, networks.NETWORKS, option="--only")
    for name in (name for name in networks.NETWORKS if name in wanted):
        n = min(options.samples or 256, _SLOW_NETWORKS.get(name, 256))
        print(f"{name}, n={n}", flush=True)
        found = sweep.run_network(
            networks.NETWORKS[name](n),
            where,
            rounds=options.rounds,
            seconds=options.seconds,
            tunings=options.tunings,
        )
        harness.print_rows(found)
        rows += found
    return rows


def _attacks(options: argparse.Namespace, where: schema.Environment) -> list[schema.Row]:
    cases = {
        f"{kind.name} {network}": (kind, network)
        for network in _SHORT
        for kind in short_attacks.KINDS
    }
    wanted = selection.matching(options.only, cases, option="--only")
    rows, problems = [], {}
    for name in (name for name in cases if name in wanted):
        kind, network = cases[name]
        if network not in problems:
            problems[network] = _SHORT[network](options.samples or 1000)
        print(name, flush=True)
        found = short_attacks.run_case(
            kind, network, problems[network], where, rounds=options.rounds
        )
        harness.print_rows(found)
        rows += found
    return rows


def _autoattack(options: argparse.Namespace, where: schema.Environment) -> list[schema.Row]:
    rows = []
    wanted = selection.matching(options.only, ensembles.PROBLEMS, option="--only")
    for name in (name for name in ensembles.PROBLEMS if name in wanted):
        print(name, flush=True)
        found = ensembles.run_problem(
            ensembles.PROBLEMS[name](options.samples or 250),
            where,
            rounds=options.rounds,
            seconds=options.seconds,
            make=lambda threat: fastadv.autoattack(threat, options.version),
        )
        harness.print_rows(found)
        rows += found
    return rows


_PARTS = {
    "sweep": (_sweep, tables.sweep),
    "attacks": (_attacks, tables.short),
    "autoattack": (_autoattack, tables.ensembles),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=_PARTS)
    parser.add_argument("--only", default="", help="networks or cases whose name matches")
    parser.add_argument("--samples", type=int, help="at most so many; 256, 1000 or 250 if none")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--seconds", type=float, default=10.0, help="that tune may take")
    parser.add_argument("--tunings", type=int, default=3, help="of each network, in sweep")
    parser.add_argument("--version", default="standard", help="of AutoAttack")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    output.add_option(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    where = environment.describe(
        peers.DISTRIBUTIONS if options.part == "attacks" else [],
        device=torch.device("cpu"),
        module="benchmarks.tuning",
        arguments=arguments,
    )
    run, table = _PARTS[options.part]
    rows = run(options, where)
    output.record(rows, options.results)
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
