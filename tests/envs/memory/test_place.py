"""MemPlace: rewards by hand, a toy with a known optimum, what noise hides, pictures, and wrong input."""

from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym  # noqa: F401
from llmgym.envs.memory.costs import drawn, mixture
from llmgym.envs.memory.devices import pcie
from llmgym.envs.memory.place.env import MemPlace, MemPlaceEnv, MemPlaceVectorEnv
from llmgym.envs.memory.place.scenarios import SCENARIOS
from llmgym.envs.memory.placement import FUSED, costs, letters, place
from llmgym.envs.memory.published import NAMES
from llmgym.errors import InvalidAction, InvalidArgument, UnknownName

ID = "llmgym/MemPlace-v0"
ONE_PAGED: dict[str, Any] = {
    "scenario": "paper",
    "mix": (("paged", 1.0),),
    "sizes": (5, 5),
    "batches": (1,),
    "requests": 1,
}
"""The published placement instance: 131,072 tokens of 16 in a page."""


def test_the_optimum_of_a_toy_is_the_published_one() -> None:
    """All 17 placements of one request: the general mapping, fused, 1.398 times as fast as the GPU alone; without fusing 1.346."""
    speedups = {}
    for action in range(17):
        env = MemPlaceEnv(**ONE_PAGED)
        env.reset(seed=0)
        _, reward, terminated, _, info = env.step(action)
        assert terminated and info["metrics"]["speedup_geomean"] == pytest.approx(np.exp(reward))
        assert info["dt"] == pytest.approx(376.3e-6 / np.exp(reward))
        speedups[letters(action)] = float(np.exp(reward))
    assert max(speedups, key=speedups.__getitem__) == "GFFG fused"
    assert speedups["GFFG fused"] == pytest.approx(1.398, abs=5e-4)
    assert speedups["GFFG"] == pytest.approx(1.346, abs=5e-4) and speedups["GGGG"] == 1.0
    copied = MemPlaceEnv(**ONE_PAGED, index="copied")
    copied.reset(seed=0)
    assert np.exp(copied.step(FUSED)[1]) < 0.31  # 977 us for 4 MB, that were 0


def test_rewards_by_hand() -> None:
    """Time and energy of every step of an episode, from the cell, the link and the errors that were drawn."""
    env = MemPlaceEnv(scenario="stress", requests=60)
    simulation = env.simulation
    links = pcie(1.0, simulation.scenario.setup_s)
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=3)
    moved = 0.0
    for _ in range(60):
        episode = env.lanes.state.lane[0]
        cell, scale = simulation.params.cells[episode["cell"]], float(episode["scale"])
        error = env.lanes.state.error[0].copy()
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        alone_s, _, alone_j, _ = place(cell, links, scale, 0, error)
        time, _, joules, copied = place(cell, links, scale, action, error)
        _, reward, ended, _, info = env.step(action)
        moved += copied
        assert reward == pytest.approx(np.log(alone_s / time) + 0.5 * np.log(alone_j / joules), rel=1e-12)
        assert info["dt"] == pytest.approx(time, rel=1e-12)
    assert ended and info["metrics"]["copied_bytes"] == pytest.approx(moved)


def test_a_masked_placement_runs_on_the_gpu() -> None:
    kwargs: dict[str, Any] = {**ONE_PAGED, "mix": (("memagent", 1.0),), "requests": 2}
    env = MemPlaceEnv(**kwargs, invalid_cost=0.25)
    _, info = env.reset(seed=0)
    assert np.flatnonzero(info["action_mask"]).tolist() == [0b0000, 0b0001, 0b1000, 0b1001]
    assert env.step(FUSED)[1] == -0.25
    *_, info = env.step(1)
    assert info["metrics"]["invalid_actions"] == 1.0 and info["metrics"]["penalty"] == 0.25
    strict = MemPlaceEnv(**kwargs, invalid_action="raise")
    strict.reset(seed=0)
    with pytest.raises(InvalidAction, match="masked"):
        strict.step(FUSED)


def test_what_does_not_fit_the_fpga_stays_on_the_gpu() -> None:
    env = MemPlaceEnv(scenario="paper", sizes=(9, 9), mix=(("lserve", 1.0), ("flare", 1.0)), requests=20)
    _, info = env.reset(seed=0)
    for _ in range(20):
        assert np.flatnonzero(info["action_mask"]).tolist() == [0b0000, 0b0001, 0b1000, 0b1001]
        *_, info = env.step(0)


def test_the_world_does_not_depend_on_what_is_decided() -> None:
    one, other = (MemPlaceEnv(scenario="stress", requests=30) for _ in range(2))
    (a, _), (b, _) = one.reset(seed=5), other.reset(seed=5)
    for _ in range(29):
        assert np.array_equal(a, b)
        a, b = one.step(0)[0], other.step(int(np.flatnonzero(other.action_masks())[-1]))[0]


def test_errors_of_predictions_are_not_observed() -> None:
    """I11: with other errors, the observations are the same and the rewards are not."""
    one, other = (MemPlaceEnv(scenario="small", requests=30) for _ in range(2))
    (a, info), (b, _) = one.reset(seed=5), other.reset(seed=5)
    differ = 0
    for _ in range(29):
        other.lanes.state.error[:] = 1.0
        action = int(np.flatnonzero(info["action_mask"])[-1])
        (a, x, *_, info), (b, y, *_) = one.step(action), other.step(action)
        differ += x != y
        assert np.array_equal(a, b)
    assert differ > 20


def test_a_mix_is_drawn_by_its_weights() -> None:
    cells, running = mixture("mi210+u55c", (("dsa", 3.0), ("ttt", 1.0)), (2, 4), (1, 32))
    assert len(cells) == 12 and running[-1] == 1.0 and (np.diff(running) > 0).all()
    picks = np.array([drawn(running, u) for u in (np.arange(4000) + 0.5) / 4000])
    assert (cells["workload"][picks] == NAMES.index("dsa")).mean() == pytest.approx(0.75, abs=1e-3)
    assert np.bincount(picks).tolist() == pytest.approx([500] * 6 + [166.7] * 6, abs=1)


def test_the_optimum_counted_is_that_of_the_costs() -> None:
    envs = MemPlaceVectorEnv(16, scenario="paged", autoreset_mode="DISABLED", requests=20)
    envs.reset(seed=0)
    for _ in range(20):
        state, params = envs.lanes.state, envs.simulation.params
        best = [
            int(
                np.nanargmin(
                    costs(params.cells[episode["cell"]], params.links, float(episode["scale"]))[:, 0]
                )
            )
            for episode in state.lane
        ]
        _, _, ended, _, infos = envs.step(np.array(best))
    assert ended.all() and infos["metrics"]["optimal_share"].tolist() == [1.0] * 16
    assert infos["metrics"]["regret_mean"] == pytest.approx(np.zeros(16), abs=1e-12)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pictures_and_texts(scenario: str) -> None:
    env = MemPlaceEnv(scenario=scenario, requests=12, render_mode="rgb_array")
    env.reset(seed=1)
    for _ in range(8):
        env.step(0)
    frame = env.render()
    assert frame.shape == (520, 760, 3) and frame.dtype == np.uint8 and frame.std() > 10
    words = env.simulation.render(env.lanes.state, 0, "ansi")
    assert "request    8/12" in words and "predicted: " in words


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"hardware": "tpu"}, "hardware.*tpu"),
        ({"mix": (("bert", 1.0),)}, "bert"),
        ({"mix": (("memory-as-context", 1.0),)}, "workload of h100"),
        ({"mix": ()}, "mix"),
        ({"mix": (("dsa", -1.0),)}, "weight of dsa=-1.0"),
        ({"mix": (("dsa", 1.0), ("dsa", 1.0))}, "twice"),
        ({"mix": "dsa"}, "mix='dsa'"),
        ({"sizes": (3, 10)}, "sizes=10"),
        ({"sizes": (5, 3)}, "sizes"),
        ({"sizes": 3}, "sizes=3"),
        ({"batches": (3,)}, "batches"),
        ({"batches": ()}, "batches"),
        ({"link": (0.0, 1.0)}, "link=0.0"),
        ({"link": (2.0, 1.0)}, "link"),
        ({"link": 0.0}, "link=0.0"),
        ({"setup_s": -1e-6}, "setup_s"),
        ({"noise": -0.1}, "noise"),
        ({"noise": 50.0}, "noise"),
        ({"energy_weight": -1.0}, "energy_weight=-1.0"),
        ({"energy_weight": float("nan")}, "energy_weight=nan"),
        ({"requests": 0}, "requests=0"),
        ({"index": "held"}, "index"),
        ({"kernels": "no/such"}, "no/such"),
        ({"invalid_cost": -1.0}, "invalid_cost"),
        ({"bandwidth": 1.0}, "bandwidth"),
    ],
)
def test_wrong_input_is_named(settings: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=match):
        MemPlace(**settings)


def test_made_by_gymnasium() -> None:
    env = gymnasium.make(ID, scenario="paper", energy_weight=1)
    env.reset(seed=0)
    assert env.unwrapped.simulation.settings()["energy_weight"] == 1
