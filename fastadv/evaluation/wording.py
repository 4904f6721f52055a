"""What an evaluation found, in words for those who have not read the code."""

import re
from collections.abc import Mapping

from fastadv.attacks.call.result import Cost
from fastadv.evaluation.findings import Findings
from fastadv.evaluation.proportions import percent
from fastadv.values import in_255ths

NORMS = {"linf": "L-infinity", "l2": "L2", "l1": "L1", "l0": "L0"}
STAGE_COLUMNS = (
    "attack",
    "samples attacked",
    "broken",
    "accuracy after it",
    "time",
    "forward passes",
    "backward passes",
    "unused passes",
)
_WORDS = {
    "clean accuracy": "the share of samples that the model gets right as they are.",
    "robust accuracy": "the share that it gets right as they are, and for which the attack found "
    "no change within its limits that makes it wrong. A stronger attack may find more: of these "
    "samples, the share that is truly safe is at most this.",
    "95 % interval": "how far a share may be off because these samples stand for all others "
    "(Wilson's interval).",
    "threat model": "what the attack may change, and by how much.",
    "eps": "the limit of the change, in the norm that is named, where pixels go from 0 to 1: 8/255 "
    "is 8 of the 255 steps of an 8-bit image.",
    "forward and backward passes": "one sample through the model, and its gradient back.",
}
_WORDS_OF_STAGES = {
    "broken": "right until the attack changed it. Every such success was checked with the model "
    "itself.",
    "unused passes": "forward passes of tries that the Square Attack made ahead of time, before it "
    "was known that an earlier one would be taken.",
}
_DECIMAL = re.compile(r"(?<![\w.])0\.\d{6,}(?![\w.])")
_MEANING = {
    "linf": "every value of a sample by up to {eps}",
    "l2": "a sample by a distance of up to {eps} in L2 (Euclidean)",
    "l1": "a sample by up to {eps} in L1 (the sum of all changes)",
    "l0": "up to {eps} entries or pixels of a sample (L0)",
}


def ball(norm: str, eps: float | None) -> str:
    """As "L-infinity, eps = 8/255"; "" where there is no norm."""
    words = [NORMS[norm]] if norm in NORMS else []
    return ", ".join(words + ([f"eps = {in_255ths(eps)}"] if eps is not None else []))


def settings(text: str) -> str:
    """Code as it was, with 8/255 for the number that Python takes that for."""

    def fraction(found: re.Match[str]) -> str:
        words = in_255ths(float(found[0]))
        count, slash, _ = words.partition("/")
        return words if slash and int(count) / 255 == float(found[0]) else found[0]

    return f"`{_DECIMAL.sub(fraction, text)}`"


def at_eps(attack: str) -> str:
    """The repr of an attack with eps in place of its radius."""
    return re.sub(r"(\bfastadv\.(?:Linf|L2|L1|L0)\()[^,()]+", r"\1eps", attack)


def words(found: Findings | None = None) -> dict[str, str]:
    """What the words of a page mean, for those who are new to them; None: of a curve."""
    return {**_WORDS, **(_WORDS_OF_STAGES if found is not None and found.stages else {})}


def lead(found: Findings) -> str:
    """One sentence that says what was found."""
    right = "classifies {} correctly" if found.objective is None else "gets {} right"
    may = ""
    if found.norm in _MEANING and found.eps is not None:
        may = f", which may change {_MEANING[found.norm].format(eps=in_255ths(found.eps))}"
    return (
        f"Of {counted(found.n, 'sample')} the model {right.format(percent(found.clean_accuracy))} "
        f"as they are, and {percent(found.robust_accuracy)} also under attack{may}."
    )


def examples(found: Findings) -> str:
    """What the pictures of a page are."""
    broken = int((found.clean_correct & found.success).sum())
    return (
        f"The first {len(found.examples):,} of {counted(broken, 'sample')} that the model had "
        "right until they were attacked. From left to right: the sample as it is; the change, made "
        "strong enough to be seen (grey is none); the sample as the attack left it."
    )


def facts(found: Findings) -> dict[str, str]:
    """All that defines the numbers."""
    judged = {"objective": f"`{found.objective}`"} if found.objective else {}
    score = {"mean score": scores(found)} if found.score is not None else {}
    given = {
        "eps": None if found.eps is None else in_255ths(found.eps),
        "steps": found.steps,
        "restarts": found.restarts,
        "seed": found.seed,
    }
    return {
        "model": found.model,
        "attack": settings(found.attack),
        **judged,
        "threat model": settings(found.threat),
        **{name: str(value) for name, value in given.items() if value is not None},
        "samples": f"{found.n:,}",
        "clean accuracy": percent(found.clean_accuracy),
        "robust accuracy": robust(found),
        **score,
        "passes": f"{found.forwards:,} forward and {found.backwards:,} backward, of a sample each",
        "search settings": found.search,
        "run settings": f"`{found.execution}`",
        "time": f"{found.seconds:,.2f} s{costs(found.cost)}",
        "warnings": warned(found.warnings),
        **({"begun": found.date} if found.date else {}),
        **found.environment,
    }


def stage_rows(found: Findings) -> list[list[str]]:
    """Of an ensemble, a row of `STAGE_COLUMNS` for each attack."""
    return [
        [
            stage.name,
            f"{stage.attacked:,}",
            f"{stage.broken:,}",
            percent(accuracy),
            f"{stage.seconds:.2f} s",
            f"{stage.forwards:,}",
            f"{stage.backwards:,}",
            f"{stage.discarded:,}",
        ]
        for stage, accuracy in zip(found.stages, found.accuracies, strict=True)
    ]


def robust(found: Findings) -> str:
    low, high = found.confidence_interval
    return f"{percent(found.robust_accuracy)} (95 % interval {100 * low:.1f} to {100 * high:.1f})"


def scores(found: Findings) -> str:
    return f"{found.mean_clean_score:.4g} clean, {found.mean_attacked_score:.4g} attacked"


def costs(cost: Cost) -> str:
    """Where the time went, as far as it was measured, in brackets."""
    words = []
    if cost.model_seconds:
        words.append(
            f"{cost.model_seconds:.2f} s in the model, {cost.attack_seconds:.2f} s in the attack"
        )
    if cost.share_of_limit:
        words.append(f"the model's passes alone would take {percent(cost.share_of_limit)} of it")
    if cost.denied:
        words.append(
            f"{counted(cost.denied, 'find')} of the faster search not confirmed by the model"
        )
    if cost.final_attacked:
        words.append(
            f"a last attack by the model itself on {counted(cost.final_attacked, 'sample')} broke "
            f"{cost.final_broken:,} with {cost.final_passes:,} passes in {cost.final_seconds:.2f} s"
        )
    return f" ({'; '.join(words)})" if words else ""


def warned(warnings: Mapping[str, int]) -> str:
    found = [f"{code} ({counted(count, 'sample')})" for code, count in warnings.items()]
    return ", ".join(found) or "none"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
