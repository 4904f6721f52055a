"""Reports read back, and what results say of themselves in a shell and in a notebook."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_models import mixed_problem, threat_of

import fastadv
from fastadv import training
from fastadv.evaluation import Report, evaluate


def ensemble():
    threat = threat_of("linf", 0.5)
    attacks = [fastadv.apgd_ce(threat, steps=5), fastadv.square(threat, queries=10)]
    return fastadv.autoattack(threat, version="custom", attacks=attacks)


ATTACKS = {
    "attack": lambda: fastadv.pgd(threat_of("linf", 0.5), steps=3, restarts=2),
    "ensemble": ensemble,
}


@pytest.fixture(params=ATTACKS, scope="module")
def report(request):
    p = mixed_problem(24)
    return evaluate(p.model, (p.x, p.y), ATTACKS[request.param]())


def test_a_saved_report_is_loaded_as_it_was(report, tmp_path):
    path = tmp_path / "report.json"
    report.save(path)
    loaded = Report.load(path)
    assert loaded == report and hash(loaded) == hash(report)
    for name, value in vars(report).items():
        again = getattr(loaded, name)
        assert type(again) is type(value), name
        if isinstance(value, torch.Tensor):
            assert again.dtype == value.dtype and torch.equal(again, value), name
        else:
            assert again == value, name
    assert loaded.to_json() == report.to_json() and str(loaded) == str(report)


def test_reports_differ_where_one_sample_does(report, tmp_path):
    content = json.loads(report.to_json())
    content["samples"]["step"][3] += 1
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert Report.load(tmp_path / "other.json") != report and report != "report"


@pytest.mark.parametrize("suffix", [".md", ".html", ".pt"])
def test_other_formats_are_refused(report, tmp_path, suffix):
    with pytest.raises(ValueError, match=r"path must end in \.json: .* got .*report"):
        Report.load(tmp_path / f"report{suffix}")


def change(**values):
    return lambda content: content.update(values)


CHANGES = {
    "no samples": (lambda content: content.pop("samples"), "it has no samples"),
    "no field": (lambda content: content.pop("threat"), "it has no threat"),
    "a text": (change(model=3), "model is not a text"),
    "a count": (change(forwards="many"), "forwards is not an integer"),
    "a number": (change(eps="8/255"), "eps is not a number"),
    "warnings": (change(warnings=[]), "warnings is not what a report has"),
    "a count below 0": (change(backwards=-1), "backwards is not an integer of 0 or more"),
    "a count above int64": (change(forwards=10**400), "forwards is not an integer"),
    "true for a count": (change(forwards=True), "forwards is not an integer"),
    "no count": (change(forwards=None), "forwards is not an integer"),
    "half a step": (change(steps=2.5), "steps is not an integer"),
    "no seconds": (change(seconds=None), "seconds is not a number"),
    "a number above floats": (change(seconds=10**400), "seconds is not a number"),
    "a norm": (change(norm="l7"), "norm is 'l7', not one of linf, l2, l1"),
    "n": (change(n=23), "n is 23, but it has 24 samples"),
    "no n": (lambda c: c.pop("n"), "n is not an integer"),
    "a warning below 0": (change(warnings={"nan_logits": -1}), "warnings is not what"),
    "robust and broken": (
        lambda c: c["samples"].update(robust=[True] * 24, success=[True] * 24),
        "samples are robust although",
    ),
    "no cost": (lambda c: c.pop("cost"), "a cost of it is not a table"),
    "less cost": (lambda c: c["cost"].pop("denied"), "fields of a cost are missing: denied"),
    "more cost": (lambda c: c["cost"].update(tax=1), "fields of a cost are unknown: tax"),
    "a cost": (lambda c: c["cost"].update(denied=-1), "denied of a cost is -1"),
    "no stages": (lambda c: c.pop("stages"), "stages is not a list"),
    "stages": (change(stages=[3]), "a stage of it is not a table"),
    "a stage": (change(stages=[{"name": "APGD"}]), "missing"),
    "a column": (lambda c: c["samples"].pop("robust"), "samples.robust is not a list"),
    "values": (lambda c: c["samples"].update(step=["x"] * 24), "samples.step is not a list"),
    "2**70": (lambda c: c["samples"].update(step=[2**70] * 24), "samples.step has values that"),
    "10**400": (lambda c: c["samples"].update(distance=[10**400] * 24), "samples.distance has v"),
    "a length": (lambda c: c["samples"]["step"].pop(), "samples.step has 23 values, not 24"),
    "no rows": (lambda c: c["samples"].update(clean_correct=[]), "has 0 values"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_is_no_report_is_refused_by_name(report, tmp_path, name):
    change_it, said = CHANGES[name]
    content = json.loads(report.to_json())
    change_it(content)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"report.json is not a report .*{said}"):
        Report.load(path)


def test_a_report_of_an_attack_without_a_threat_model_is_loaded(report, tmp_path):
    plain = replace(report, norm="", threat="None", eps=None)
    plain.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == plain


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_numbers_that_are_not_finite_are_refused(report, tmp_path, number):
    path = tmp_path / "report.json"
    content = json.loads(report.to_json())
    content["seconds"] = "here"
    path.write_text(json.dumps(content).replace('"here"', number))
    with pytest.raises(ValueError, match=r"report.json is not a JSON file: "):
        Report.load(path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("broken", -1, "broken of a stage is -1"),
        ("attacked", 2.0, "attacked of a stage is 2.0"),
        ("name", 3, "name of a stage is 3"),
        ("luck", 1, "fields of a stage are unknown: luck"),
    ],
)
def test_stages_have_the_fields_that_were_saved(tmp_path, field, value, said):
    p = mixed_problem(24)
    content = json.loads(evaluate(p.model, (p.x, p.y), ensemble()).to_json())
    content["stages"][1][field] = value
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"report.json is not a report .*{said}"):
        Report.load(tmp_path / "report.json")
    del content["stages"][1][field]
    if field != "luck":
        (tmp_path / "report.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"fields of a stage are missing: {field}"):
            Report.load(tmp_path / "report.json")


def test_a_code_of_a_later_version_is_loaded_and_said_to_be_unknown(report, tmp_path):
    content = json.loads(report.to_json())
    content["warnings"] = {"of_tomorrow": 3}
    (tmp_path / "report.json").write_text(json.dumps(content))
    loaded = Report.load(tmp_path / "report.json")
    said = "of_tomorrow: 3 of 24 samples: a code that this version does not know"
    for text in (loaded.to_markdown(), loaded.to_html(), loaded.to_json()):
        assert said in text
    loaded.save(tmp_path / "again.json")
    assert Report.load(tmp_path / "again.json") == loaded


def test_files_of_others_are_refused(tmp_path):
    p = mixed_problem(8)
    attack = fastadv.fgsm(threat_of("linf"))
    curve = fastadv.robustness_curve(p.model, (p.x, p.y), attack, [0.1, 0.2])
    curve.save(tmp_path / "curve.json")
    with pytest.raises(ValueError, match="is not a report"):
        Report.load(tmp_path / "curve.json")
    torch.save({"samples": {}}, tmp_path / "pickle.json")
    with pytest.raises(ValueError, match="is not a JSON file"):
        Report.load(tmp_path / "pickle.json")
    with pytest.raises(FileNotFoundError):
        Report.load(tmp_path / "missing.json")


def assert_short(text, *parts):
    lines = text.splitlines()
    assert len(lines) <= 2 and all(len(line) <= 200 for line in lines)
    assert "tensor(" not in text.replace("torch.tensor", "")
    for part in parts:
        assert part in text, (part, text)


def test_a_report_says_in_two_lines_what_it_found(report):
    robust = f"{100 * report.robust_accuracy:.2f} % of 24 samples robust"
    assert_short(repr(report), robust, f"eps={report.eps}", report.attack[:40])


def test_a_notebook_shows_a_report_without_rules_for_the_whole_page(report):
    shown = report._repr_html_()
    assert "<style" not in shown and "<html" not in shown and "<script" not in shown
    assert f"{100 * report.robust_accuracy:.2f} % robust accuracy" in shown
    assert shown.count("<tr>") == report.to_html().count("<tr>")


def test_a_result_counts_and_dumps_nothing():
    p = mixed_problem(24)
    for attack in ATTACKS.values():
        result = attack().run(p.model, p.x, p.y)
        hits = int(result.success.sum())
        share = f"{hits} successes of 24 ({100 * hits / 24:.2f} %)"
        assert_short(repr(result), share, f"{result.forwards:,} forwards", "(24, 3, 4, 4)")
        empty = attack().run(p.model, p.x[:0], p.y[:0])
        assert_short(repr(empty), "0 successes of 0")


def test_a_curve_names_its_radii():
    p = mixed_problem(24)
    attack = fastadv.fgsm(threat_of("linf"))
    curve = fastadv.robustness_curve(p.model, (p.x, p.y), attack, [0.1, 0.2])
    rates = [f"{100 * rate:.2f} %" for rate in curve.robust_accuracy]
    assert_short(repr(curve), f"{rates[0]} at 0.1", f"{rates[1]} at 0.2", "of 24 samples")
    radii = [k / 100 for k in range(1, 11)]
    long = fastadv.robustness_curve(p.model, (p.x, p.y), attack, radii)
    assert_short(repr(long), " at 0.01", "...", " at 0.1")


def test_a_graphed_step_says_what_it_steps_and_how():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    run = training.graphed(training.FastAT(fastadv.Linf(0.1)), optimizer)
    p = mixed_problem(8)
    run(net, p.x, p.y)
    assert_short(repr(run), "FastAT", "SGD", "1 batches, not recorded")
    run.refusal = "the model waits"
    assert "not recorded: the model waits" in repr(run)
