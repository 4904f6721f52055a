"""Data of more than x and y, item E: what goes beside x to the model follows its sample."""

import judged_models
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fastadv
from fastadv.evaluation import checkpoint, evaluate
from fastadv.evaluation.state import State

BATCH = 2  # blocks of 16
NAMES = ("clean_correct", "robust", "success", "step", "distance")


@pytest.fixture(scope="module")
def case():
    return judged_models.masked()


def rows_of(report) -> list[list]:
    return [getattr(report, name).tolist() for name in NAMES]


class Triples(Dataset):
    """Labels as Python ints."""

    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        x, y, mask = (column[index] for column in self.columns)
        return x, int(y), mask


def test_e_extra_is_what_the_model_closes_over_on_a_whole_batch(case):
    x, y, mask = case.data
    whole = fastadv.Execution(batching="plain", batch_size=len(x))

    def closed_over(x):  # for all samples at once: none is dropped from a batch
        return case.model.model(x * mask[: len(x)])

    attack = fastadv.pgd(case.attack.threat, steps=3, seed=3, keep="last")
    expected = rows_of(evaluate(closed_over, (x, y), attack, execution=whole))
    assert rows_of(evaluate(case.model, case.data, attack, execution=whole)) == expected
    assert rows_of(evaluate(case.model, case.data, attack, batch_size=BATCH)) == expected
    without = rows_of(evaluate(case.model.model, (x, y), attack))
    assert without != expected  # or it could not fail


def test_e_every_kind_of_data_gives_the_same_report(case):
    expected = evaluate(case.model, case.data, case.attack, batch_size=BATCH)
    assert 0 < expected.robust_accuracy < expected.clean_accuracy < 1
    for data in (
        list(case.data),
        DataLoader(TensorDataset(*case.data), batch_size=7),
        TensorDataset(*case.data),
        Triples(*case.data),
    ):
        report = evaluate(case.model, data, case.attack, batch_size=BATCH)
        assert rows_of(report) == rows_of(expected)


def test_e_an_evaluation_with_extra_is_resumed_to_the_same_bits(case, tmp_path):
    class Failing(nn.Module):
        def __init__(self, at=0):
            super().__init__()
            self.net, self.at, self.calls = case.model, at, 0

        def forward(self, x, mask):
            self.calls += 1
            if self.calls == self.at:
                raise RuntimeError("killed")
            return self.net(x, mask)

    def run(model, data, path=None):
        return evaluate(model, data, case.attack, batch_size=BATCH, checkpoint=path)

    whole, (x, y, mask) = Failing(), case.data
    expected = run(whole, case.data)
    path = tmp_path / "c.pt"
    with pytest.raises(RuntimeError, match="killed"):
        run(Failing(whole.calls * 9 // 10), case.data, path)
    other = mask.clone()
    other[5, 0, 0, 0] ^= True
    for data in ((x, y, other), (x, y, mask.float()), (x, y, mask, y)):
        with pytest.raises(ValueError, match="other data: sample [05] was another one"):
            run(Failing(), data, path)
    assert rows_of(run(Failing(), case.data, path)) == rows_of(expected)


def test_e_an_ensemble_with_extra_goes_on_between_its_attacks(case, tmp_path, monkeypatch):
    threat = case.attack.threat
    attacks = [fastadv.square(threat, queries=3), fastadv.apgd_ce(threat, steps=3)]
    ensemble = fastadv.autoattack(threat, version="custom", attacks=attacks)
    x, y, mask = case.data
    expected = evaluate(case.model, case.data, ensemble, batch_size=BATCH)
    assert all(stage.broken for stage in expected.stages)
    result = ensemble.run(case.model, x, y, extra=(mask,))
    assert torch.equal(expected.success, result.success)
    original, path = State.save, tmp_path / "c.pt"

    def save(self, where):
        original(self, where)
        if self.unfinished and self.blocks:  # an attack on the second block
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(State, "save", save)
        with pytest.raises(KeyboardInterrupt):
            evaluate(case.model, case.data, ensemble, batch_size=BATCH, checkpoint=path)
    report = evaluate(case.model, case.data, ensemble, batch_size=BATCH, checkpoint=path)
    assert rows_of(report) == rows_of(expected)


def test_e_a_curve_takes_extra(case):
    attack, (x, y, mask) = case.attack, case.data
    radii = [0.02, 0.06]
    curve = fastadv.robustness_curve(case.model, case.data, attack, radii, batch_size=BATCH)
    for k, radius in enumerate(radii):
        at_this = fastadv.evaluation.at_radius(attack, radius)
        report = evaluate(case.model, case.data, at_this, batch_size=BATCH)
        assert torch.equal(curve.robust[:, k], report.robust)
    assert curve.robust_accuracy[0] > curve.robust_accuracy[1]
    last = fastadv.pgd(attack.threat, steps=3, keep="last")
    curve = fastadv.robustness_curve(case.model, case.data, last, radii)
    assert torch.equal(curve.clean_correct, case.model(x, mask).argmax(1) == y)


def test_e_what_does_not_fit_is_refused(case):
    x, y, mask = case.data
    with pytest.raises(ValueError, match=r"a row of each extra .* and extra\[1\] \(39, 3, 4, 4\)"):
        evaluate(case.model, (x, y, mask, mask[1:]), case.attack)
    with pytest.raises(TypeError, match=r"\(x, y\) tensors; got list of .*may follow as tensors"):
        loader = DataLoader(list(zip(x, y, map(str, range(40)), strict=True)), batch_size=4)
        evaluate(case.model, loader, case.attack)

    class Plain:
        def run(self, model, x, y=None, *, sample_ids=None, execution=None): ...

    with pytest.raises(ValueError, match="yield 3 tensors, .* takes no extra= for the model"):
        evaluate(case.model, case.data, Plain())


@pytest.mark.parametrize(
    "y",
    [
        torch.arange(9) / 16,
        torch.randint(3, (9, 4, 2)),
        torch.rand(9, 2, dtype=torch.float64),
        torch.rand(9, 3).bfloat16(),
        torch.rand(9, 2) < 0.5,
    ],
)
def test_e_fingerprints_see_any_y_and_extra_however_the_data_are_cut(y):
    x, columns = torch.rand(9, 2, 3), (torch.rand(9, 2), torch.arange(9))
    expected = checkpoint.fingerprints(x, y, *columns)
    assert len(set(expected.tolist())) == 9
    digests = set()
    for cut in (1, 4, 9):
        parts = list(zip(*(part.split(cut) for part in (x, y, *columns)), strict=True))
        found = torch.cat([checkpoint.fingerprints(*part) for part in parts])
        assert torch.equal(found, expected)
        whole = checkpoint.DataDigest()
        for part in parts:
            whole.update(*part)
        digests.add(whole.hexdigest())
    assert len(digests) == 1
    changed = y.clone()
    step = 0.25 if y.is_floating_point() else 1
    changed[4] = changed[4].logical_not() if y.dtype == torch.bool else changed[4] + step
    for others in (
        (x, changed, *columns),
        (x, y, columns[0], columns[1] + 1),
        (x, y, columns[0].double(), columns[1]),
        (x, y.reshape(9, -1, 1), *columns),
        (x, y, columns[0]),
    ):
        assert checkpoint.fingerprints(*others)[4] != expected[4]
        other = checkpoint.DataDigest()
        other.update(*others)
        assert other.hexdigest() not in digests
