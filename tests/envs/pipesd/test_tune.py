"""PipeSDTune: the world and the rule are those of PipeSDNav, the return is the times per token, wrong input, pictures."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym.envs.pipesd.nav.env import PipeSDNavEnv
from llmgym.envs.pipesd.scenarios import TUNING
from llmgym.envs.pipesd.tune.env import PipeSDTune, PipeSDTuneEnv, PipeSDTuneVectorEnv
from llmgym.errors import InvalidAction, InvalidArgument, UnknownName
from tests.envs.pipesd.test_nav import SURE

ID = "llmgym/PipeSDTune-v0"
LAYOUT = PipeSDTune.layout


@pytest.mark.parametrize("scenario", ["s1", "compressed", "mobile", "change"])
@pytest.mark.parametrize("pair", [(0.9, 0.0), (0.4, 0.97), (0.0, 0.8)])
def test_a_step_is_pipesds_rule_in_the_world_of_pipesdnav(scenario: str, pair: tuple[float, float]) -> None:
    """Bit for bit the same clients after five steps, whether the rule runs in the kernel or on observations."""
    kwargs = {"scenario": TUNING[scenario], "change_at": 40 if scenario == "change" else None}
    tune = PipeSDTuneEnv(**kwargs)
    nav = PipeSDNavEnv(**{**kwargs, "scenario": TUNING[scenario], "tokens": 10_000})
    policy = llmgym.baselines.make(f"pipesd:sequence={pair[0]},token={pair[1]}", nav)
    tune.reset(seed=4)
    obs, info = nav.reset(seed=4)
    clock = 0.0
    for _ in range(5):
        made = int(tune.lanes.state.client[0, 0]["made"])
        shown, reward, *_ = tune.step(np.array(pair))
        while nav.lanes.state.client[0, 0]["made"] - made < 20:
            obs, _, _, _, info = nav.step(policy.act(obs[None], info["action_mask"][None])[0])
        for field in ("client", "cursor", "link", "estimate"):
            assert getattr(tune.lanes.state, field).tobytes() == getattr(nav.lanes.state, field).tobytes()
        client, now = nav.lanes.state.client[0, 0], nav.lanes.state.lane[0]["clock_s"]
        time = (now - clock) / (client["made"] - made)
        assert reward == pytest.approx(-time / 0.1, rel=1e-12)
        assert shown[LAYOUT["tpt"].start] == pytest.approx(time / 0.25, rel=1e-5)
        clock = now


def test_what_a_step_shows() -> None:
    env = PipeSDTuneEnv(scenario="s1", tokens=100)
    obs, _ = env.reset(seed=0)
    assert obs[LAYOUT["tpt"].start] == 0 and obs[LAYOUT["progress"].start] == 0
    held = []
    for pair in ((0.5, 0.5), (0.5, 0.5), (0.9, 0.5), (0.9, 0.5), (0.9, 0.5)):
        obs, _, terminated, truncated, info = env.step(np.array(pair))
        held.append(round(float(obs[LAYOUT["held"].start]) * 32))
        assert obs[LAYOUT["sequence"].start] == np.float32(pair[0])
        assert 0 < obs[LAYOUT["acceptance"].start] <= 1
    assert held == [1, 2, 1, 2, 3] and truncated and not terminated
    assert info["metrics"]["threshold_moves"] == 1 and info["metrics"]["steps"] == 5
    assert info["metrics"]["output_tokens"] >= 100


def test_the_optimum_of_a_toy() -> None:
    """I12: where everything is accepted and certain, asking after every token is the slowest of all pairs by far."""
    kwargs = {"scenario": "compressed", "text": SURE, "tokens": 100, "max_draft": 16}
    returns = {}
    for pair in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.999, 0.999)):
        env = PipeSDTuneEnv(**kwargs)
        env.reset(seed=0)
        total, ended = 0.0, False
        while not ended:
            _, reward, _, ended, _ = env.step(np.array(pair))
            total += reward
        returns[pair] = total
    # confidence is 1 throughout: thresholds below 1 never fire, drafts have 16 tokens
    assert len({round(returns[p], 9) for p in ((0.0, 0.0), (0.5, 0.5), (0.999, 0.999))}) == 1
    assert returns[1.0, 0.0] == pytest.approx(returns[0.0, 1.0])
    assert returns[0.0, 0.0] > 0.8 * returns[1.0, 0.0]  # less negative


def test_worlds_do_not_depend_on_the_thresholds() -> None:
    envs = PipeSDTuneVectorEnv(3, scenario="mobile", tokens=200, autoreset_mode="DISABLED")
    envs.reset(seed=[8] * 3)
    for _ in range(6):
        envs.step(np.array([[0.9, 0.0], [0.5, 0.9], [0.1, 0.1]]))
    metrics = envs.metrics()
    assert len(set(metrics["world_checksum"])) == 1 and len(set(metrics["step_tpt_mean_ms"])) == 3


@pytest.mark.parametrize("name", TUNING)
def test_every_scenario_runs(name: str) -> None:
    env = gymnasium.make(ID, scenario=name, tokens=60)
    env.reset(seed=0)
    ended = False
    while not ended:
        obs, _, _, ended, info = env.step(np.array([0.8, 0.0]))
        assert obs in env.observation_space
    assert info["metrics"]["step_tpt_mean_ms"] > 20


@pytest.mark.parametrize("pair", [[-0.1, 0.5], [0.5, 1.1], [np.nan, 0.5], [0.5], [0.5, np.inf]], ids=str)
def test_thresholds_outside_the_unit_square_are_refused(pair: list[float]) -> None:
    env = PipeSDTuneEnv()
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(np.array(pair))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"step_tokens": 0}, "step_tokens=0"),
        ({"tokens": 0}, "tokens=0"),
        ({"bandwidth": 0.0}, "bandwidth=0.0"),
        ({"energy_weight": -1.0}, "energy_weight"),
        ({"scenario": "s2-gsm8k"}, "s2-gsm8k"),
        ({"invalid_action": "ignore"}, "ignore"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=named):
        PipeSDTuneEnv(**kwargs)


def test_pictures() -> None:
    env = PipeSDTuneEnv(render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.array([0.8, 0.0]))
    assert env.render().shape == (420, 820, 3)
    words = PipeSDTuneEnv(render_mode="ansi")
    words.reset(seed=0)
    words.step(np.array([0.8, 0.0]))
    assert "R_1 0.800" in words.render() and "client 0" in words.render()


def test_the_page_shows_the_observation_and_every_scenario() -> None:
    page = (Path(__file__).parents[3] / "docs" / "envs" / "pipesd_tune.md").read_text()
    assert LAYOUT.markdown() in page
    assert [name for name in TUNING if f"| `{name}` |" not in page] == []
