"""Settings of every test."""

import os
import sys
from collections.abc import Iterator

# Test processes share the cores already; threads that wait for each other would only take time from them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import pytest
from hypothesis import settings

pytest_plugins = ["tests.cpu_time"]

# The checks of the test kit are functions of the package; pytest explains a failed assert in them as in a test.
pytest.register_assert_rewrite("llmgym.testing")

# A first call may compile for seconds; how long an example takes says nothing about whether it is right.
settings.register_profile("llmgym", deadline=None)
settings.load_profile("llmgym")


@pytest.fixture(autouse=True)
def _examples_leave_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """An environment that a page registers is unknown again after it."""
    if request.path.name != "test_docs.py":
        yield
        return
    from llmgym.core import spec

    tables = (spec._specs, gymnasium.registry)
    kept, path = [dict(table) for table in tables], list(sys.path)
    yield
    for table, before in zip(tables, kept):
        table.clear()
        table.update(before)
    sys.modules.pop("my_env", None)
    sys.path[:] = path
