"""AFDRefill: placements against a plain simulation, who may overtake whom, what is hidden, and a toy with a known optimum."""

import copy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym  # noqa: F401
from llmgym.core.lanes import observing
from llmgym.envs.afd.costs import Coefficients
from llmgym.envs.afd.law import step_time, throughput
from llmgym.envs.afd.refill.env import AFDRefillEnv, AFDRefillVectorEnv
from llmgym.envs.afd.refill.scenarios import SCENARIOS
from llmgym.envs.afd.requests import of_arrays
from llmgym.errors import InvalidAction, InvalidArgument, ProfileError, UnknownName

ID = "llmgym/AFDRefill-v0"
COSTS = Coefficients(0.5, 3.0, 1.0, 4.0, 0.3, 2.0)
TINY: dict[str, Any] = {
    "scenario": "small",
    "requests": "geometric:prompt=9,decode=6",
    "coefficients": COSTS,
    "batch": 5,
    "ratio": 3,
    "window": 4,
    "cycles": 60,
    "patience": 3,
}


def tables(env: Any, lane: int = 0) -> list[list[list[int]]]:
    """For each instance its [prompt, steps, steps left], read from the slots."""
    state = env.lanes.state
    tick = int(state.lane[lane]["tick"])
    return [
        [[int(s["prompt"]), int(s["steps"]), int(s["end"]) - tick] for s in row if s["end"] > tick]
        for row in state.slot[lane]
    ]


def load_of(table: list[list[int]]) -> int:
    return sum(prompt + steps - left for prompt, steps, left in table)


@pytest.mark.parametrize("reward", ["excess", "throughput"])
@pytest.mark.parametrize("start", ["stationary", "cold"])
def test_placements_are_those_of_a_plain_simulation(reward: str, start: str) -> None:
    """Random choices: the same instance gets each request, and the same cycles pass, with the same reward."""
    env = AFDRefillEnv(**{**TINY, "reward": reward, "start": start})
    law = env.simulation.law
    best = throughput(3, 5, step_time(COSTS, 5, law.theta, 3))
    rng = np.random.default_rng(0)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        plain, queue = tables(env), env.lanes.state.waiting[0].copy()
        assert any(len(table) < 5 for table in plain)
        clock, cycles, truncated = 0.0, 0, False
        while not truncated:
            choice = int(rng.choice(np.flatnonzero(info["action_mask"])))
            _, got, _, truncated, info = env.step(choice)
            # the least loaded instance with a free slot
            target = min((t for t in plain if len(t) < 5), key=load_of)
            w = queue[choice]
            target.append([int(w["prompt"]), int(w["steps"]), int(w["steps"])])
            expected, before = 0.0, clock
            while all(len(t) == 5 for t in plain) and cycles < 60:
                loads = [load_of(t) for t in plain]
                tau = max(0.5 * max(loads) + 3.0, 1.0 * 15 + 4.0)
                ideal = max(0.5 * sum(loads) / 3 + 3.0, 1.0 * 15 + 4.0)
                expected += float(15 / (4 * tau) / best) if reward == "throughput" else -(tau - ideal) / ideal
                clock, cycles = clock + tau, cycles + 1
                plain = [[[p, n, left - 1] for p, n, left in t if left > 1] for t in plain]
            assert got == pytest.approx(expected, rel=1e-12, abs=1e-15)
            assert info["dt"] == pytest.approx((clock - before) * 1e-6, rel=1e-9, abs=1e-15)
            assert [load_of(t) for t in plain] == env.lanes.state.table["load"][0].tolist()
            for ours, theirs in zip(plain, tables(env), strict=True):
                assert sorted(ours) == sorted(theirs)
            after = env.lanes.state.waiting[0]
            assert after["number"].tolist()[:-1] == np.delete(queue["number"], choice).tolist()
            assert after["number"][-1] == queue["number"].max() + 1
            queue = after.copy()
        assert info["metrics"]["cycles"] == 60


def test_scores_place_the_best_on_the_least_loaded_in_turn() -> None:
    """By scores or one by one, the same requests go to the same instances."""
    kwargs = {**TINY, "window": 12, "patience": 1000}
    pick, score = AFDRefillEnv(**kwargs), AFDRefillEnv(**kwargs, action="score")
    rng = np.random.default_rng(1)
    pick.reset(seed=4)
    score.reset(seed=4)
    truncated = False
    while not truncated:
        episode = score.lanes.state.lane[0]
        left, scores = min(int(episode["left"]), 12), rng.random(12)
        numbers = score.lanes.state.waiting[0]["number"].tolist()
        order = [numbers[k] for k in np.argsort(-scores)[:left]]
        _, reward, _, truncated, _ = score.step(scores)
        total = 0.0
        for number in order:
            choice = pick.lanes.state.waiting[0]["number"].tolist().index(number)
            _, part, _, ended, _ = pick.step(choice)
            total += part
        assert total == pytest.approx(reward, rel=1e-12, abs=1e-15) and ended == truncated
        assert pick.lanes.state.table.tobytes() == score.lanes.state.table.tobytes()
        assert pick.lanes.state.waiting[0]["skips"].tolist() == score.lanes.state.waiting[0]["skips"].tolist()


def test_more_free_slots_than_the_window_shows() -> None:
    env = AFDRefillEnv(
        **{**TINY, "requests": "constant:prompt=2,steps=4", "start": "cold", "window": 2, "action": "score"}
    )
    env.reset(seed=0)
    assert env.lanes.state.lane[0]["left"] == 15  # all began together
    env.step(np.array([0.1, 0.9]))
    assert env.lanes.state.lane[0]["placed"] == 15
    assert env.metrics()["cycles"] == 4


@pytest.mark.parametrize("patience", [1, 3, 8])
@pytest.mark.parametrize("action", ["pick", "score"])
def test_nobody_is_skipped_more_often_than_allowed(action: str, patience: int) -> None:
    """A policy that always wants the youngest: the limit is reached, never passed, and the oldest are the ones skipped most."""
    env = AFDRefillEnv(**{**TINY, "patience": patience, "window": 9, "action": action, "cycles": 300})
    _, info = env.reset(seed=0)
    truncated = False
    while not truncated:
        wanted: Any = (
            np.linspace(0, 1, 9) if action == "score" else int(np.flatnonzero(info["action_mask"])[-1])
        )
        *_, truncated, info = env.step(wanted)
        skips = env.lanes.state.waiting[0]["skips"]
        assert skips.max() <= patience and (np.diff(skips) <= 0).all()
        numbers = env.lanes.state.waiting[0]["number"]
        assert (np.diff(numbers) > 0).all()
    assert info["metrics"]["skips_max"] == patience
    assert 0 < info["metrics"]["skips_mean"] <= patience
    assert info["metrics"]["invalid_actions"] == 0


def test_a_masked_choice_places_the_oldest() -> None:
    env = AFDRefillEnv(**{**TINY, "patience": 1})
    strict = AFDRefillEnv(**{**TINY, "patience": 1, "invalid_action": "raise"})
    _, info = env.reset(seed=0)
    strict.reset(seed=0)
    while info["action_mask"].all():
        _, _, _, _, info = env.step(3)
        strict.step(3)
    assert info["action_mask"].tolist() == sorted(info["action_mask"].tolist(), reverse=True)
    oldest = int(env.lanes.state.waiting[0]["number"][0])
    with pytest.raises(InvalidAction, match="masked"):
        strict.step(3)
    before = env.metrics()
    _, reward, *_ = env.step(3)
    assert oldest not in env.lanes.state.waiting[0]["number"]
    after = env.metrics()
    assert after["invalid_actions"] == before["invalid_actions"] + 1
    assert after["penalty"] - before["penalty"] == pytest.approx(0.01)
    _, free, *_ = strict.step(0)
    assert reward == pytest.approx(free - 0.01)


@pytest.mark.parametrize("information", ["none", "mean", "noisy"])
def test_observations_do_not_know_how_long_requests_stay(information: str) -> None:
    """I11: other true steps of waiting and of running requests change nothing that is shown."""
    env = AFDRefillEnv(**{**TINY, "information": information})
    env.reset(seed=5)
    other = copy.deepcopy(env)
    other.lanes.state.waiting[0]["steps"] += 50
    slots = other.lanes.state.slot[0]
    running = slots["end"] > int(other.lanes.state.lane[0]["tick"])
    slots["steps"][running] += 8 * 30  # a multiple of the wheel
    slots["end"][running] += 8 * 30
    layout = env.layout
    rows = []
    for one in (env, other):
        row = np.zeros(layout.size, np.float32)
        observing(one.simulation)(one.lanes.state, one.simulation.params, 0, row)
        rows.append(row)
    assert rows[0].tobytes() == rows[1].tobytes()
    steps = rows[0][layout["window.steps"]]
    assert (steps == 0).all() if information == "none" else (steps > 0).all()
    if information == "mean":
        assert len(set(steps.tolist())) == 1
    ends = []
    for one in (env, other):
        truncated = False
        while not truncated:
            *_, truncated, _ = one.step(0)
        ends.append(one.metrics()["duration_s"])
    assert ends[0] != ends[1]


def test_predictions_are_as_good_as_they_are_said_to_be() -> None:
    waiting = {}
    for information in ("exact", "noisy", "mean", "none"):
        env = AFDRefillVectorEnv(
            200, **{**TINY, "requests": "geometric:prompt=9,decode=200", "information": information}
        )
        env.reset(seed=0)
        waiting[information] = env.lanes.state.waiting.ravel()
    steps = waiting["exact"]["steps"]
    assert all((waiting[name]["steps"] == steps).all() for name in waiting)
    assert (waiting["exact"]["predicted"] == steps).all() and (waiting["none"]["predicted"] == 0).all()
    assert set(waiting["mean"]["predicted"].tolist()) == {201}
    errors = np.log(waiting["noisy"]["predicted"] / steps)[steps > 50]
    assert errors.std() == pytest.approx(0.5, abs=0.05) and abs(errors.mean()) < 0.06


# Two instances with a slot each, and requests of one step: both slots are free before every cycle, which costs its larger prompt.
TOY_COSTS = Coefficients(1.0, 0.0, 1e-9, 0.0, 0.0, 0.0)


def toy(**kwargs: Any) -> AFDRefillEnv:
    rows = of_arrays([1.0, 9.0], [1.0, 1.0])
    settings = {"requests": rows, "coefficients": TOY_COSTS, "batch": 1, "ratio": 2, "window": 3, "cycles": 3}
    return AFDRefillEnv(scenario="small", **{**settings, "patience": 5, **kwargs})


def best_return(env: AFDRefillEnv) -> tuple[float, list[float]]:
    """The largest return over all sequences of unmasked choices, and the returns of all of them."""
    arrays = [*env.lanes.state, *env.lanes.buffers]

    def search() -> list[float]:
        kept = [array.copy() for array in arrays]
        returns = []
        for action in np.flatnonzero(env.action_masks()):
            _, reward, _, truncated, _ = env.step(int(action))
            returns += [reward] if truncated else [reward + rest for rest in search()]
            for array, old in zip(arrays, kept, strict=True):
                array[...] = old
        return returns

    every = search()
    return max(every), every


def test_the_optimum_of_a_toy() -> None:
    """I12: with one-step requests an equal pair has no excess, a pair of 1 and 9 costs (9 - 5) / 5; equal pairs are best.

    The best of all choices is 0 wherever the window can pair equals in each of the three cycles.
    """
    solved = 0
    for seed in range(12):
        env = toy()
        env.reset(seed=seed)
        prompts = env.lanes.state.waiting[0]["prompt"].tolist()
        best, every = best_return(env)
        assert len(every) == 3**6
        # by hand: excess is 0 for equal prompts and (9 - 5) / 5 for others, in each of the three cycles
        values = {round(value / -0.8) for value in every}
        assert np.allclose(every, [-0.8 * round(value / -0.8) for value in every]) and values <= {0, 1, 2, 3}
        # of three waiting requests two are always equal
        assert best == 0.0 and len(set(prompts)) <= 2
        solved += values == {0}
        total, truncated = 0.0, False
        while not truncated:  # the optimal policy: the first that equals another one, then its like
            waiting = env.lanes.state.waiting[0]["prompt"].tolist()
            placed = env.lanes.state.table["load"][0]
            if env.lanes.state.lane[0]["left"] == 2:
                choice = next(k for k in range(3) if waiting.count(waiting[k]) > 1)
            else:
                choice = waiting.index(int(placed.max()))
            _, reward, _, truncated, _ = env.step(choice)
            total += reward
        assert total == best
    assert solved < 12


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs(name: str) -> None:
    env = gymnasium.make(ID, scenario=name, cycles=5)
    obs, _ = env.reset(seed=0)
    truncated = False
    while not truncated:
        obs, _, _, truncated, info = env.step(0)
        assert obs in env.observation_space
    assert info["metrics"]["tau_mean_cycles"] > 0 and info["metrics"]["skips_max"] == 0
    settings = env.unwrapped.simulation.settings()
    assert settings["requests"] and settings["coefficients"]["alpha_attention"] > 0


def test_worlds_do_not_depend_on_what_is_done() -> None:
    envs = AFDRefillVectorEnv(3, **{**TINY, "autoreset_mode": "DISABLED"})
    envs.reset(seed=[3] * 3)
    waiting = envs.lanes.state.waiting["number"].copy()
    assert (waiting == waiting[0]).all()
    for _ in range(40):
        envs.step(np.arange(3))
    metrics = envs.metrics()
    assert len(set(metrics["world_checksum"])) == 1 and len(set(metrics["tau_mean_cycles"])) > 1


def test_workload_and_profile_take_the_place_of_the_scenarios() -> None:
    env = AFDRefillEnv(scenario="small", workload="azure-code-2023", profile="h100/llama-3.1-8b", batch=32)
    assert env.simulation.law.name == "azure-code-2023"
    assert env.simulation.coefficients.alpha_ffn == pytest.approx(18.55, rel=0.01)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"batch": 0}, "batch"),
        ({"ratio": 0}, "ratio"),
        ({"ratio": 2.5}, "ratio"),
        ({"window": 0}, "window"),
        ({"cycles": 0}, "cycles"),
        ({"patience": 0}, "patience"),
        ({"patience": -1}, "patience"),
        ({"information": "all"}, "information"),
        ({"noise_scale": -0.1}, "noise_scale"),
        ({"action": "choose"}, "action"),
        ({"reward": "latency"}, "reward"),
        ({"start": "warm"}, "start"),
        ({"comm": "none"}, "comm"),
        ({"requests": "zipf"}, "zipf"),
        ({"requests": ()}, "requests"),
        ({"ratio": 1025}, "ratio=1025"),
        ({"link_gb_per_s": 0.0}, "link_gb_per_s=0.0"),
        ({"profile": "h100/llama-2-70b", "coefficients": None}, "138.0 GB.*do not fit"),
        ({"coefficients": 3}, "coefficients"),
        ({"invalid_cost": -1.0}, "invalid_cost"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName, ProfileError), match=named):
        AFDRefillEnv(**{**TINY, **kwargs})


@pytest.mark.parametrize("weights", [[-0.1, 0, 0, 0], [0, 0, 1.5, 0], [0, np.nan, 0, 0], [0.5, 0.5]], ids=str)
def test_scores_outside_the_box_are_refused(weights: list[float]) -> None:
    env = AFDRefillEnv(**TINY, action="score")
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(np.array(weights))


def test_the_page_shows_the_observation_and_every_scenario() -> None:
    page = (Path(__file__).parents[3] / "docs" / "envs" / "afd_refill.md").read_text()
    assert AFDRefillEnv().layout.markdown() in page
    assert [name for name, s in SCENARIOS.items() if f"| `{name}` | {s.about} |" not in page] == []


def test_pictures() -> None:
    env = AFDRefillEnv(render_mode="rgb_array", **TINY)
    env.reset(seed=0)
    before = env.render()
    for _ in range(20):
        env.step(0)
    after = env.render()
    assert before.shape == after.shape == (520, 760, 3) and after.dtype == np.uint8
    assert (before != after).mean() > 0.005
    words = AFDRefillEnv(render_mode="ansi", **TINY)
    words.reset(seed=0)
    assert "A3" in words.render() and "waiting prompts" in words.render()


@pytest.mark.parametrize(
    ("told", "privileged"),
    [
        ({"information": "exact"}, True),
        ({"information": "noisy", "noise_scale": 0.0}, True),
        ({"information": "noisy", "noise_scale": 0.5}, False),
        ({"information": "mean"}, False),
        ({"information": "none"}, False),
    ],
)
def test_an_observation_is_privileged_where_it_shows_the_true_steps(
    told: dict[str, Any], privileged: bool
) -> None:
    """Every prediction is the truth, or the environment does not say that it is."""
    env = AFDRefillEnv(**{**TINY, **told})
    env.reset(seed=0)
    waiting = env.lanes.state.waiting[0]
    assert env.simulation.privileged_observation == privileged
    assert bool((waiting["predicted"] == waiting["steps"]).all()) == privileged


def test_another_future_keeps_what_the_slots_hold() -> None:
    """Requests drawn anew keep their prompts and the steps they have had, have at least one to come, and mostly end elsewhere."""
    env = AFDRefillEnv(**TINY)
    _, info = env.reset(seed=0)
    changed = []
    for _ in range(20):
        other = copy.deepcopy(env)
        other.simulation.redraw(other.lanes.state, 0, 7)
        for before, after in zip(tables(env), tables(other), strict=True):
            assert [(p, steps - left) for p, steps, left in after] == [
                (p, steps - left) for p, steps, left in before
            ]
            assert all(left >= 1 for _, _, left in after)
            changed += [one[1] != two[1] for one, two in zip(before, after, strict=True)]
        _, _, _, _, info = env.step(int(np.flatnonzero(info["action_mask"])[0]))
    assert np.mean(changed) > 0.6
