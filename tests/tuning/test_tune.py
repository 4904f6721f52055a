"""`fastadv.tune` takes the fastest that answers as the model does, by clocks that are told."""

import copy

import pytest
import torch
from costly import Costly, by_rows, fake_time, samples

import fastadv
from fastadv.attacks.automatic import tuning_table
from fastadv.tuning.table import in_words


@pytest.fixture
def clock(monkeypatch):
    torch.manual_seed(0)
    return fake_time(monkeypatch)


@pytest.mark.parametrize("best", [8, 64, 256])
def test_the_batch_size_that_is_fastest_is_taken(clock, best):
    found = fastadv.tune(Costly(clock, by_rows(best)).eval(), samples())
    assert found == fastadv.Execution(batch_size=best)
    assert eval(repr(found), {"Execution": fastadv.Execution}) == found


def test_a_size_that_is_no_power_of_two_is_the_default_and_may_be_the_fastest(clock):
    model = Costly(clock, by_rows(20)).eval()
    assert fastadv.tune(model, samples(20)) == fastadv.Execution()


def test_the_default_is_kept_where_little_is_gained(clock):
    def cost(x, model):
        return len(x) * (0.97e-4 if len(x) == 64 else 1e-4)

    assert fastadv.tune(Costly(clock, cost).eval(), samples()) == fastadv.Execution()


def test_a_layout_is_taken_where_it_is_faster(clock):
    def cost(x, model):
        is_last = x.is_contiguous(memory_format=torch.channels_last)
        return len(x) * (0.5e-4 if is_last else 1e-4)

    assert fastadv.tune(Costly(clock, cost).eval(), samples()).channels_last


def test_a_folded_copy_is_taken_where_it_is_faster(clock):
    def cost(x, model):
        return len(x) * (1e-4 if model.first.bias is None else 0.5e-4)

    found = fastadv.tune(Costly(clock, cost, norm=True).eval(), samples())
    assert found.fold_batchnorm and not found.channels_last


def _halves(x, model):
    return len(x) * (0.3e-4 if torch.is_autocast_enabled("cpu") else 1e-4)


def test_half_precision_is_taken_only_where_it_is_named(clock):
    model = Costly(clock, _halves).eval()
    assert fastadv.tune(model, samples()).precision == "fp32"
    assert fastadv.tune(model, samples(), precisions=["fp32", "bf16"]).precision == "bf16"


def test_what_answers_otherwise_is_not_taken(clock):
    class Fickle(Costly):
        def forward(self, x):
            logits = super().forward(x)
            return -logits if torch.is_autocast_enabled("cpu") else logits

    table = tuning_table(Fickle(clock, _halves).eval(), samples(), precisions=("bf16",))
    assert table.choice == fastadv.Execution()
    assert any("without bf16" in note and "logits" in note for note in table.notes)


def test_fp16_is_not_tried_on_a_cpu(clock):
    table = tuning_table(Costly(clock, _halves).eval(), samples(), precisions=("fp16",))
    assert table.choice == fastadv.Execution() and "emulated" in table.notes[0]


def test_of_a_plain_function_only_sizes_are_tried(clock):
    net = Costly(clock, by_rows(32)).eval()
    table = tuning_table(lambda x: net(x), samples())
    assert table.choice == fastadv.Execution(batch_size=32)
    assert all(row.execution.is_exact for row in table.rows)


def test_a_model_of_whole_batches_keeps_them(clock):
    def cost(x, model):
        if len(x) != 20:
            raise RuntimeError("20 rows only")
        return 1e-3

    assert fastadv.tune(Costly(clock, cost).eval(), samples(20)) == fastadv.Execution()


def test_what_the_model_raises_is_raised(clock):
    def cost(x, model):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fastadv.tune(Costly(clock, cost).eval(), samples())


@pytest.mark.parametrize("a_row", [1e-4, 1e-2, 0.3])
def test_the_seconds_are_exceeded_by_one_candidate_at_most(clock, a_row):
    longest = 0.0

    def cost(x, model):
        nonlocal longest
        longest = max(longest, a_row * len(x))
        return a_row * len(x)

    tuning_table(Costly(clock, cost, norm=True).eval(), samples(), seconds=4)
    assert clock.seconds <= 4 + 4 * longest  # two passes of each kind are one candidate's
    assert longest <= max(4, 8 * a_row)


def test_memory_that_runs_out_ends_the_larger_batches(clock):
    def cost(x, model):
        if len(x) > 100:
            raise torch.OutOfMemoryError("out of memory")
        return by_rows(512)(x, model)

    table = tuning_table(Costly(clock, cost).eval(), samples())
    assert table.choice == fastadv.Execution(batch_size=64)
    assert "no batches of 128" in table.notes[0]


def test_what_a_model_takes_beside_x_goes_along(clock):
    class Two(Costly):
        def forward(self, x, more):
            assert len(more) == len(x)
            return super().forward(x) * more

    found = fastadv.tune(Two(clock, by_rows(64)).eval(), samples(), extra=(torch.ones(20, 1),))
    assert found.batch_size == 64


def test_the_table_says_what_was_measured(clock):
    table = tuning_table(Costly(clock, by_rows(64)).eval(), samples())
    assert table.chosen_row is table.rows[0] and table.rows[0].speed_up > 2
    text = str(table)
    assert "choice" in text and "default" in text and "channels_last" in text
    assert '"batch_size": 64' in table.to_json()
    assert in_words(table.choice) == "fastadv.Execution(batch_size=64)"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (dict(x=[1.0]), "x must"),
        (dict(x=torch.zeros(0, 3, 4, 4)), "x must"),
        (dict(x=torch.full((2, 3, 4, 4), torch.nan)), "x has"),
        (dict(model=3), "model must"),
        (dict(seconds=0), "seconds must"),
        (dict(seconds="10"), "seconds must"),
        (dict(seconds=float("inf")), "seconds must"),
        (dict(precisions="bf16"), "precisions must"),
        (dict(precisions=("fp8",)), "precisions must"),
        (dict(extra=torch.ones(20)), "extra must"),
        (dict(extra=(torch.ones(3),)), r"extra\[0\] must"),
    ],
)
def test_bad_arguments_are_named(clock, given, named):
    arguments = dict(model=Costly(clock, by_rows(64)).eval(), x=samples()) | given
    with pytest.raises((TypeError, ValueError), match=named):
        fastadv.tune(**arguments)


def test_nothing_is_left_behind(clock):
    model = Costly(clock, by_rows(64), norm=True).train()
    model.last.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    random, x = torch.get_rng_state(), samples()
    with torch.inference_mode():
        fastadv.tune(model, x, precisions=("fp32", "bf16"))
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(x, samples())
    assert model.training and model.norm.training and not model.last.weight.requires_grad
    assert model.first.weight.requires_grad and model.first.weight.grad is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
