"""No gradient goes through a clamp where loops make their own networks: loaders, recipes, examples.

The other walks, and why, are in `test_no_differentiated_clamp`.
"""

import importlib.util
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clamp_watch import ROOT, Differentiated
from recipes.small_runs import small_data, small_recipe
from training.training_problems import THREAT, conv_net, sgd, train_batch

import fastadv
from benchmarks.gpu import op_cases as gpu_op_cases
from benchmarks.harness import networks
from benchmarks.ops import cases as op_cases
from fastadv.data import DeviceLoader, load_digits
from fastadv.demo import networks as demo_networks
from fastadv.models import digits_net
from fastadv.recipes import train
from fastadv.training import FastAT, TrainingWarning


def _loader() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, 1, 8, 8), generator=generator, dtype=torch.uint8)
    loader = DeviceLoader(
        images,
        torch.arange(12) % 5,
        batch_size=6,
        crop=1,
        padding="reflect",
        flip="random",
        mean=(0.5,),
        std=(0.5,),
    )
    net = conv_net()
    for x, y in loader:
        train_batch(FastAT(fastadv.Linf(0.1, bounds=None)), net, sgd(net), x, y)
    loader = DeviceLoader(images, torch.arange(12) % 5, batch_size=6, crop=1, flip="random")
    for x, y, _, x_start in loader.with_start(eps=0.1, seed=0):
        train_batch(FastAT(THREAT), net, sgd(net), x, y, x_init=x_start)


def _recipe(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        train(small_recipe(epochs=1), small_data(), folder, progress=False)


def _demo() -> None:
    demo_networks.train_fast(*(part[:64] for part in load_digits()), seed=0)


def _networks() -> None:
    networks._train(digits_net(seed=0), *(part[:128] for part in load_digits()), epochs=1)


def _chains() -> None:
    device = torch.device("cpu")
    for build in (op_cases.ce_head, gpu_op_cases.head("margin"), gpu_op_cases.head("dlr")):
        build((8, 10), torch.float32, device).eager()


def _accelerate() -> None:
    pytest.importorskip("accelerate", reason="needs accelerate")
    path = ROOT / "examples" / "accelerate_training.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(example := importlib.util.module_from_spec(spec))
    accelerator = types.SimpleNamespace(
        backward=torch.Tensor.backward, register_for_checkpointing=lambda step: None
    )
    loader = [[part[:32] for part in load_digits()]]
    for loop in (example.train_one_loss, example.train_free):
        net = digits_net(seed=0)
        loop(accelerator, net, sgd(net), loader, 1)


@pytest.mark.parametrize(
    "walk", [_loader, _demo, _networks, _chains, _accelerate], ids=lambda walk: walk.__name__[1:]
)
def test_no_clamp_is_differentiated_where_networks_are_made(walk: Callable[[], None]):
    with Differentiated() as seen:
        walk()
    assert not seen.places


def test_no_clamp_is_differentiated_in_a_recipe(tmp_path: Path):
    with Differentiated() as seen:
        _recipe(tmp_path)
    assert not seen.places
