from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastadv.data import load_mnist, to_unit_interval
from fastadv.models import mnist_net

_SHARED = Path(__file__).resolve().parents[3] / "shared"


def test_it_has_as_many_parameters_as_stated():
    assert sum(p.numel() for p in mnist_net().parameters()) == 166_406


def test_logits_are_those_of_the_layers_of_the_paper():
    model = mnist_net(seed=2).double()
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double()
    w = model.state_dict()
    hidden = F.conv2d(x, w["0.weight"], w["0.bias"], stride=2, padding=1).relu()
    hidden = F.conv2d(hidden, w["2.weight"], w["2.bias"], stride=2, padding=1).relu()
    hidden = F.linear(hidden.flatten(1), w["5.weight"], w["5.bias"]).relu()
    assert torch.equal(model(x), F.linear(hidden, w["7.weight"], w["7.bias"]))


@pytest.mark.parametrize(("name", "correct"), [("mnist_kw_0.1", 9905), ("mnist_wong_0.3", 8523)])
def test_published_weights_of_this_network_reach_their_recorded_accuracy(name, correct):
    if not (_SHARED / "models" / f"{name}.npz").is_file():
        pytest.skip("needs the optional published weights in ../shared/models")
    if not (_SHARED / "data" / "mnist").is_dir():
        pytest.skip("needs the optional real data in ../shared/data")
    with np.load(_SHARED / "models" / f"{name}.npz", allow_pickle=False) as arrays:
        kind = {"w": "weight", "b": "bias"}
        weights = {
            f"{key[:-1]}{kind[key[-1]]}": torch.from_numpy(arrays[key]) for key in arrays.files
        }
    model = mnist_net()
    model.load_state_dict(weights)
    images, labels = load_mnist(_SHARED / "data" / "mnist", "test")
    with torch.no_grad():
        predicted = model(to_unit_interval(images)).argmax(1)
    # 2: another summation order may tip an image whose two best logits are equal to rounding
    assert abs(int((predicted == labels).sum()) - correct) <= 2
