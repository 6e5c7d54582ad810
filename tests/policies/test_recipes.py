"""The table of settings: every environment has an entry, whose rule can be imitated and whose network can look at the rows."""

from types import SimpleNamespace
from typing import Any

import pytest

from llmgym import policies
from llmgym.core.env import LaneVectorEnv
from llmgym.envs import env_ids
from llmgym.errors import InvalidArgument
from llmgym.policies import Plan, PPOConfig, recipes
from llmgym.policies.recipes import recipe

pytest.importorskip("torch")

from llmgym.policies.imitation import teacher_of
from llmgym.policies.run import make_lanes

ENTRIES = [(name, None) for name in recipes.names()]
ENTRIES += [
    (name, scenario) for name in recipes.names() for scenario in recipes.table()[name].get("scenarios", {})
]


def test_every_environment_has_an_entry() -> None:
    ours = {env_id.removeprefix("llmgym/") for env_id in env_ids() if env_id.startswith("llmgym/")}
    assert set(recipes.names()) == ours and len(ours) == 18


@pytest.mark.parametrize(("name", "scenario"), ENTRIES)
def test_an_entry_can_be_carried_out(tmp_path: Any, name: str, scenario: str | None) -> None:
    found = recipe(f"llmgym/{name}", scenario)
    assert found.env_kwargs["scenario"] == (scenario or recipes.table()[name]["scenario"])
    assert name in found.name and (scenario is None or scenario in found.name)
    env = make_lanes(f"llmgym/{name}", 2, found.env_kwargs)
    assert isinstance(env, LaneVectorEnv)
    if found.config.network in ("scorer", "attention"):
        assert any(table.actions for table in env.layout.tables())
    if found.config.imitate:
        plan = Plan(f"llmgym/{name}", tmp_path / "run", found.env_kwargs, config=found.config)
        run: Any = SimpleNamespace(plan=plan, env=env)
        assert not teacher_of(run, env).privileged
    env.close()


def test_what_is_given_comes_first() -> None:
    plain = recipe("llmgym/KVQueue-v0")
    assert plain.env_kwargs["scenario"] == "tiny-overload" and plain.env_kwargs["action"] == "rule"
    assert plain.name == "KVQueue-v0, tiny-overload" and plain.env_kwargs["every"] == 4
    assert recipe("KVQueue-v0", "tiny-overload", env_kwargs={"every": 2}).env_kwargs["every"] == 2
    assert recipe("KVQueue-v0", env_kwargs={"every": 2}).env_kwargs == {"every": 2}
    assert recipe("KVQueue-v0", "azure-conv").env_kwargs == {"scenario": "azure-conv"}


def test_another_action_gets_the_base_and_no_rule() -> None:
    other = recipe("llmgym/AFDRefill-v0", action="score")
    assert other.env_kwargs == {"action": "score"} and not other.config.imitate
    assert "another action" in other.name
    assert recipe("llmgym/AFDRefill-v0", action="pick").config.imitate == "min-max"


def test_lanes_on_a_gpu_have_settings_of_their_own(tmp_path: Any) -> None:
    on_gpu = recipes.table()["on_gpu"]
    for name, scenario in ENTRIES:
        here, there = recipe(name, scenario), recipe(name, scenario, env_device="cuda:1")
        assert here.config.env_device == here.config.device == "cpu"
        assert there.config.env_device == there.config.device == "cuda:1"
        assert here.env_kwargs == there.env_kwargs and here.lanes < there.lanes
        assert there.timesteps > here.timesteps
        assert (here.config.network, here.config.imitate) == (there.config.network, there.config.imitate)
    most, few = recipe("PipeSDNav-v0", env_device="cuda"), recipe("MemPipe-v0", "h100", env_device="cuda")
    assert most.lanes == on_gpu["lanes"] and few.lanes < most.lanes  # what an environment says comes first
    assert recipe("me/My-v1", env_device="cuda").lanes == on_gpu["lanes"]
    for scenario in ("small", "real"):  # another action: only the base, and what holds for all
        other = recipe("AFDRefill-v0", scenario, action="score", env_device="cuda")
        assert other.config.imitate == "" and other.timesteps == on_gpu["timesteps"]
        assert other.config.gamma == recipes.table()["bases"]["rows"]["gamma"]

    file = tmp_path / "own.toml"
    file.write_text("[PipeSDNav-v0]\nlanes = 77\n")  # and so does a file of one's own
    own = recipe("PipeSDNav-v0", "small", file=file, env_device="cuda")
    assert own.lanes == 77 and own.config.minibatch == on_gpu["minibatch"]
    file.write_text("[PipeSDNav-v0]\nlanes = 77\non_gpu = { lanes = 99 }\n")
    assert recipe("PipeSDNav-v0", "small", file=file).lanes == 77
    assert recipe("PipeSDNav-v0", "small", file=file, env_device="cuda").lanes == 99
    file.write_text("[on_gpu]\nlanes = 55\n[PipeSDNav-v0]\n")
    assert recipe("PipeSDNav-v0", "small", file=file, env_device="cuda").lanes == 55
    for text, told in (
        ("[PipeSDNav-v0]\non_gpu = 3\n", r"own.toml.*on_gpu = 3: expected settings"),
        ("[PipeSDNav-v0.scenarios.small]\non_gpu = []\n", r"own.toml.*on_gpu = \[\]: expected settings"),
        (
            "[PipeSDNav-v0]\non_gpu = { lane = 3 }\n",
            r"own.toml: PipeSDNav-v0 has lane, which are no settings",
        ),
    ):
        file.write_text(text)
        with pytest.raises(InvalidArgument, match=told):
            recipe("PipeSDNav-v0", "small", file=file, env_device="cuda")


def test_an_environment_of_ones_own_gets_the_base() -> None:
    for env_id in ("my_module:me/KVQueue-v0", "me/My-v1"):
        found = recipe(env_id)
        assert found.env_kwargs == {} and "any environment" in found.name
        assert found.config.gamma == recipes.table()["bases"]["mlp"]["gamma"]


def test_a_setting_that_there_is_not(monkeypatch: Any) -> None:
    monkeypatch.setattr(
        recipes,
        "table",
        lambda: {"bases": {"mlp": {}}, "Own-v0": {"base": "mlp", "scenario": "a", "gama": 0.9}},
    )
    with pytest.raises(InvalidArgument, match=r"recipes.toml: Own-v0 has gama"):
        recipe("llmgym/Own-v0")


def test_policies_shipped_have_the_networks_of_the_table() -> None:
    """Those that were trained with it: the five newest, and KVQueue-v1."""
    for name in policies.names("llmgym/KVQueue-v1") + policies.names("llmgym/Unmask-v0"):
        meta = policies.meta(name)
        then, now = (
            PPOConfig.from_dict(meta["config"]),
            recipe(meta["env_id"], meta["env_kwargs"]["scenario"]).config,
        )
        assert (then.network, then.hidden, then.gamma) == (now.network, now.hidden, now.gamma)
        assert then.imitate == ("" if meta.get("init") else now.imitate)
