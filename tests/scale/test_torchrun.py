"""A script under torchrun, fed by a sharded DeviceLoader, against one process."""

import forked
import pytest
import torch
import torchrun_script
from sharded_processes import TORCHRUN

from fastadv.models import digits_net


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("torchrun")
    forked.run(*TORCHRUN, "--nproc-per-node", 2, torchrun_script.__file__, out)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_share_every_epoch_and_reach_the_weights_of_one_process(ranks):
    net = digits_net(seed=0).double()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    seen = torchrun_script.train(net, rank=0, world_size=1)
    together = [
        index
        for first, second in zip(*(torch.tensor(r["seen"]).split(24) for r in ranks), strict=True)
        for index in [*first.tolist(), *second.tolist()]
    ]
    assert together == seen
    assert sorted(seen) == sorted([*range(192)] * torchrun_script.EPOCHS)
    moved = max(float((net.state_dict()[n] - value).abs().max()) for n, value in start.items())
    assert moved > 0.01
    for rank in ranks:
        for name, value in net.state_dict().items():
            # another order of summation; float64 leaves 1e-15 or so
            torch.testing.assert_close(rank["weights"][name], value, rtol=0.0, atol=1e-9)
