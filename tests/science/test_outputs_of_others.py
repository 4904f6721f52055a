"""Networks that others trained return logits, on real data: none is taken for squashed."""

import pytest
import torch

from fastadv.attacks.call.squashing import signs


@pytest.mark.parametrize(
    "name",
    [
        "mnist_kw_0.1",
        "mnist_tf",
        "mnist_wong_0.3",
        "cifar_madry_8px",
        "cifar_sgd_8px",
        "cifar_wide_kw",
    ],
)
def test_b_no_network_that_others_trained_is_warned_of(name, third_party):
    if name.startswith("cifar"):
        pytest.importorskip("PIL", reason="needs pillow, which reads the shared CIFAR-10")
    model, x, _ = third_party["load"](name, n=16)
    with torch.no_grad():
        logits = model(x)
    for rows in (logits, *logits.split(1)):
        assert signs(rows).tolist() == [0, 0, 0]
