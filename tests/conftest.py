"""Settings of every test."""

from hypothesis import settings

# A first call may compile for seconds; how long an example takes says nothing about whether it is right.
settings.register_profile("llmgym", deadline=None)
settings.load_profile("llmgym")
