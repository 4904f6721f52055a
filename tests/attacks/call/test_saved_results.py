"""`AttackResult.save` and `load`: the same values again, and no code of a file is run."""

import dataclasses

import pytest
import torch

import fastadv
from fastadv.data import load_digits
from fastadv.models import digits_net
from fastadv.values import same_value

THREAT = fastadv.Linf(0.1)


@pytest.mark.parametrize(
    "attack",
    [
        fastadv.pgd(THREAT, steps=2),
        fastadv.autoattack(THREAT, "custom", attacks=[fastadv.fgsm(THREAT), fastadv.bim(THREAT)]),
    ],
    ids=["attack", "ensemble"],
)
def test_a_result_is_the_same_again(tmp_path, attack):
    x, y = load_digits("test")
    execution = fastadv.Execution(batch_size=4)
    result = attack.run(digits_net(3), x[:8], y[:8], execution=execution)
    result.save(tmp_path / "r.pt")
    again = fastadv.AttackResult.load(tmp_path / "r.pt")
    for field in dataclasses.fields(result):
        assert same_value(getattr(again, field.name), getattr(result, field.name)), field.name


class Trap:
    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_other_files_are_refused_and_nothing_in_them_is_run(tmp_path):
    path = tmp_path / "r.pt"
    torch.save({"kind": "AttackResult", "x_adv": Trap()}, path)
    with pytest.raises(ValueError, match="no AttackResult that was saved, and nothing of it was"):
        fastadv.AttackResult.load(path)
    torch.save({"w": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="r.pt is no AttackResult that was saved$"):
        fastadv.AttackResult.load(path)
    torch.save({"kind": "AttackResult"}, path)
    with pytest.raises(ValueError, match="no AttackResult of this version: 'x_adv'"):
        fastadv.AttackResult.load(path)
    assert not Trap.sprung


def test_where_it_can_be_saved_is_said(tmp_path):
    result = fastadv.AttackResult.empty(torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"path must end in .pt; got r.npz"):
        result.save("r.npz")
    with pytest.raises(FileNotFoundError, match="r.pt cannot be written: there is no folder .*no$"):
        result.save(tmp_path / "no" / "r.pt")
    with pytest.raises(FileNotFoundError, match="no such file: .*r.pt"):
        fastadv.AttackResult.load(tmp_path / "r.pt")
