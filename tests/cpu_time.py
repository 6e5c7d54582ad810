"""How much CPU time the tests of each environment take: printed after a run, and kept where LLMGYM_CPU_REPORT names a file.

`.ci/budget.py` holds it to a budget, so that an environment that makes the tests slow is seen when it comes and not years later.
Child processes that a test starts count too. What belongs to no environment counts for the folder of its test.
"""

import json
import os
import re
import resource
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llmgym

_SPECS = [llmgym.spec(env_id) for env_id in llmgym.env_ids()]
NAMES = sorted(
    {name for one in _SPECS for name in (one.name, one.id.partition("/")[2])}, key=len, reverse=True
)
"""With and without the version: two versions of an environment are two."""
FAMILIES = sorted({one.env.split(".")[2] for one in _SPECS})
_spent: dict[str, float] = defaultdict(float)


def owner(node: str) -> str:
    """The environment that a test is about, or its family, or the folder of the test."""
    path, _, test = node.partition("::")
    for name in NAMES:
        if re.search(rf"(?<![A-Za-z]){name}(?![a-z0-9])", test):
            return name.removesuffix("-v0")
    parts = Path(path).parts[1:]
    words = re.split(r"[/_.]", "/".join(parts))
    for family in FAMILIES:
        if family in words:
            return f"{family} (family)"
    return "/".join(parts[:1])


def _cpu_s() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note what a test took, fixtures included, in its report of the teardown."""
    item.stash[_KEY] = _cpu_s()
    return (yield)


_KEY = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Let the report of the teardown carry it to the process that prints."""
    report = yield
    if report.when == "teardown":
        report.user_properties.append(("cpu_s", _cpu_s() - item.stash[_KEY]))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add it up where all reports come together."""
    if report.when == "teardown":
        _spent[owner(report.nodeid)] += sum(
            value for name, value in report.user_properties if name == "cpu_s"
        )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, and write it where it is asked for."""
    rows = sorted(_spent.items(), key=lambda row: -row[1])
    if sum(_spent.values()) < 60.0:
        return
    terminalreporter.section("CPU seconds by environment")
    for name, seconds in rows:
        terminalreporter.write_line(f"{seconds:8.1f}  {name}")
    if path := os.environ.get("LLMGYM_CPU_REPORT"):
        Path(path).write_text(json.dumps(dict(rows), indent=1))
