"""Settings of every test."""

import pytest
from hypothesis import settings

# The checks of the test kit are functions of the package; pytest explains a failed assert in them as in a test.
pytest.register_assert_rewrite("llmgym.testing")

# A first call may compile for seconds; how long an example takes says nothing about whether it is right.
settings.register_profile("llmgym", deadline=None)
settings.load_profile("llmgym")
