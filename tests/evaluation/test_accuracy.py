"""Robust accuracy over data sets: the numbers, the kinds of data, the keys of the randomness."""

import contextlib
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fastadv
from fastadv.evaluation import Report, evaluate
from fastadv.evaluation.accuracy import logits_of

THREAT = fastadv.Linf(0.25)
ATTACK = fastadv.pgd(THREAT, steps=3, restarts=2, seed=7)


def sign_model() -> nn.Module:
    """Two classes, split at x = 0.5: class 1 above it."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    return model


def noisy_problem(n: int = 40) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small network on which some samples fall and some do not."""
    from fastadv.data import load_digits
    from fastadv.models import digits_net

    x, y = load_digits("test")
    return digits_net(3), x[:n], y[:n]


def same_results(a: Report, b: Report) -> bool:
    names = ("clean_correct", "robust", "success", "step", "distance")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.fixture
def problem():
    """A network that knows a few digits, so that every kind of sample occurs."""
    net, x, y = noisy_problem()
    return net, x, net(x).argmax(1).where(torch.arange(len(x)) % 4 != 0, y)


def test_accuracies_are_those_of_a_line_split_at_one_half():
    x = torch.tensor([[0.1], [0.3], [0.45], [0.6], [0.9], [0.9]])
    y = torch.tensor([0, 0, 0, 1, 1, 0])
    report = evaluate(sign_model(), (x, y), ATTACK)
    # only 0.1 and 0.9 are farther from 0.5 than eps; the last is wrong to begin with
    assert report.clean_correct.tolist() == [True, True, True, True, True, False]
    assert report.robust.tolist() == [True, False, False, False, True, False]
    assert report.success.tolist() == [False, True, True, True, False, True]
    assert (report.n, report.clean_accuracy, report.robust_accuracy) == (6, 5 / 6, 2 / 6)
    assert report.step.tolist()[5] == 0 and report.distance.tolist()[5] == 0.0


def test_an_attack_that_keeps_the_last_iterate_has_clean_predictions_too():
    x = torch.tensor([[0.1], [0.45], [0.9]])
    attack = fastadv.pgd(THREAT, steps=3, keep="last")
    report = evaluate(sign_model(), (x, torch.tensor([0, 0, 0])), attack)
    assert report.clean_correct.tolist() == [True, True, False]
    assert report.robust.tolist() == [True, False, False]
    assert report.forwards == 3 * 3 + 3 + 3  # steps, verification, clean


def test_every_kind_of_data_gives_the_same_report(problem):
    net, x, y = problem
    expected = evaluate(net, (x, y), ATTACK)
    for data in (
        [x, y],
        DataLoader(TensorDataset(x, y), batch_size=7),
        TensorDataset(x, y),
        DataLoader(_Stream(x, y), batch_size=9),
        _Pairs(x, y),
    ):
        assert same_results(evaluate(net, data, ATTACK), expected)


class _Stream(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter(zip(self.x, self.y, strict=True))


class _Pairs(Dataset):
    """Labels as Python ints, as torchvision has them."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        if not 0 <= index < len(self.x):
            raise IndexError(index)
        return self.x[index], int(self.y[index])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_results_do_not_depend_on_the_batch_size(problem, batch_size):
    net, x, y = problem
    got, expected = (
        evaluate(net, (x, y), ATTACK, batch_size=batch_size),
        evaluate(net, (x, y), ATTACK),
    )
    assert torch.equal(got.success, expected.success) and torch.equal(got.step, expected.step)


def test_samples_are_keyed_by_their_position(problem):
    """Two blocks of 8 batches of 2 give what one call with the positions as ids gives."""
    net, x, y = problem
    report = evaluate(net, (x, y), ATTACK, batch_size=2)
    result = ATTACK.run(net, x, y, sample_ids=torch.arange(len(x)))
    assert torch.equal(report.success, result.success)
    torch.testing.assert_close(report.distance, result.distance, rtol=0, atol=1e-6)


def test_a_block_is_eight_batches_however_the_loader_cuts_them(problem):
    net, x, y = problem
    sizes = []

    class Spy:
        def run(self, model, x, y=None, **more):
            sizes.append((len(x), more["sample_ids"].tolist()[0], more["execution"].batch_size))
            return ATTACK.run(model, x, y, **more)

    evaluate(net, DataLoader(TensorDataset(x, y), batch_size=7), Spy(), batch_size=2)
    assert sizes == [(16, 0, 2), (16, 16, 2), (8, 32, 2)]


def test_a_loader_gives_its_batch_size_to_the_attack(problem):
    net, x, y = problem
    seen = []

    class Spy:
        def run(self, model, x, y=None, **more):
            seen.append(more["execution"])
            return ATTACK.run(model, x, y, **more)

    plain = fastadv.Execution(batching="plain")
    evaluate(net, DataLoader(TensorDataset(x, y), batch_size=7), Spy(), execution=plain)
    assert seen == [fastadv.Execution(batching="plain", batch_size=7)]


def test_the_model_and_the_global_generator_are_left_alone(problem):
    net, x, y = problem
    net.train()
    before = torch.get_rng_state()
    evaluate(net, TensorDataset(x, y), ATTACK)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("at", [0, 1])
def test_a_loader_that_shuffles_leaves_the_global_generator_alone(problem, at):
    _, x, y = problem

    class Stopped:
        def run(self, *arguments, **more):
            if at:
                raise RuntimeError("stopped")
            return ATTACK.run(*arguments, **more)

    before = torch.get_rng_state()
    loader = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True)
    with pytest.raises(RuntimeError, match="stopped") if at else contextlib.nullcontext():
        evaluate(problem[0], loader, Stopped())
    assert torch.equal(torch.get_rng_state(), before)


def test_warnings_are_counted_over_blocks_and_emitted_once():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.cat([x * 0 + 1, x * 0], 1)

    x, y = torch.full((20, 1), 0.5), torch.zeros(20, dtype=torch.long)
    with pytest.warns(fastadv.AttackWarning) as caught:
        report = evaluate(Flat(), (x, y), fastadv.pgd(THREAT, steps=2), batch_size=1)
    assert report.warnings["zero_gradient"] == 20
    zero = [w.message for w in caught if w.message.code == "zero_gradient"]
    assert [(w.code, w.count) for w in zero] == [("zero_gradient", 20)]


def test_a_warning_of_the_model_passes_through():
    class Loud(nn.Linear):
        def forward(self, x):
            warnings.warn("from the model", stacklevel=1)
            return super().forward(x)

    x, y = torch.rand(4, 2), torch.zeros(4, dtype=torch.long)
    with pytest.warns(UserWarning, match="from the model"):
        evaluate(Loud(2, 3), (x, y), fastadv.fgsm(THREAT))


def test_logits_are_those_of_eval_mode():
    model = nn.Sequential(nn.Dropout(0.9), sign_model()).train()
    x = torch.tensor([[0.1], [0.9], [0.4]])
    logits = logits_of(model, x, batch_size=2)
    assert torch.equal(logits, model.eval()(x)) and not logits.requires_grad
    model.train()
    logits_of(model, x, batch_size=2)
    assert model.training


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([1, 2, 3], TypeError, "data must be .* got list of \\(int, int, int\\)"),
        (torch.zeros(3, 1), TypeError, "data must be .* got Tensor"),
        (torch.nn.Sequential(torch.nn.Flatten()), TypeError, "data must be .* got Sequential"),
        ((torch.zeros(3, 1), torch.zeros(2).long()), ValueError, "one label a sample"),
        ((torch.zeros(0, 1), torch.zeros(0).long()), ValueError, "data is empty"),
        (DataLoader(torch.zeros(3, 1)), TypeError, r"data must yield \(x, y\) tensors; got Tensor"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        evaluate(sign_model(), data, ATTACK)


def test_a_radius_per_sample_is_refused():
    attack = fastadv.pgd(fastadv.Linf(torch.tensor([0.1, 0.2])))
    with pytest.raises(ValueError, match=r"one eps for all samples; got a tensor of shape \(2,\)"):
        evaluate(sign_model(), (torch.zeros(2, 1), torch.zeros(2).long()), attack)


def test_something_else_than_an_attack_is_refused():
    with pytest.raises(TypeError, match="attack must be an attack or .*; got fastadv.Linf"):
        evaluate(sign_model(), (torch.zeros(2, 1), torch.zeros(2).long()), THREAT)


class _Terminal:
    """What a progress bar writes to, and thinks is a terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass


def test_a_bar_is_shown_on_a_terminal_only_and_only_if_wanted(problem, monkeypatch):
    net, x, y = problem
    monkeypatch.setenv("TERM", "xterm")
    texts = []
    for wanted in (True, False):
        terminal = _Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        evaluate(net, (x, y), ATTACK, progress=wanted)
        texts.append(terminal.text)
    assert "attacking" in texts[0] and texts[1] == ""
