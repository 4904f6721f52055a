"""Attacks and training runs, their bits hashed: `python -m benchmarks.attacks.fingerprints`.

Two trees that print the same lines compute the same. Bits depend on the machine, the version of
PyTorch and the number of threads; the two runs need these in common.
"""

import argparse
import hashlib

import torch

import fastadv
from fastadv import training
from fastadv.data import load_digits
from fastadv.models import digits_net

_LINF, _L2, _L1 = fastadv.Linf(0.15), fastadv.L2(0.75), fastadv.L1(4.0)
_ATTACKS = {
    "fgsm": fastadv.fgsm(_LINF),
    "rfgsm": fastadv.rfgsm(_LINF),
    "bim": fastadv.bim(_LINF, steps=10),
    "pgd": fastadv.pgd(_LINF, steps=10, restarts=2),
    "pgd L2": fastadv.pgd(_L2, steps=10, loss="margin"),
    "pgd L1": fastadv.pgd(_L1, steps=10, keep="best"),
    "mifgsm": fastadv.mifgsm(_LINF, steps=10),
    "apgd_ce": fastadv.apgd_ce(_LINF, steps=20),
    "apgd_dlr L2": fastadv.apgd_dlr(_L2, steps=20),
    "apgd_t L1": fastadv.apgd_t(_L1, steps=20),
    "fab_t": fastadv.fab_t(_LINF, steps=10),
    "square": fastadv.square(_LINF, queries=200),
}
_METHODS = {
    "FreeAT": training.FreeAT(_LINF, replays=2),
    "FastAT": training.FastAT(_LINF),
    "PGDAT": training.PGDAT(_LINF, steps=5),
    "TRADES": training.TRADES(_LINF, steps=5),
    "YOPO": training.YOPO(_LINF, first_layer="0"),
}


def digest(tensors: list[torch.Tensor]) -> str:
    """The first 16 digits of SHA-256 over the bytes of `tensors`."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def train(step, batches: int = 20) -> torch.nn.Module:
    """digits_net from seed 0 after `batches` batches of 64 with `step`, a training method."""
    x, y = load_digits("train")
    model = digits_net(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for i in range(batches):
        chosen = slice(64 * i % 1024, 64 * i % 1024 + 64)
        for loss in step(model, x[chosen], y[chosen]):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def main() -> None:
    """Print one line a training run and one an attack on the network of the FastAT run."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    nets = {name: train(step) for name, step in _METHODS.items()}
    for name, net in nets.items():
        print(f"{name:12} {digest(list(net.state_dict().values()))}")
    model = nets["FastAT"].eval()
    x, y = load_digits("test")
    for name, attack in _ATTACKS.items():
        found = attack.run(model, x[:128], y[:128])
        bits = digest([found.x_adv, found.success, found.step, found.loss, found.distance])
        print(f"{name:12} {bits}  {int(found.success.sum())} of 128 successful")


if __name__ == "__main__":
    main()
