"""Every kernel as compiled: tests of tests/ops, chosen below, whose kernels' PTX is executed.

Interpreted kernels cannot be compiled in one process: this is a pytest run of its own, one for all
architectures. All of tests/ops runs so with `FASTADV_EMULATE=sm_90 python -m pytest tests/ops`.
"""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from collections import defaultdict
from typing import NamedTuple

import house
import pytest

from ptx.chosen import CHOSEN

pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")

_TESTS = ["ptx/as_compiled.py", "ptx/mutants.py", *CHOSEN]
_EMULATED = ("sm_90", "sm_80", "sm_90:1")  # ptx/reporting.py: those after the first run a part


class Form(NamedTuple):
    """What one launch was: constants by name, and which arguments are multiples of 16."""

    emulated: str
    kernel: str
    constants: dict[str, str]
    divisible: list[str]


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> dict[str, list[Form]]:
    """Run the tests, which must pass; what they launched, by what it was emulated on."""
    report = tmp_path_factory.mktemp("ptx") / "report.xml"
    left_out = ("TRITON_INTERPRET", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "FASTADV_BACKEND")
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    environment |= dict(FASTADV_EMULATE="+".join(_EMULATED))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *[f"tests/{test}" for test in _TESTS],
        ],
        cwd=house.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    print(done.stdout.rsplit("kernels executed as compiled", 1)[-1])
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
    tree = xml.etree.ElementTree.parse(report)
    assert list(tree.iter("skipped")) == []
    properties = [p for p in tree.iter("property") if p.get("name") == "launches"]
    forms = defaultdict(list)
    for p in properties:
        for form in json.loads(p.get("value") or ""):
            forms[form["emulated"]].append(Form(**form))
    return forms


def test_an_architecture_that_is_not_known_is_refused():
    from ptx import driver

    with pytest.raises(ValueError, match="sm_90.*got 'sm_70'"):
        driver.install("sm_70")


def test_every_kernel_in_every_form_on_sm_90(launched):
    forms, expected = launched["sm_90"], house.kernels(house.ROOT)
    assert {form.kernel for form in forms} == set(expected)
    missing = []
    for kernel, arguments in expected.items():
        mine = [form for form in forms if form.kernel == kernel]
        for flag in ("SLOTTED", "PER_SAMPLE_STEP", "PER_SAMPLE_EPS", "PER_SAMPLE_SPARSITY"):
            if flag in arguments:
                seen = {form.constants[flag] for form in mine}
                missing += [(kernel, flag, v) for v in {"True", "False"} - seen]
        if "D" in arguments:
            seen = {"D" in form.divisible for form in mine}
            missing += [(kernel, "D % 16 == 0", value) for value in {True, False} - seen]
    assert missing == []


@pytest.mark.parametrize("emulated", _EMULATED[1:])
def test_all_but_those_of_long_rows_on_sm_80_and_with_warps_in_a_random_order(launched, emulated):
    rare = {
        "l0_long_kernel",
        "l1_long_kernel",
        "l2_abs_kernel",
        "l2_apply_kernel",
        "l2_partials_kernel",
    }
    rare |= {"apgd_l2_long_kernel", "fab_step_long_kernel", "linf_momentum_kernel"}
    rare.add("radius_step_long_kernel")
    assert house.kernels(house.ROOT).keys() - {form.kernel for form in launched[emulated]} == rare
