"""The recipes are those of the papers, change as asked, and refuse what makes no run."""

import dataclasses

import pytest
import torch

from fastadv import models
from fastadv.recipes import DATASETS, METHODS, Recipe, recipe, train, training_data

BOTH = [(dataset, method) for dataset in DATASETS for method in METHODS]


def test_fast_on_mnist_is_the_authors_script():
    chosen = recipe("mnist", "fast")
    assert (chosen.model, chosen.batch_size, chosen.epochs) == ("mnist", 100, 10)
    assert (chosen.optimizer, chosen.eps, chosen.step_size) == ("adam", 0.3, 1.25)
    assert chosen.clamp_start is False and chosen.on_collapse == "rollback"
    rates = [chosen.rate_at(epoch) for epoch in (0, 1, 4, 7, 10)]
    assert rates == pytest.approx([0, 1.25e-3, 5e-3, 2.5e-3, 0])


def test_a_jump_of_the_learning_rate_keeps_the_earlier_value_up_to_it():
    chosen = recipe("cifar10", "mart")
    rates = [chosen.rate_at(epoch) for epoch in (0, 74, 74.001, 89, 89.5, 99, 120)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


def test_the_learning_rate_stays_at_its_ends():
    chosen = dataclasses.replace(recipe("digits", "fast"), learning_rate=((1.0, 0.5), (2.0, 0.25)))
    assert [chosen.rate_at(epoch) for epoch in (0, 1, 1.5, 2, 9)] == [0.5, 0.5, 0.375, 0.25, 0.25]


@pytest.mark.parametrize(("dataset", "method"), BOTH)
def test_schedules_end_with_the_epochs(dataset, method):
    chosen = recipe(dataset, method)
    assert chosen.learning_rate[0][0] == 0 and chosen.learning_rate[-1][0] == chosen.epochs
    assert chosen.eps_warmup < chosen.epochs


def test_other_epochs_stretch_learning_rate_and_warm_up():
    chosen, longer = recipe("mnist", "pgd"), recipe("mnist", "pgd", epochs=10)
    assert longer.eps_warmup == 2 * chosen.eps_warmup == 4.0
    assert longer.rate_at(8.0) == chosen.rate_at(4.0)


def test_the_learning_rate_asked_for_is_the_highest():
    chosen = recipe("cifar10", "fast", learning_rate=0.1)
    assert chosen.rate_at(7.5) == 0.1 and chosen.rate_at(3.75) == pytest.approx(0.05)


def test_what_is_given_replaces_the_recipes_own():
    given = dict(
        model="fast-cifar",
        eps=0.1,
        batch_size=7,
        steps=3,
        step_size=0.5,
        ema=0.99,
        precision="bf16",
        seed=5,
        on_collapse="stop",
    )
    chosen = recipe("cifar10", "pgd", **given)
    assert {name: getattr(chosen, name) for name in given} == given
    assert dataclasses.replace(
        chosen, **{n: getattr(recipe("cifar10", "pgd"), n) for n in given}
    ) == recipe("cifar10", "pgd")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dataset="svhn"), "dataset must be one of digits, mnist, cifar10; got 'svhn'"),
        (dict(method="fgsm"), "method must be one of free, fast, .*; got 'fgsm'"),
        (dict(model="resnet"), "model must be one of digits, .*; got 'resnet'"),
        (dict(eps=8), r"eps=8 is larger than the box.*8/255, not 8"),
        (dict(epochs=0), "epochs must be an integer of at least 1; got 0"),
        (dict(batch_size=1.5), "batch_size must be an integer of at least 1; got 1.5"),
        (dict(learning_rate=0.0), "learning_rate must be finite and above 0; got 0.0"),
        (dict(ema=1.0), r"ema must lie in \[0, 1\), 0 for no average; got 1.0"),
        (dict(precision="fp16"), "precision must be one of fp32, bf16; got 'fp16'"),
        (dict(on_collapse="ask"), "on_collapse must be one of warn, stop, rollback; got 'ask'"),
        (dict(steps=3), "steps does not apply to fast, which takes one a perturbation"),
        (dict(seed="a"), "seed must be an integer in .* got 'a'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_that_makes_no_run_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(**{"dataset": "digits", "method": "fast", **changes})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", ((1.0, 0.1), (0.5, 0.1)), "learning_rate must be knots"),
        ("learning_rate", ((0.0, 0.0),), "learning_rate must be above 0 somewhere"),
        ("sentinel_every", 0.0, "sentinel_every must be above 0"),
        ("eps_warmup", -1.0, "eps_warmup must not be negative"),
        ("optimizer", "lion", "optimizer must be one of adam, sgd"),
    ],
)
def test_a_field_that_makes_no_run_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(recipe("digits", "fast"), **{field: value})


def test_the_repr_of_a_recipe_can_be_pasted():
    chosen = recipe("cifar10", "free", seed=3)
    assert eval(repr(chosen), {"Recipe": Recipe}) == chosen


@pytest.mark.parametrize(("dataset", "method"), BOTH)
def test_every_combination_trains(dataset, method, folders, tmp_path):
    chosen = recipe(dataset, method, epochs=1, batch_size=4)
    # 3 batches are too few to judge; the network of CIFAR-10's recipes takes a minute for them
    small = dict(model="fast-cifar") if dataset == "cifar10" else {}
    chosen = dataclasses.replace(
        chosen, sentinel_every=9.0, floor=0.0, steps=min(chosen.steps, 2), **small
    )
    images, labels = training_data(dataset, folders[dataset])
    result = train(chosen, (images[:15], labels[:15]), tmp_path, progress=False)
    assert [row["batches"] for row in result.epochs] == [3]  # 12 samples, 3 held out
    trained = torch.load(tmp_path / "model.pt", weights_only=True)
    start = models.build(chosen.model, seed=chosen.seed).state_dict()
    weights = [name for name in start if name.endswith("weight")]
    assert all(not torch.equal(trained[name], start[name]) for name in weights)
    assert all(bool(value.isfinite().all()) for value in trained.values())
    name = {"pgd": "PGDAT", "nfgsm": "NFGSM", "free": "FreeAT", "fast": "FastAT"}
    assert name.get(method, method.upper()) in result.epochs[0]["step"]
