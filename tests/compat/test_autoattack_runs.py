"""run_standard_evaluation of fastadv.compat.autoattack: what is returned, logged and left alone."""

import re
import warnings

import pytest
import torch
from toy_models import mixed_problem

import fastadv
from fastadv.compat.autoattack import AutoAttack

ATTACKS = ["square", "apgd-ce", "fab", "apgd-t"]


class Lines(list):
    def log(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def problem():
    return mixed_problem(48, (1, 8, 8), seed=1)


def adversary_of(model, attacks=ATTACKS, **more) -> AutoAttack:
    """Budgets so small that each of ATTACKS breaks samples that the ones before it could not."""
    given = {"eps": 0.06, "seed": 0, "device": "cpu", "version": "custom", **more}
    made = AutoAttack(model, attacks_to_run=list(attacks), **given)
    made.square.n_queries, made.apgd.n_iter, made.apgd.n_restarts = 8, 2, 1
    made.fab.n_iter, made.fab.n_restarts, made.fab.n_target_classes = 1, 2, 2
    made.apgd_targeted.n_iter, made.apgd_targeted.n_target_classes = 5, 3
    made.logger = Lines()
    return made


def test_it_returns_what_fastadvs_ensemble_finds(problem):
    adversary = adversary_of(problem.model)
    x_adv, y_adv = adversary.run_standard_evaluation(problem.x, problem.y, bs=7, return_labels=True)
    ensemble = fastadv.autoattack(
        fastadv.Linf(0.06), "custom", attacks=adversary.attacks(0), keep="authors"
    )
    result = ensemble.run(problem.model, problem.x, problem.y)
    assert torch.equal(x_adv, result.x_adv)
    assert torch.equal(y_adv, problem.model(x_adv).argmax(1))
    was_wrong = problem.model(problem.x).argmax(1) != problem.y
    assert bool((y_adv != problem.y)[was_wrong].all())
    unmoved = (x_adv == problem.x).flatten(1).all(1)
    assert torch.equal(unmoved, was_wrong | (y_adv == problem.y))
    assert 0 < int((y_adv == problem.y).sum()) < len(unmoved) - int(was_wrong.sum())


def test_the_log_has_the_authors_lines(problem, capsys):
    adversary = adversary_of(problem.model)
    x_adv = adversary.run_standard_evaluation(problem.x, problem.y)
    n, largest = len(problem.x), float((x_adv - problem.x).abs().max())
    expected = [
        "using custom version including square, apgd-ce, fab, apgd-t.",
        "initial accuracy: 87.50%",
    ]
    robust = 42
    stages = (
        fastadv.autoattack(
            fastadv.Linf(0.06), "custom", attacks=adversary.attacks(0), keep="authors"
        )
        .run(problem.model, problem.x, problem.y)
        .stages
    )
    for name, stage in zip(ATTACKS, stages, strict=True):
        assert stage.broken > 0
        expected.append(f"{name} - 1/1 - {stage.broken} out of {robust} successfully perturbed")
        robust -= stage.broken
        expected.append(f"robust accuracy after {name.upper()}: {robust / n:.2%} (total time X s)")
    expected += [
        f"max Linf perturbation: {largest:.5f}, nan in tensor: 0, max: {x_adv.max():.5f}, "
        f"min: {x_adv.min():.5f}",
        f"robust accuracy: {robust / n:.2%}",
    ]
    lines = [re.sub(r"time \d+\.\d s", "time X s", line) for line in adversary.logger]
    assert lines == expected
    assert capsys.readouterr().out == ""  # the logger prints, and this one does not


def test_log_path_gets_what_is_printed(problem, capsys, tmp_path):
    path = tmp_path / "log.txt"
    adversary = AutoAttack(
        problem.model,
        eps=0.06,
        seed=0,
        version="custom",
        attacks_to_run=["apgd-ce"],
        device="cpu",
        log_path=path,
    )
    adversary.apgd.n_iter, adversary.apgd.n_restarts = 1, 1
    adversary.run_standard_evaluation(problem.x, problem.y)
    assert path.read_text() == capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 6


def test_not_verbose_says_nothing_but_warnings(problem):
    def model(z: torch.Tensor) -> torch.Tensor:
        return problem.model(z).softmax(1)

    adversary = adversary_of(model, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adversary.run_standard_evaluation(problem.x, problem.y)
    assert adversary.logger == [
        "Warning: it seems that the output is a probability distribution, please be sure that the "
        "logits are used! See flags_doc.md for details."
    ]


def test_warnings_of_the_model_pass_and_filters_are_restored(problem):
    def model(z: torch.Tensor) -> torch.Tensor:
        warnings.warn("from the model", DeprecationWarning, stacklevel=1)
        return problem.model(z)

    before = warnings.filters[:], warnings.showwarning
    with pytest.warns(DeprecationWarning, match="from the model"):
        adversary_of(model, ["square"]).run_standard_evaluation(problem.x, problem.y)
    assert (warnings.filters[:], warnings.showwarning) == before


def test_randomised_models_are_reported_unless_version_rand_expects_them(problem):
    def model(z: torch.Tensor) -> torch.Tensor:
        return problem.model(z) + 0.001 * torch.randn(len(z), 5)

    adversary = adversary_of(model, ["square"])
    adversary.run_standard_evaluation(problem.x, problem.y)
    assert sum("randomized defense" in line for line in adversary.logger) == 1
    adversary = adversary_of(model, ["square"])
    adversary.version = "rand"
    adversary.run_standard_evaluation(problem.x, problem.y)
    assert not any("randomized defense" in line for line in adversary.logger)


def test_masked_gradients_are_reported(problem):
    def staircase(z: torch.Tensor) -> torch.Tensor:
        return problem.model((z * 32).round() / 32)  # flat everywhere: no gradient

    adversary = adversary_of(staircase, ["apgd-ce", "square"])
    adversary.square.n_queries = 100
    adversary.run_standard_evaluation(problem.x, problem.y)
    stages = [line.split(" - ")[2].split() for line in adversary.logger if " - 1/1 - " in line]
    gained, left = int(stages[1][0]) / len(problem.x), int(stages[1][3])
    assert gained > 0.002
    told = [line for line in adversary.logger if line.startswith("Warning: ")]
    assert len(told) == 2
    assert told[0] == (
        f"Warning: there are {left} points with zero gradient! This might lead to unreliable "
        "evaluation with gradient-based attacks. See flags_doc.md for details."
    )
    assert told[1].startswith(
        f"Warning: Square Attack has decreased the robust accuracy of {gained:.2%}. "
    )


def test_few_classes_are_reported_and_attacked_all_the_same():
    problem = mixed_problem(20, (1, 8, 8), classes=3)
    adversary = adversary_of(problem.model, ["apgd-t"])
    x_adv = adversary.run_standard_evaluation(problem.x, problem.y)
    wrong = problem.model(x_adv).argmax(1) != problem.y
    assert int(wrong.sum()) > int((problem.model(problem.x).argmax(1) != problem.y).sum())
    found = [line for line in adversary.logger if line.startswith("Warning")]
    assert found[0] == (
        "Warning: with only 3 classes it is not possible to use the targeted DLR loss!"
    )
    assert "margin loss was used" in found[1]


def test_attacks_are_run_one_by_one_on_all_samples(problem, capsys):
    adversary = adversary_of(problem.model)
    found = adversary.run_standard_evaluation_individual(problem.x, problem.y, return_labels=True)
    assert list(found) == ATTACKS and adversary.attacks_to_run == ATTACKS and adversary.verbose
    for name, (x_adv, y_adv) in found.items():
        alone = adversary_of(problem.model, [name]).run_standard_evaluation(problem.x, problem.y)
        assert torch.equal(x_adv, alone)
        accuracy = float((y_adv == problem.y).double().mean())
        space = "\t \t" if name == "fab" else "\t"
        start = f"robust accuracy by {name.upper()} {space} {accuracy:.2%} \t (time attack: "
        assert sum(line.startswith(start) for line in adversary.logger) == 1
    assert capsys.readouterr().out.startswith("using custom version including square, apgd-ce")


def test_clean_accuracy_is_printed_and_returned(problem, capsys):
    adversary = adversary_of(problem.model)
    assert adversary.clean_accuracy(problem.x, problem.y, bs=7) == 42 / 48
    assert capsys.readouterr().out == "clean accuracy: 87.50%\n"


def test_the_global_generator_and_the_arguments_are_left_alone(problem):
    x, y = problem.x.clone(), problem.y.clone()
    state = torch.random.get_rng_state()
    problem.model.train()
    adversary_of(problem.model, seed=None).run_standard_evaluation(problem.x, problem.y)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(problem.x, x) and torch.equal(problem.y, y)
    assert problem.model.training


def test_dtype_and_kind_of_labels_are_kept(problem):
    model = problem.model.double()
    x_adv, y_adv = adversary_of(model, ["square"]).run_standard_evaluation(
        problem.x.double(), problem.y.to(torch.int32), return_labels=True
    )
    assert (x_adv.dtype, y_adv.dtype) == (torch.float64, torch.int32)


def test_without_attacks_the_samples_come_back(problem):
    adversary = adversary_of(problem.model, [])
    x_adv = adversary.run_standard_evaluation(problem.x, problem.y)
    assert torch.equal(x_adv, problem.x)
    assert adversary.logger[-1] == "robust accuracy: 87.50%"
    with pytest.raises(ValueError, match="at least one sample"):
        adversary.run_standard_evaluation(problem.x[:0], problem.y[:0])


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.9), ("L2", 7.0), ("L1", 50.0)])
def test_attacks_behind_the_last_survivor_are_not_run(problem, norm, eps):
    adversary = adversary_of(problem.model, ["apgd-ce", "apgd-t", "square"], norm=norm, eps=eps)
    adversary.apgd.n_iter = 10
    adversary.run_standard_evaluation(problem.x, problem.y)
    assert sum(" - 1/1 - " in line for line in adversary.logger) == 1
    assert adversary.logger[-1] == "robust accuracy: 0.00%"


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_an_attack_may_break_nothing(problem, norm):
    adversary = adversary_of(problem.model, ["square", "apgd-ce"], norm=norm, eps=1e-5)
    x_adv = adversary.run_standard_evaluation(problem.x, problem.y)
    assert torch.equal(x_adv, problem.x)
    assert "square - 1/1 - 0 out of 42 successfully perturbed" in adversary.logger
