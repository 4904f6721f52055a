"""A pytest plugin under FASTADV_EMULATE: what every test launched, and a table of all launches.

Of "sm_90+sm_80+sm_90:1" the first is what every test runs under; a test in chosen.AGAIN is then run
under each of the others, in the same process, which has compiled and recorded what it needs.
"""

import json
from collections import defaultdict

import pytest

from . import driver
from .chosen import AGAIN


class Reporting:
    """again: what the tests of chosen.AGAIN are run under once more."""

    def __init__(self, again: list[str]) -> None:
        self.again = again

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        """The launches of a test are a property of it, which --junitxml writes out."""
        before = len(driver.launches)
        try:
            result = yield
            if self.again and item.nodeid.removeprefix("tests/").startswith(AGAIN):
                for choice in self.again:
                    with driver.emulating(choice):
                        item.runtest()
            return result
        finally:
            item.user_properties.append(("launches", json.dumps(forms(driver.launches[before:]))))

    def pytest_terminal_summary(self, terminalreporter) -> None:
        rows = defaultdict(list)
        for launch in driver.launches:
            rows[launch.emulated, launch.kernel].append(launch)
        terminalreporter.section("kernels executed as compiled")
        for (emulated, kernel), of_it in sorted(rows.items()):
            terminalreporter.write_line(
                f"{emulated} {kernel}: {len(of_it)} launches,"
                f" {len({str(i.constants) for i in of_it})} forms,"
                f" {sum(i.instructions for i in of_it)} instructions,"
                f" {sum(i.seconds for i in of_it):.1f} s,"
                f" {sum(i.same_values for i in of_it)} equal writes without a barrier"
            )


def forms(launches: list[driver.Launch]) -> list[dict]:
    return [
        dict(
            emulated=launch.emulated,
            kernel=launch.kernel,
            constants={name: str(value) for name, value in launch.constants.items()},
            divisible=launch.divisible,
        )
        for launch in launches
    ]
