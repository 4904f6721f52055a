"""Attacks on clamping models: what a row counts, what the tables show, what the page promises."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fastadv
from benchmarks.clamping import __main__ as clamping
from benchmarks.clamping import cases as clamping_cases
from benchmarks.clamping import tables as clamping_tables
from benchmarks.clamping.cases import BARE, CASES, FEW_FORMS, FORMS, NETWORKS, behind, gradient_kept
from benchmarks.clamping.providers import MENDED, UNMENDED, Outcome, providers
from benchmarks.clamping.rules import RULES, clamp_rule, installed_rule
from benchmarks.harness import report, schema
from benchmarks.harness.networks import Problem
from fastadv import textbook

PAGE = Path(__file__).parents[3] / "docs" / "pytorch-versions.md"
KEPT = {
    "old": dict.fromkeys(FORMS, 1.0) | {"hardtanh": 0.0, "min(max)": 0.5},
    "new": dict.fromkeys(FORMS, 0.0) | {BARE: 1.0, "clamp, tensors": 0.5, "min(max)": 0.5},
}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Two classes: whether the mean pixel is above 1/2; every pixel has the same gradient."""
    layer = nn.Linear(16, 2)
    with torch.no_grad():
        layer.weight[0], layer.weight[1] = -1.0, 1.0
        layer.bias[0], layer.bias[1] = 8.0, -8.0
    return nn.Sequential(nn.Flatten(), layer).eval()


@pytest.fixture
def problem(net, monkeypatch) -> Problem:
    """Margins from 0.05 to 0.45 a pixel, most pixels at a bound."""
    x = torch.zeros(20, 1, 4, 4)
    ones = torch.arange(20) % 9
    for row, count in enumerate(ones):
        x[row].view(-1)[: 4 + count] = 1.0
    made = Problem("halves", "levels", net, x, (x.flatten(1).mean(1) > 0.5).long())
    monkeypatch.setattr(clamping_cases.networks, "digits", lambda n, device: made)
    return made


def test_a_run_from_the_command_line_ends_in_rows_and_tables(tmp_path, problem, capsys):
    results = tmp_path / "results"
    clamping.main(["--case", "digits_net (FGSM|APGD-CE)", "--rule", *RULES, f"--results={results}"])
    rows = schema.read_rows("clamping", results)
    names = {row.provider for row in rows}
    assert {MENDED, UNMENDED, "textbook"} <= names
    assert {row.case for row in rows} == {"FGSM digits_net", "APGD-CE-20 digits_net"}
    for row in rows:
        rule = row.environment.versions["clamp rule"]
        assert rule.split()[0] in RULES and (rule == installed_rule()) == ("place" not in rule)
        assert row.equality.error <= row.equality.tolerance
        found = row.robustness
        assert found is not None and (found.seed, found.n) == (0, 20)
        assert row.extra[f"{BARE}: robust"] == found.robust_accuracy * 20
        for form in FORMS:
            kept = KEPT[rule.split()[0]][form]
            assert row.extra[f"{form}: kept"] == kept
            assert {f"{form}: {n}" for n in ("missed", "beyond", "refused")} <= set(row.extra)
            if row.provider == MENDED:
                assert row.extra[f"{form}: warned"] == (kept == 0)
                assert (row.extra[f"{form}: inset"] > 0) == (kept == 0)
                assert row.extra[f"{form}: missed"] == row.extra[f"{form}: beyond"] == 0
            if row.provider == UNMENDED:
                assert row.extra[f"{form}: warned"] == 0
                assert (row.extra[f"{form}: missed"] > 0) == (kept == 0)
        assert schema.Row.from_json(row.to_json()) == row
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- benchmark:{n} -->\n<!-- /benchmark -->\n" for n in ("clamping", _FORMS))
    )
    report.main(["--readme", str(page), "--results", str(results)])
    report.main(["--readme", str(page), "--results", str(results), "--check"])
    text = page.read_text()
    assert re.search(
        r"\| digits_net \| FGSM \| 0\.12 \| 20 \| (\d+), \1, \1 \| (\d+), \2, \*\*", text
    )
    assert "| digits_net | hardtanh | old, new | 0 | 2 of 2 | 0 (" in text
    alike = "clamp; clip; clamp, normalised; inside Normalized; clamp, tensors"
    assert f"| digits_net | {alike} | old | 1 | 0 of 2 | 0 (0) | 0 (0) |" in text


_FORMS = "clamping-forms"


def test_a_case_that_no_network_has_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="no case matches"):
        clamping.main(["--case", "nothing", f"--results={tmp_path}"])


def test_a_network_without_its_data_is_left_out_and_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="no case matches"):
        clamping.main(["--case", "mnist_net FGSM", f"--results={tmp_path}"])
    assert "without mnist_net: give --data" in capsys.readouterr().err


@pytest.mark.parametrize("rule", RULES)
def test_what_a_form_keeps_of_the_gradient_is_what_the_page_says(rule: str):
    with clamp_rule(rule):
        assert {form: gradient_kept(form) for form in FORMS} == KEPT[rule]


@pytest.mark.parametrize("form", FORMS)
def test_a_form_changes_no_logit(form: str, net):
    x = torch.rand(8, 1, 4, 4).round(decimals=1)
    torch.testing.assert_close(behind(form, net)(x), net(x), rtol=0, atol=1e-5)


def test_a_success_counts_within_eps_and_bounds_alone(problem):
    case, eps = CASES[0], 0.12
    far = 1 - problem.x

    def judged(x_adv):
        provider = lambda case, problem, eps: Outcome(x_adv)  # noqa: E731
        return clamping.attack_form(BARE, provider, case, problem, eps)

    assert judged(far).robust.all() and judged(far).refused > 0
    near = textbook.fgsm(problem.model, problem.x, problem.y, eps=eps)
    assert judged(near).refused == 0 and 0 < int(judged(near).robust.sum()) < 20


def test_all_libraries_take_one_step_size_and_start(problem):
    for network in NETWORKS:
        for case in network.cases():
            eps = network.eps[case.norm]
            ours, chosen = case.ours(eps), case.settings(eps)
            if case.kind is None:
                continue
            assert ours.steps == chosen.steps
            assert float(ours.effective_step_size) == pytest.approx(chosen.step_size)
            assert ours.random_start == case.random_start == chosen.starts_randomly
    assert set(FEW_FORMS) < set(FORMS) and "autoattack" not in providers(None)


def _row(row, rule, date, provider=MENDED, *, torch_version="2.13.0", clamp=(5, 0), warned=0):
    where = replace(
        row.environment,
        date=date,
        versions={"fastadv": "0", "torch": torch_version, "clamp rule": rule},
    )
    extra = {
        f"{BARE}: robust": 5,
        f"{BARE}: seconds": 1,
        f"{BARE}: forwards": 10,
        f"{BARE}: backwards": 10,
        "clamp: robust": clamp[0],
        "clamp: missed": clamp[1],
        "clamp: beyond": 0,
        "clamp: kept": 1,
        "clamp: warned": warned,
        "clamp: seconds": 2,
        "clamp: forwards": 20,
        "clamp: backwards": 11,
    }
    return replace(
        row,
        suite="clamping",
        case="FGSM digits_net",
        provider=provider,
        environment=where,
        extra=extra,
    )


def test_tables_take_the_newest_row_of_each_rule_and_torch(row):
    rows = [
        _row(row, "old", "2026-01-02T00:00:00+00:00", clamp=(6, 1)),
        _row(row, "old", "2026-01-01T00:00:00+00:00", clamp=(9, 4)),
        _row(row, "new (in place of torch's)", "2026-01-03T00:00:00+00:00", clamp=(7, 2)),
        _row(row, "new", "2026-01-02T00:00:00+00:00", torch_version="2.14.1", clamp=(8, 3)),
    ]
    newest = clamping_tables.newest(rows)
    assert len(newest) == 3
    text = clamping_tables.libraries(newest)
    # one sample is not in bold; 2.14's own rule goes before the one put in place
    assert "| digits_net | FGSM | 0.1 | 8 | 5, 6, **8** |" in text
    assert "Old rule: torch 2.13.0; new rule: torch 2.14.1." in text
    assert "torch 2.13.0, its own rule replaced" in clamping_tables.libraries(rows[1:3])


def test_the_table_of_forms_says_the_cost_and_how_rules_agree(row):
    rows = [
        _row(
            row,
            rule,
            "2026-01-01T00:00:00+00:00",
            name,
            torch_version=version,
            clamp=clamp,
            warned=name == MENDED,
        )
        for name in (MENDED, UNMENDED)
        for rule, version, clamp in (
            ("new (in place of torch's)", "2.13.0", (5, 0)),
            ("new", "2.14.1", (6, 1)),
        )
    ]
    text = clamping_tables.forms(rows)
    assert "| digits_net | clamp | new | 1 | 1 of 1 | 1 (1) |" in text
    assert "forwards 2.00x (2.00x to 2.00x), backwards 1.10x (1.10x to 1.10x)" in text
    assert "the same number of robust samples in 2 of 4 runs, and at most 1 apart" in text


def test_the_rows_hold_what_the_page_says_of_fastadv():
    rows = clamping_tables.newest(schema.read_rows("clamping"))
    assert {"old", "new"} == {row.environment.versions["clamp rule"].split()[0] for row in rows}
    for row in rows:
        assert all(value == 0 for name, value in row.extra.items() if name.endswith("refused"))
        if row.provider != MENDED:
            continue
        for form in FORMS:
            if f"{form}: robust" not in row.extra:
                continue
            kept = row.extra[f"{form}: kept"]
            assert row.extra[f"{form}: warned"] == (kept == 0)
            if kept != 0.5:  # halves are left alone
                assert row.extra[f"{form}: missed"] + row.extra[f"{form}: beyond"] <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_inputs_are_moved_by_one_rounding(dtype, problem):
    net, x = copy.deepcopy(problem.model).to(dtype), problem.x.to(dtype)
    attack = fastadv.bim(fastadv.Linf(0.12), steps=4)
    bare = attack.run(net, x, problem.y)
    with pytest.warns(fastadv.AttackWarning, match="clamped_input"):
        result = attack.run(behind("hardtanh", net), x, problem.y)
    assert result.inset == {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    assert torch.equal(result.success, bare.success) and bare.success.any()


def _snippet() -> dict:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    return names


@pytest.mark.parametrize("rule", RULES)
def test_the_snippet_for_other_libraries_keeps_the_gradient_and_changes_nothing(rule, problem):
    straight = _snippet()["clamp_straight_through"]
    x = torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.5], requires_grad=True)
    with clamp_rule(rule):
        (grad,) = torch.autograd.grad(straight(x).sum(), x)
        assert grad.tolist() == [1.0] * 5
        assert torch.equal(straight(x)[1:4], x[1:4])
        torch.testing.assert_close(straight(x), x.clamp(0, 1))
        model = clamping_cases.Behind(straight, problem.model)
        surrogate = fastadv.BPDA(lambda x: x.clamp(0, 1))
        steps = dict(eps=0.12, steps=4, step_size=0.05, random_start=False)
        bare = textbook.pgd(problem.model, problem.x, problem.y, **steps)
        assert not torch.equal(bare, problem.x)
        for other in (model, nn.Sequential(surrogate, problem.model)):
            assert torch.equal(textbook.pgd(other, problem.x, problem.y, **steps), bare)
            attack = fastadv.pgd(fastadv.Linf(0.12), steps=4)
            assert attack.run(other, problem.x, problem.y).inset == 0.0  # and no warning
