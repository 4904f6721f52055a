"""The golden files load without pickle, and the stored model gives the stored logits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden.tiny_model import TinyModel

FOLDER = Path(__file__).parent / "golden"
NORMS = ("linf", "l2", "l1")
RUNS = ("apgd_ce", "apgd_dlr", "apgd_t2", "apgd_t3", "fab_t2", "fab_t3", "square")
FILES = {"autoattack_model.npz"} | {f"autoattack_{run}_{n}.npz" for run in RUNS for n in NORMS}


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name, allow_pickle=False) as stored:
        return {array: stored[array] for array in stored.files}


def test_the_folder_holds_the_files_that_its_readme_describes():
    assert {path.name for path in FOLDER.glob("*.npz")} == FILES


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_array_loads_without_pickle_and_has_values(name):
    arrays = load(name)
    for array, values in arrays.items():
        assert values.size, array
        if np.issubdtype(values.dtype, np.floating) and array != "margin":
            assert np.isfinite(values).all(), array  # margin: NaN marks samples at rest


def test_the_files_stay_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.npz")) < 1.5e6


def test_the_stored_model_reproduces_the_stored_logits():
    stored = load("autoattack_model.npz")
    logits = TinyModel(stored)(torch.from_numpy(stored["x"]))
    # below 1 in size; sums of at most 54 products in another order differ by a few 6e-8
    torch.testing.assert_close(logits, torch.from_numpy(stored["logits"]), rtol=0, atol=1e-6)
    assert logits.argmax(1).tolist() == stored["y"].tolist()
