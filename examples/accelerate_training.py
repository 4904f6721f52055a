"""Adversarial training in your own Hugging Face Accelerate loop, on the embedded digits.

The line that trains robustly is `loss = step.loss(model, x, y)`, where a standard loop has
`loss = F.cross_entropy(model(x), y)`. Free-AT takes several optimizer steps a batch, so there
`for loss in step(model, x, y)` is the loop that other methods can also be written in.

    python examples/accelerate_training.py --method fast --epochs 10
    torchrun --nproc-per-node 2 examples/accelerate_training.py --method free

Needs `pip install "accelerate>=1.15"`.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

import fastadv
from fastadv.data import load_digits
from fastadv.models import digits_net
from fastadv.training import FastAT, FreeAT

EPS = 0.1
BATCH = 32  # of each process
LEARNING_RATE = 3e-3
REPLAYS = 4  # Free-AT sees every batch so many times


def train_one_loss(accelerator: Accelerator, model, optimizer, loader, epochs: int) -> None:
    """FastAT; NFGSM, PGDAT, TRADES, MART and YOPO go the same way."""
    step = FastAT(fastadv.Linf(EPS))
    accelerator.register_for_checkpointing(step)  # its counter, the same in every process
    for _ in range(epochs):
        for x, y in loader:
            loss = step.loss(model, x, y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()


def train_free(accelerator: Accelerator, model, optimizer, loader, epochs: int) -> None:
    """FreeAT carries a perturbation of its own in each process.

    Accelerate saves registered objects of the main process only: save this state beside them, with
    `torch.save(step.state_dict(), f"free-{accelerator.process_index}.pt")`.
    """
    step = FreeAT(fastadv.Linf(EPS), replays=REPLAYS)
    for _ in range(epochs):
        for x, y in loader:
            for loss in step(model, x, y):
                optimizer.zero_grad()
                accelerator.backward(loss)  # also gives the gradient of the perturbation
                optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", choices=("fast", "free"), default="fast")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()

    accelerator = Accelerator()
    set_seed(0)  # the order of the batches; fastadv's noise has a seed of its own
    loader = DataLoader(
        TensorDataset(*load_digits("train")), batch_size=BATCH, shuffle=True, drop_last=True
    )
    model = digits_net(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    train = train_free if arguments.method == "free" else train_one_loss
    train(accelerator, model, optimizer, loader, arguments.epochs)

    if accelerator.is_main_process:
        net = accelerator.unwrap_model(model).eval()
        attack = fastadv.pgd(fastadv.Linf(EPS), steps=20, restarts=2, seed=0)
        x, y = (part.to(accelerator.device) for part in load_digits("test"))
        report = fastadv.evaluate(net, (x, y), attack, progress=False)
        print(f"clean {report.clean_accuracy:.4f}, PGD-20-2 at {EPS}: {report.robust_accuracy:.4f}")
    accelerator.wait_for_everyone()  # no process leaves while another may need it
    accelerator.end_training()


if __name__ == "__main__":
    main()
