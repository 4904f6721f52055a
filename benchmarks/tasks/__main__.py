"""What attacks do to models that are no plain classifiers: `python -m benchmarks.tasks`.

Eight tasks on the embedded digits, a small network for each, trained here for seconds from seed 0,
and PGD-20 with the task's objective or loss on the 360 test samples. No row is written whose
successes are not what the task's rule, written out in plain PyTorch, says of the returned tensors,
or that lie outside of eps or bounds in float64, or that have changed outside of a mask.

    python -m benchmarks.tasks --threads 1
    python -m benchmarks.tasks --only segmentation --samples 40
"""

import argparse
from dataclasses import replace

import torch

import fastadv
from benchmarks.execution.runs import process_clock
from benchmarks.harness import environment, harness, output, schema, selection
from benchmarks.tasks import tables
from benchmarks.tasks.cases import TASKS, Problem, Task

SUITE = "tasks"
_NAME = "fastadv"
_TIMED = "process time of one call of the attack on n samples in memory, confirmation included"
_METRIC = (
    "samples whose success is not what the task's rule says of the model's output at the returned "
    "tensor, or that lie outside of eps or bounds in float64, or have changed outside of the mask"
)


def run_task(
    task: Task, environment: schema.Environment, *, samples: int | None, rounds: int
) -> schema.Row:
    """The row of a task; ValueError if a success is none by the task's own rule."""
    whole = task.problem()
    problem = replace(whole, x=whole.x[:samples], y=whole.y[:samples])
    found: list[fastadv.AttackResult] = []

    def attack() -> torch.Tensor:
        result = task.attack.run(problem.model, problem.x, problem.y, mask=task.mask)
        found[:] = [result]
        return result.success

    (row,) = harness.measure(
        harness.Case(
            suite=SUITE,
            name=task.name,
            shape=tuple(problem.x.shape),
            dtype="float32",
            n=len(problem.x),
            timed=_TIMED,
            not_timed="import, training, the first call, the rule",
            baseline=_NAME,
        ),
        {_NAME: attack},
        lambda name, success: _equality(task, problem, found[0]),
        environment,
        harness.Timing(rounds, warmup=0, clock=process_clock),
    )
    (last,) = found
    return replace(
        row, robustness=_robustness(task, problem, last), extra=_scores(task, problem, last)
    )


def _failed(task: Task, problem: Problem, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return task.failed(problem.model(x), problem.y)


def _equality(task: Task, problem: Problem, result: fastadv.AttackResult) -> schema.Equality:
    other = _failed(task, problem, result.x_adv) != result.success
    other |= ~fastadv.contains(task.attack.threat, result.x_adv, problem.x)
    if task.mask is not None:
        other |= ((result.x_adv != problem.x) & ~task.mask).flatten(1).any(1)
    return schema.Equality(int(other.sum()), 0, _METRIC, "the task's rule in plain PyTorch")


def _robustness(task: Task, problem: Problem, result: fastadv.AttackResult) -> schema.Robustness:
    attack = task.attack
    return schema.Robustness(
        attack=f"PGD-{attack.steps} on {attack.loss!r}",  # type: ignore[attr-defined]
        norm=attack.threat.norm,
        eps=task.eps,
        step_size=2.5 * task.eps / attack.steps,
        steps=attack.steps,
        restarts=attack.restarts,
        seed=attack.seed,
        n=len(problem.x),
        model=task.network,
        data="UCI digits, test",
        clean_accuracy=_mean(~_failed(task, problem, problem.x)),
        robust_accuracy=_mean(~result.success),
    )


def _scores(task: Task, problem: Problem, result: fastadv.AttackResult) -> dict[str, float]:
    """Mean score of the objective at x and at what was returned; of a named loss the accuracy."""
    if result.score is None or result.clean_score is None:
        clean, attacked = ~_failed(task, problem, problem.x), ~result.success
    else:
        clean, attacked = result.clean_score, result.score
    return {
        f"{task.measure}: clean": round(_mean(clean), 4),
        f"{task.measure}: attacked": round(_mean(attacked), 4),
    }


def _mean(rows: torch.Tensor) -> float:
    return float(rows.double().mean())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="tasks whose name matches")
    parser.add_argument("--samples", type=int, help="at most so many samples a task")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls")
    output.add_option(parser)
    options = parser.parse_args(arguments)
    wanted = selection.matching(options.only, (task.name for task in TASKS), option="--only")
    torch.set_num_threads(options.threads)
    where = environment.describe(
        [], device=torch.device("cpu"), module="benchmarks.tasks", arguments=arguments
    )
    rows = []
    for task in TASKS:
        if task.name in wanted:
            print(task.name, flush=True)
            rows.append(run_task(task, where, samples=options.samples, rounds=options.rounds))
            harness.print_rows(rows[-1:])
    output.record(rows, options.results)
    print(tables.tasks(rows))


if __name__ == "__main__":
    main()
