"""Adversarial training in a LightningModule, on the embedded digits.

With automatic optimization, the line that trains robustly is, in `training_step`,
`return self.step.loss(self.net, x, y)` where a standard module has
`return F.cross_entropy(self.net(x), y)`. Free-AT takes several optimizer steps a batch, each on a
backward of its own: manual optimization.

    python examples/lightning_training.py --method fast --epochs 10
    python examples/lightning_training.py --method free --devices 2

Needs `pip install "lightning>=2.6"`.
"""

import argparse
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import fastadv
from fastadv.data import load_digits
from fastadv.models import digits_net
from fastadv.training import FastAT, FreeAT

EPS = 0.1
BATCH = 32  # of each process
LEARNING_RATE = 3e-3
REPLAYS = 4  # Free-AT sees every batch so many times


class RobustModule(lightning.LightningModule):
    """FastAT; NFGSM, PGDAT, TRADES, MART and YOPO go the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits_net(seed=0)
        self.step: Any = FastAT(fastadv.Linf(EPS))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        x, y = batch
        return self.step.loss(self.net, x, y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # the checkpoint of rank 0 is the one written: all of the state but for FreeAT's
        # perturbations, which in several processes are to be saved by rank
        checkpoint["step"] = self.step.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step.load_state_dict(checkpoint["step"])


class FreeModule(RobustModule):
    """FreeAT: the loss of the next replay exists only after the backward of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.step = FreeAT(fastadv.Linf(EPS), replays=REPLAYS)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        for loss in self.step(self.net, *batch):
            optimizer.zero_grad()
            self.manual_backward(loss)  # also gives the gradient of the perturbation
            optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", choices=("fast", "free"), default="fast")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--devices", type=int, default=1)
    arguments = parser.parse_args()

    lightning.seed_everything(0)  # the order of the batches; fastadv's noise has its own seed
    loader = DataLoader(
        TensorDataset(*load_digits("train")), batch_size=BATCH, shuffle=True, drop_last=True
    )
    module = FreeModule() if arguments.method == "free" else RobustModule()
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        devices=arguments.devices,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)

    if trainer.is_global_zero:
        attack = fastadv.pgd(fastadv.Linf(EPS), steps=20, restarts=2, seed=0)
        report = fastadv.evaluate(module.net.eval(), load_digits("test"), attack, progress=False)
        print(f"clean {report.clean_accuracy:.4f}, PGD-20-2 at {EPS}: {report.robust_accuracy:.4f}")


if __name__ == "__main__":
    main()
