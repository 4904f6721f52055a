"""Markdown tables of attacks on models that clamp; every number in them comes from a row."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmarks.clamping.cases import BARE, FORMS
from benchmarks.clamping.providers import MENDED, UNMENDED
from benchmarks.harness import formatting
from benchmarks.harness.schema import Row

_RULES = ("old", "new")
_SHOWN = "clamp"  # the form of the small table


def newest(rows: Sequence[Row]) -> list[Row]:
    """The newest row of each case, library, rule and torch: rules and networks come from several
    runs."""
    found: dict[tuple, Row] = {}
    for row in sorted(rows, key=lambda row: row.environment.date):
        versions = row.environment.versions
        found[row.case, row.provider, versions["torch"], versions["clamp rule"]] = row
    return list(found.values())


def libraries(rows: Sequence[Row]) -> str:
    """One line an attack, one column a library: how many samples are left, bare and behind clamp
    under both rules."""
    names = formatting.distinct(row.provider for row in rows)
    heads = ["network", "attack", "eps", "n", *names]
    lines = []
    for case in _cases(rows):
        first = case[0]
        cells = [_network(first), formatting.attack_name(first), _eps(first), str(first.n)]
        lines.append([*cells, *(_counts(case, name) for name in names)])
    note = (
        "Samples that stay robust of n: bare; behind `x.clamp(0, 1)` under the old rule; under the "
        f"new. In bold where the verdict of more than one sample is not that of the bare network. "
        f"{_first_runs(rows)}"
    )
    return "\n\n".join([formatting.table(heads, lines), note, _provenance(rows)])


def forms(rows: Sequence[Row]) -> str:
    """fastadv alone: one line for forms and rules that are alike."""
    rows = [row for row in rows if row.provider in (MENDED, UNMENDED)]
    attacks = formatting.distinct(formatting.attack_name(row) for row in rows)
    heads = ["network", "form", "rule", "kept", "warned", *attacks]
    lines = []
    for network in formatting.distinct(_network(row) for row in rows):
        alike: dict[tuple, list[str]] = {}  # the forms of which a line is the same
        for form in FORMS[1:]:
            told: dict[tuple[str, ...], list[str]] = {}  # the rules under which it is
            for rule in _RULES:
                own = [r for r in _preferred(rows, rule) if _network(r) == network]
                own = [r for r in own if f"{form}: robust" in r.extra]
                if own:
                    told.setdefault(tuple(_form(own, form, attacks)), []).append(rule)
            for cells, rules in told.items():
                alike.setdefault((", ".join(rules), *cells), []).append(form)
        lines += [[network, "; ".join(forms), *cells] for cells, forms in alike.items()]
    note = (
        "Samples missed, that the same attack broke on the bare network and not here; behind a "
        "slash those beyond, the other way round, where there are any; in brackets with "
        "`Execution(inset=0.0)`, which looks for no clamp. Kept: what is left of the gradient of "
        "an entry at a bound, the least of both bounds. "
        f"Warned: attacks that gave the warning `clamped_input`. {_cost(rows)} {_emulated(rows)}"
    )
    return "\n\n".join([formatting.table(heads, lines), note.rstrip()])


def _form(rows: Sequence[Row], form: str, attacks: Sequence[str]) -> list[str]:
    mended = [row for row in rows if row.provider == MENDED]
    warned = sum(int(row.extra[f"{form}: warned"]) for row in mended)
    cells = [f"{rows[0].extra[f'{form}: kept']:g}", f"{warned} of {len(mended)}"]
    for attack in attacks:
        pair = {r.provider: r for r in rows if formatting.attack_name(r) == attack}
        cells.append(
            f"{_differing(pair[MENDED], form)} ({_differing(pair[UNMENDED], form)})"
            if len(pair) == 2
            else formatting.EMPTY
        )
    return cells


def _differing(row: Row, form: str) -> str:
    missed, beyond = row.extra[f"{form}: missed"], row.extra[f"{form}: beyond"]
    return f"{missed:g} / {beyond:g}" if beyond else f"{missed:g}"


def _counts(case: Sequence[Row], name: str) -> str:
    """ "bare, old, new" of a library; of one rule where the other was not run."""
    cells: list[str] = []
    for rule in _RULES:
        for row in _preferred(case, rule):
            if row.provider == name:
                cells = cells or [f"{row.extra[f'{BARE}: robust']:g}"]
                parted = row.extra[f"{_SHOWN}: missed"] + row.extra[f"{_SHOWN}: beyond"] > 1
                cells.append(f"{'**' * parted}{row.extra[f'{_SHOWN}: robust']:g}{'**' * parted}")
    return ", ".join(cells) or formatting.EMPTY


def _preferred(rows: Iterable[Row], rule: str) -> list[Row]:
    """Those of a rule; of a case and library that was run on a torch that has it, these alone."""
    chosen: dict[tuple, Row] = {}
    for row in rows:
        key = row.case, row.provider
        if _rule(row) == rule and (key not in chosen or _is_own(row)):
            chosen[key] = row
    return list(chosen.values())


def _rule(row: Row) -> str:
    return row.environment.versions["clamp rule"].split()[0]


def _is_own(row: Row) -> bool:
    return row.environment.versions["clamp rule"] == _rule(row)


def _first_runs(rows: Sequence[Row]) -> str:
    said = []
    for rule in _RULES:
        own = _preferred(rows, rule)
        torches = formatting.distinct(
            row.environment.versions["torch"] + ("" if _is_own(row) else ", its own rule replaced")
            for row in own
        )
        if own:
            said.append(f"{rule} rule: torch {' or '.join(torches)}")
    first = formatting.robustness(rows[0])
    return (
        f"{'; '.join(said).capitalize()}. Seed {first.seed}, one restart; PGD from random starts; "
        "steps in the names, AutoAttack standard. A success is one of the model itself, within "
        "eps and bounds in float64."
    )


def _cost(rows: Sequence[Row]) -> str:
    """Of what a clamp that loses the gradient costs fastadv, over the bare network."""
    told = []
    for name, unit in (("forwards", "forwards"), ("backwards", "backwards"), ("seconds", "time")):
        ratios = [
            row.extra[f"{form}: {name}"] / row.extra[f"{BARE}: {name}"]
            for row in rows
            for form in FORMS
            if row.provider == MENDED and row.extra.get(f"{form}: warned")
        ]
        if ratios:
            told.append(
                f"{unit} {statistics.median(ratios):.2f}x "
                f"({min(ratios):.2f}x to {max(ratios):.2f}x)"
            )
    if not told:
        return ""
    return (
        "Where it is mended, cost over the same attack on the bare network, median (least to most)"
        f": {', '.join(told)}."
    )


def _emulated(rows: Sequence[Row]) -> str:
    """How far rows of a torch's own rule are from those of the same rule in place of another's."""
    pairs: dict[tuple, list[Row]] = {}
    for row in rows:
        pairs.setdefault((row.case, row.provider, _rule(row)), []).append(row)
    counts = []
    for some in pairs.values():
        if {_is_own(row) for row in some} == {True, False}:
            forms = [name for name in some[0].extra if name.endswith(": robust")]
            counts += [max(r.extra[f] for r in some) - min(r.extra[f] for r in some) for f in forms]
    if not counts:
        return ""
    return (
        f"On a torch that has a rule, and where it is put in place of another's: the same number "
        f"of robust samples in {sum(count == 0 for count in counts)} of {len(counts)} runs, and "
        f"at most {max(counts):g} apart."
    )


def _cases(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.case, []).append(row)
    return list(groups.values())


def _network(row: Row) -> str:
    return row.case.rpartition(" ")[2]


def _eps(row: Row) -> str:
    found = formatting.robustness(row)
    return f"{found.eps:g}" + (", L2" if found.norm == "l2" else "")


def _provenance(rows: Sequence[Row]) -> str:
    """One line a run."""
    runs: dict[str, Row] = {}
    for row in rows:
        where = row.environment
        versions = {k: v for k, v in where.versions.items() if k != "clamp rule"}
        runs.setdefault(where.date, replace(row, environment=replace(where, versions=versions)))
    return "\n\n".join(formatting.provenance([row]) for row in runs.values())
