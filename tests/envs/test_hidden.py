"""I11: neither an observation, nor a mask, nor a rule that is not privileged reads what a real scheduler could not know.

The checks are those of the test kit, `llmgym.testing.hidden`, which says how they work.
"""

from typing import Any

import pytest

import llmgym
from llmgym import baselines
from llmgym.testing import hidden
from tests.envs.test_every_env import CASES, every_case, every_id, two_cases_first

SLOW_RULES = {("llmgym/OServe-v0", "oserve-lstm"), ("llmgym/PipeSDTune-v0", "bo")}
"""Rules that learn or search before they decide."""
FEW_MOMENTS = (0, 2, 7, 24)
"""Decisions at which the future is drawn anew in the default run; the slow pass takes `hidden.MOMENTS`."""


@every_case
def test_what_differs_between_worlds_is_declared_hidden_or_shown(env_id, kwargs):
    hidden.what_differs_is_declared(env_id, kwargs)


@pytest.mark.slow
@every_id
def test_declarations_are_those_of_every_scenario(env_id):
    """What never differs in the small worlds of the other tests may differ in large ones."""
    for scenario in llmgym.spec(env_id).scenario_names():
        hidden.what_differs_is_declared(env_id, {"scenario": scenario}, worlds=3)


@every_case
def test_observations_and_masks_do_not_read_what_is_hidden(env_id, kwargs):
    hidden.observations_do_not_read_it(env_id, kwargs)


@every_id
def test_all_that_is_declared_hidden_is_drawn_anew(env_id):
    hidden.all_of_it_is_drawn_anew(env_id, CASES[env_id])


@two_cases_first
def test_another_future_is_another_episode(env_id, kwargs):
    assert hidden.another_future_is_another_episode(env_id, kwargs) == 3


@two_cases_first
def test_an_episode_goes_on_with_another_future(env_id, kwargs):
    hidden.episode_goes_on_with_another_future(env_id, kwargs)


RULES = [(env_id, rule) for env_id in llmgym.env_ids() for rule in baselines.names(env_id)]


def rules_of(pairs: Any) -> Any:
    named = [pytest.param(env_id, rule, id=f"{env_id.partition('/')[2]}-{rule}") for env_id, rule in pairs]
    return pytest.mark.parametrize(("env_id", "rule"), named)


@rules_of(pair for pair in RULES if pair not in SLOW_RULES)
def test_rules_do_not_read_what_is_hidden(env_id, rule):
    hidden.rule_does_not_read_it(env_id, rule, next(iter(CASES[env_id].values())), FEW_MOMENTS)


@pytest.mark.slow
@rules_of(RULES)
def test_rules_do_not_read_what_is_hidden_at_any_of_many_moments(env_id, rule):
    hidden.rule_does_not_read_it(env_id, rule, next(iter(CASES[env_id].values())))
