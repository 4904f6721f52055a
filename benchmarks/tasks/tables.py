"""The Markdown table of tasks; every number in it comes from a row."""

from collections.abc import Sequence

from benchmarks.harness import formatting
from benchmarks.harness.schema import Row

_NORMS = {"linf": "L-inf", "l2": "L2", "l1": "L1"}


def tasks(rows: Sequence[Row]) -> str:
    """One line a task: its mean score at the clean samples and under attack, and what fell."""
    heads = ["task", "objective or loss", "model", "eps", "score", "clean"]
    heads += [f"under {_attack(rows[0])}", "confirmed successes", "of them without attack"]
    lines = []
    for row in rows:
        found = formatting.robustness(row)
        failed, fallen = (
            round(row.n * (1 - share)) for share in (found.clean_accuracy, found.robust_accuracy)
        )
        lines.append(
            [
                row.case,
                f"`{found.attack.partition(' on ')[2].replace('fastadv.objectives.', '')}`",
                found.model,
                f"{found.eps:g}, {_NORMS[found.norm]}",
                *_scores(row),
                f"{fallen} of {row.n}",
                f"{failed}",
            ]
        )
    return "\n\n".join([formatting.table(heads, lines), _note(rows), formatting.provenance(rows)])


def _scores(row: Row) -> list[str]:
    """[what is measured, clean, attacked]; shares in percent."""
    (measure,) = {name.partition(":")[0] for name in row.extra}
    values = [row.extra[f"{measure}: {when}"] for when in ("clean", "attacked")]
    is_share = "error" not in measure
    return [measure, *(formatting.percent(v) if is_share else f"{v:.2f}" for v in values)]


def _attack(row: Row) -> str:
    return formatting.robustness(row).attack.partition(" ")[0]


def _note(rows: Sequence[Row]) -> str:
    first = formatting.robustness(rows[0])
    return (
        f"{first.data}, n = {rows[0].n}. {_attack(rows[0])}: {first.steps} steps of 2.5 eps / "
        f"{first.steps} from a random start, {first.restarts} restart, seed {first.seed}; a sample "
        "stops at its first success. The eps of tabular features is a share of each one's range. "
        "Scores are means over the samples. A success is what the "
        "objective says of the model's output at exactly the tensor that is returned, and was held "
        "to the same rule written out in plain PyTorch. The networks are trained for 40 epochs on "
        "clean digits."
    )
