"""A pytest plugin under FASTADV_EMULATE: what every test launched, and a table of all launches."""

import json
from collections import defaultdict

import pytest

from . import driver


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """The launches of a test are a property of it, which --junitxml writes out."""
    before = len(driver.launches)
    try:
        return (yield)
    finally:
        forms = [
            dict(
                kernel=launch.kernel,
                constants={name: str(value) for name, value in launch.constants.items()},
                divisible=launch.divisible,
            )
            for launch in driver.launches[before:]
        ]
        item.user_properties.append(("launches", json.dumps(forms)))


def pytest_terminal_summary(terminalreporter) -> None:
    rows = defaultdict(list)
    for launch in driver.launches:
        rows[launch.kernel].append(launch)
    terminalreporter.section("kernels executed as compiled")
    for kernel, of_it in sorted(rows.items()):
        terminalreporter.write_line(
            f"{kernel}: {len(of_it)} launches, {len({str(i.constants) for i in of_it})} forms,"
            f" {sum(i.instructions for i in of_it)} instructions,"
            f" {sum(i.seconds for i in of_it):.1f} s,"
            f" {sum(i.same_values for i in of_it)} equal writes without a barrier"
        )
