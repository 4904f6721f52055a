"""Interrupted evaluations go on to the same bits; checkpoints of anything else are refused."""

import os
import warnings

import pytest
import torch
from torch import nn

import fastadv
from fastadv.data import load_digits
from fastadv.evaluation import evaluate
from fastadv.models import digits_net

ATTACK = fastadv.pgd(fastadv.Linf(0.1), steps=2, restarts=2, seed=1)
BATCH = 2  # blocks of 16
SAMPLES = 44  # three blocks, the last one cut short
CLEAN_CALLS = 8  # of a block


class Failing(nn.Module):
    """digits_net that raises at a given call, or never (0), and counts its calls."""

    def __init__(self, at: int = 0):
        super().__init__()
        self.net = digits_net(3)
        self.at, self.calls = at, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("killed")
        return self.net(x)


@pytest.fixture(scope="module")
def data():
    x, y = load_digits("test")
    x, y = x[:SAMPLES], y[:SAMPLES]
    return x, digits_net(3)(x).argmax(1).where(torch.arange(SAMPLES) % 4 != 0, y)


def comparable(report) -> dict:
    """All of a report that does not depend on the clock, tensors as their bytes."""
    counts = {k: v for k, v in report.cost._asdict().items() if not k.endswith("seconds")}
    return {
        name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
        for name, value in {**vars(report), "cost": counts}.items()
        if name not in ("seconds", "date")
    }


def run(model, data, path=None, attack=ATTACK, batch_size=BATCH):
    return evaluate(model, data, attack, batch_size=batch_size, checkpoint=path)


def interrupt(data, path, batch_size=BATCH):
    """Leave a checkpoint of somewhat more than half of the data."""
    whole = Failing()
    run(whole, data, batch_size=batch_size)
    with pytest.raises(RuntimeError, match="killed"):
        run(Failing(at=whole.calls * 9 // 10), data, path, batch_size=batch_size)


def test_interrupted_at_any_block_and_resumed_equals_uninterrupted(data, tmp_path):
    whole = Failing()
    expected = comparable(run(whole, data))
    for at in (1, whole.calls // 2, whole.calls * 9 // 10):  # one call in each block
        path = tmp_path / f"{at}.pt"
        with pytest.raises(RuntimeError, match="killed"):
            run(Failing(at=at), data, path)
        resumed = Failing()
        assert comparable(run(resumed, data, path)) == expected
        assert resumed.calls <= whole.calls


def test_interrupted_after_every_block_repeats_the_first_clean_block_only(data, tmp_path):
    whole = Failing()
    expected = comparable(run(whole, data))

    class OneBlock:
        """An attack that is stopped before its second block."""

        def __init__(self):
            self.blocks = 0

        def run(self, *arguments, **more):
            self.blocks += 1
            if self.blocks == 2:
                raise KeyboardInterrupt
            return ATTACK.run(*arguments, **more)

        def __repr__(self):
            return repr(ATTACK)

        def __getattr__(self, name):
            return getattr(ATTACK, name)

    calls = 0
    for _ in range(2):
        model = Failing()
        with pytest.raises(KeyboardInterrupt):
            run(model, data, tmp_path / "c.pt", OneBlock())
        calls += model.calls
    model = Failing()
    assert comparable(run(model, data, tmp_path / "c.pt", OneBlock())) == expected
    assert calls + model.calls == whole.calls + 2 * CLEAN_CALLS


def test_a_finished_checkpoint_calls_the_model_on_its_first_clean_block_only(data, tmp_path):
    expected = comparable(run(Failing(), data, tmp_path / "c.pt"))
    model = Failing()
    assert comparable(run(model, data, tmp_path / "c.pt")) == expected
    assert model.calls == CLEAN_CALLS


@pytest.mark.filterwarnings("ignore:squashed")  # behind a ReLU and random weights it may be so
def test_another_structure_with_the_same_weights_is_another_model(data, tmp_path):
    linear = nn.Linear(64, 10)

    def net(last):
        return nn.Sequential(nn.Flatten(), linear, last)

    run(net(nn.ReLU()), data, tmp_path / "c.pt")
    run(net(nn.ReLU()), data, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="belongs to another model .the SHA-256 of its structure"):
        run(net(nn.Hardtanh()), data, tmp_path / "c.pt")


def test_another_function_is_another_model(data, tmp_path):
    net = digits_net(3)

    def functions(sign):
        return lambda x: sign * net(x)

    run(functions(1), data, tmp_path / "c.pt")
    run(functions(1), data, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="belongs to another model: .* classifies its first clean"):
        run(functions(-1), data, tmp_path / "c.pt")


def test_near_ties_and_random_models_are_not_taken_for_another_model(data, tmp_path):
    class Drawing(nn.Module):
        noise = 50.0

        def forward(self, x):
            return x.flatten(1)[:, :10] + self.noise * torch.randn(len(x), 10)

    net = digits_net(3)
    scale = torch.ones(10)

    def nearly(x):
        return net(x) * 1e-4 + scale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastadv.AttackWarning)
        run(Drawing(), data, tmp_path / "random.pt", batch_size=3)
        run(Drawing(), data, tmp_path / "random.pt", batch_size=2)
        run(nearly, data, tmp_path / "tie.pt")
        scale[3] += 2.0**-8
        run(nearly, data, tmp_path / "tie.pt")


def _named_loss(logits, y):
    return -logits.gather(1, y[:, None])[:, 0]


def test_a_checkpoint_needs_a_loss_with_a_name(data, tmp_path):
    def with_loss(loss):
        return fastadv.pgd(fastadv.Linf(0.1), steps=2, loss=loss)

    nameless = with_loss(lambda logits, y: _named_loss(logits, y))
    with pytest.raises(ValueError, match="Give loss a function made by def; got fastadv.pgd"):
        run(Failing(), data, tmp_path / "c.pt", nameless)
    assert not (tmp_path / "c.pt").exists()
    named = run(Failing(), data, tmp_path / "c.pt", with_loss(_named_loss))
    assert (
        comparable(run(Failing(), data, attack=nameless))["robust"] == comparable(named)["robust"]
    )


def test_a_checkpoint_does_not_depend_on_how_the_data_are_cut(data, tmp_path):
    """Out of memory at one batch size: go on with a smaller one."""
    interrupt(data, tmp_path / "c.pt", batch_size=3)
    assert 0 < len(torch.load(tmp_path / "c.pt", weights_only=True)["columns"]["step"]) < SAMPLES
    resumed = run(Failing(), data, tmp_path / "c.pt", batch_size=2)
    assert torch.equal(resumed.success, run(Failing(), data).success)


def test_what_a_checkpoint_belongs_to_is_checked(data, tmp_path):
    path = tmp_path / "c.pt"
    interrupt(data, path)
    x, y = data
    changed = x.clone()
    changed[3] = changed[3].flip(-1)
    other = Failing()
    with torch.no_grad():
        other.net[0].bias[0] += 1e-3
    longer = fastadv.pgd(fastadv.Linf(0.1), steps=3, restarts=2, seed=1)
    for arguments, message in (
        ((Failing(), data, path, longer), "belongs to another attack: .*steps=2"),
        ((other, data, path), "belongs to another model"),
        ((Failing(), (x[:36], y[:36]), path), "another number of samples: 44, not 36"),
        ((Failing(), (changed, y), path), "belongs to other data: sample 3 was another"),
        ((Failing(), (x, (y + 1) % 10), path), "belongs to other data: sample 0 was another"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*arguments)
    run(Failing(), data, path)  # and it is still good


def test_a_checkpoint_goes_on_with_what_changes_no_result_and_nothing_else(data, tmp_path):
    path = tmp_path / "c.pt"
    interrupt(data, path)

    def by(**options):
        return evaluate(
            Failing(),
            data,
            ATTACK,
            batch_size=BATCH,
            checkpoint=path,
            execution=fastadv.Execution(**options),
        )

    for options, said in (
        ({"precision": "bf16"}, "precision='bf16'"),
        ({"channels_last": True, "fold_batchnorm": True}, "channels_last=True, fold_batchnorm=Tr"),
    ):
        message = f"belongs to another way to run the search: the default, not {said}"
        with pytest.raises(ValueError, match=message):
            by(**options)
    report = by(batching="plain", cuda_graph=False)
    assert torch.equal(report.success, run(Failing(), data).success)


def test_a_longer_or_shorter_loader_does_not_pass_for_the_finished_one(data, tmp_path):
    x, y = data

    def loader(n):
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x[:n], y[:n]), batch_size=4
        )

    run(Failing(), loader(40), tmp_path / "c.pt")
    for n, here in ((44, "more"), (36, "36")):
        message = f"belongs to other data: it has 40 samples.*, here are {here}"
        with pytest.raises(ValueError, match=message):
            run(Failing(), loader(n), tmp_path / "c.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused(data, tmp_path, content):
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        run(Failing(), data, tmp_path / "c.pt")


def test_a_file_of_something_else_is_refused(data, tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="is not a checkpoint of this version"):
        run(Failing(), data, tmp_path / "c.pt")


def test_a_pickle_that_runs_code_is_not_run(data, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    torch.save({"format": Evil()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        run(Failing(), data, tmp_path / "c.pt")
    assert not (tmp_path / "evil").exists()


def test_a_missing_folder_is_refused_before_the_attack(data, tmp_path):
    model = Failing()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        run(model, data, tmp_path / "nowhere" / "c.pt")
    assert model.calls == 0
