"""DDN, FMN, ALMA and sigma-zero take adversarial-library's steps: see tests/golden/README.md."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden.tiny_model import TinyModel
from toy_models import Recording

import fastadv

FOLDER = Path(__file__).parents[2] / "golden"
FMN_AS_THEY_DO = dict(overshoot=0.0, at_bounds="ignored")
ATTACKS = {
    "ddn": (fastadv.ddn, fastadv.L2(), dict(at_bounds="ignored")),
    "fmn_linf": (fastadv.fmn, fastadv.Linf(), FMN_AS_THEY_DO),
    "fmn_l2": (fastadv.fmn, fastadv.L2(), FMN_AS_THEY_DO),
    "fmn_l1": (fastadv.fmn, fastadv.L1(), FMN_AS_THEY_DO),
    "fmn_l0": (fastadv.fmn, fastadv.L0(), FMN_AS_THEY_DO | dict(step_size=1.0)),
    "alma": (fastadv.alma, fastadv.L2(), dict(step_size=0.1)),
    "alma_targeted": (fastadv.alma, fastadv.L2(), dict(tolerance=0.0)),
    "sigma_zero": (fastadv.sigma_zero, fastadv.L0(), {}),
}
RUNS = sorted(
    {path.stem for path in (FOLDER / "nearest").glob("*.npz")}
    & {f"{name.removesuffix('_targeted')}{end}" for name in ATTACKS for end in ("", "_targeted")}
)


def _stored(path):
    with np.load(path, allow_pickle=False) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def _run(run, dtype):
    """(what was stored, our result, the points that our attack had evaluated)."""
    stored, given = (
        _stored(FOLDER / name) for name in (f"nearest/{run}.npz", "autoattack_model.npz")
    )
    weights = {name: rows.numpy() for name, rows in given.items()}
    asked = Recording(TinyModel(weights).to(dtype), torch.clone)
    make, threat, options = ATTACKS.get(run) or ATTACKS[run.removesuffix("_targeted")]
    attack = make(threat, steps=len(stored["lengths"]), **options)
    x = given["x"].to(dtype)
    way = fastadv.Execution(batching="plain")
    result = attack.run(asked, x, given["y"], target=stored.get("target"), execution=way)
    points = torch.stack(asked.seen[1:-1]).detach()  # but for the looks at x and at x_adv
    return stored, result, points, torch.stack([threat.distance(rows, x) for rows in points])


# kernels are held to the reference in tests/ops: forty steps of them take the interpreter a minute
@pytest.mark.parametrize("either_backend", ["reference", "compiled"], indirect=True)
@pytest.mark.parametrize("run", RUNS)
def test_every_point_is_the_peers_in_float64(run, either_backend):
    stored, result, points, lengths = _run(run, torch.float64)
    torch.testing.assert_close(lengths, stored["lengths"], rtol=0, atol=1e-9)
    at, shown = stored["at"], stored["shown"]
    torch.testing.assert_close(points[at][:, shown], stored["points"], rtol=0, atol=1e-9)
    torch.testing.assert_close(result.x_adv[shown], stored["adv"], rtol=0, atol=1e-9)
    found = stored["distance"] > 0
    assert torch.equal(result.success, found)
    torch.testing.assert_close(result.distance[found], stored["distance"][found], rtol=0, atol=1e-9)


@pytest.mark.parametrize("run", [run for run in ATTACKS if "targeted" not in run])
def test_float32_follows_until_a_point_lies_on_the_boundary(run):
    stored, result, _, lengths = _run(run, torch.float32)
    torch.testing.assert_close(lengths[:6], stored["lengths"][:6], rtol=1e-5, atol=1e-5)
    found = stored["distance"] > 0
    torch.testing.assert_close(result.distance[found], stored["distance"][found], rtol=0.01, atol=0)


def test_the_files_stay_small():
    assert sum(path.stat().st_size for path in (FOLDER / "nearest").glob("*.npz")) < 3e5
