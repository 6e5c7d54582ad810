"""SegmentedPrefill: nothing is lost from the books, actions do what they say, and wrong input is told."""

import copy
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym import baselines
from llmgym.envs.segmented.env import SegmentedPrefill, SegmentedPrefillEnv
from llmgym.envs.segmented.modes import (
    TRAINED,
    answer_quality,
    rest_time_s,
)
from llmgym.envs.segmented.observing import kind_of
from llmgym.envs.segmented.scenarios import SCENARIOS
from llmgym.envs.segmented.state import (
    ADMIT,
    DECODE,
    DECODING,
    DONE,
    EVICT,
    FEATURES,
    LOST,
    PREFILL,
    REJECT,
    REJECTED,
    ROW,
    RUN,
    WAIT,
)
from llmgym.errors import InvalidAction, InvalidArgument, UnknownName

ID = "llmgym/SegmentedPrefill-v0"


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**40), choices=st.integers(0, 2**40), decide=st.sampled_from(["all", "mode"]))
def test_books_and_memory(seed: int, choices: int, decide: str) -> None:
    """Each request ends once, tokens of its prompt are all done when it is, and memory never exceeds the card."""
    env = SegmentedPrefillEnv(scenario="stress", requests=12, decide=decide, load=2.0)
    _, info = env.reset(seed=seed)
    rng, ended, total = np.random.default_rng(choices), False, 0.0
    while not ended:
        _, reward, ended, cut, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
        total, ended = total + reward, ended or cut
        lane, config = env.lanes.state.lane[0], env.simulation.params.config[0]
        assert 0 <= lane["resident_bytes"] <= lane["peak_bytes"] <= config["room_bytes"]
    requests, metrics = env.lanes.state.request[0], info["metrics"]
    done = requests[requests["status"] == DONE]
    assert (done["done"] == done["prompt"]).all() and (done["made"] == done["output"]).all()
    assert (done["first_s"] > done["arrival_s"]).all() and (done["end_s"] >= done["first_s"]).all()
    ends = sum(metrics[name] for name in ("completed", "rejected", "lost", "forfeited"))
    assert ends == len(requests)
    assert (
        metrics["prompt_tokens"] >= done["prompt"].sum() and metrics["output_tokens"] >= done["output"].sum()
    )
    assert total == pytest.approx(env.simulation.expected_return(metrics), rel=1e-9, abs=1e-9)
    assert metrics["utilization"] <= 1.0 and -len(requests) <= metrics["value"] <= len(requests)


def actions_of(env: SegmentedPrefillEnv, kind: int) -> list[int]:
    config = env.simulation.params.config[0]
    return [a for a in np.flatnonzero(env.action_masks()).tolist() if kind_of(config, a)[0] == kind]


def two(**kwargs: Any) -> SegmentedPrefillEnv:
    """Two prompts of 64K at once: each needs 44 GiB while it runs whole, and keeps 32."""
    fixed = {"prompt_least": 65_536, "prompt_most": 65_536, "output_mean": 200.0, "load": 1e9, "requests": 2}
    env = SegmentedPrefillEnv(scenario="paper", **(fixed | kwargs))
    env.reset(seed=0)
    env.step(actions_of(env, WAIT)[0])
    return env


def test_a_step_that_does_not_fit_loses_its_request_and_no_other() -> None:
    env = two(modes=("full",))
    env.step(actions_of(env, ADMIT)[0])
    env.step(actions_of(env, ADMIT)[0])
    first, second = actions_of(env, RUN)
    obs, *_ = env.step(first)
    rows = obs[env.layout["candidates"]].reshape(-1, FEATURES)
    assert rows[second, ROW.index("room")] < 0.0  # what is shown says so
    _, reward, ended, cut, info = env.step(second)
    assert reward == -5.0 and info["dt"] == 0.0 and not ended and not cut
    requests = env.lanes.state.request[0]
    assert requests["status"].tolist() == [DECODE, LOST]
    while not ended:
        _, _, ended, _, info = env.step(actions_of(env, DECODING)[0])
    assert info["metrics"]["completed"] == info["metrics"]["lost"] == 1.0


def test_segments_of_both_fit_where_the_whole_of_both_does_not() -> None:
    """One segment of each in turn: both are done, with less than 25 GiB."""
    env = two(modes=(TRAINED,))
    env.step(actions_of(env, ADMIT)[0])
    env.step(actions_of(env, ADMIT)[0])
    ended, turn = False, 0
    while not ended:
        runs = actions_of(env, RUN)
        action = runs[turn % len(runs)] if runs else actions_of(env, DECODING)[0]
        _, _, ended, _, info = env.step(action)
        turn += 1
    assert info["metrics"]["completed"] == 2.0 and info["metrics"]["peak_memory_gib"] < 25.0


def test_a_request_that_is_evicted_waits_again_and_begins_anew() -> None:
    env = two(modes=("chunked-2048",), evictions=1)
    env.step(actions_of(env, ADMIT)[0])
    env.step(actions_of(env, RUN)[0])
    assert env.lanes.state.request[0, 0]["done"] == 2048
    evict = actions_of(env, EVICT)
    _, reward, *_ = env.step(evict[0])
    assert reward == 0.0 and env.lanes.state.request[0, 0]["done"] == 0
    assert env.lanes.state.window[0].tolist()[:2] == [0, 1] and env.lanes.state.lane[0]["resident_bytes"] == 0
    env.step(actions_of(env, ADMIT)[0])
    assert actions_of(env, EVICT) == []  # once only


def test_lost_requests_and_the_horizon_cut_an_episode() -> None:
    """And what is open then is forfeited."""
    env = two(modes=("full",), requests=5, memory_gib=40.0, most_lost=2)
    cut = ended = False
    total = 0.0
    while not (cut or ended):
        choice = actions_of(env, RUN) or actions_of(env, ADMIT)
        _, reward, ended, cut, info = env.step(choice[0])
        total += reward
    assert cut and info["metrics"]["lost"] == 2.0 and info["metrics"]["forfeited"] == 3.0
    assert total == pytest.approx(-13.0)
    env = two(modes=("full",), horizon_s=1.0, memory_weight=0.0)
    env.step(actions_of(env, ADMIT)[0])
    _, reward, ended, cut, info = env.step(actions_of(env, RUN)[0])
    assert cut and reward == -2.0 and info["metrics"]["forfeited"] == 2.0


def test_late_requests_are_worth_less() -> None:
    """By hand: a limit of half the time alone is missed by as much; a later token over its limit counts where it is more."""
    for tpot_limit_s, expected in ((None, 0.0), (1e-9, -1.0)):
        env = SegmentedPrefillEnv(
            scenario="paper",
            requests=1,
            modes=(TRAINED,),
            classes=((1.0, 0.9, 0.5),),
            limit_s=0.0,
            memory_weight=0.0,
            tpot_limit_s=tpot_limit_s,
            output_mean=100.0,
        )
        _, info = env.reset(seed=1)
        ended, total = False, 0.0
        while not ended:
            _, reward, ended, _, info = env.step(int(np.flatnonzero(info["action_mask"])[0]))
            total += reward
        assert total == pytest.approx(expected, abs=1e-9)


def test_the_mode_alone_is_the_whole_with_a_server_first_in_first_out() -> None:
    """The paper's rule takes the same time and memory in both."""
    for seed in range(3):
        found = []
        for decide in ("all", "mode"):
            env = SegmentedPrefillEnv(scenario="small", decide=decide)
            policy = baselines.make("paper-fixed", env)
            obs, info = env.reset(seed=seed)
            ended = False
            while not ended:
                obs, _, ended, _, info = env.step(int(policy.act(obs[None], info["action_mask"][None])[0]))
            found.append(info["metrics"])
        for name, value in found[0].items():
            assert found[1][name] == pytest.approx(value, rel=1e-9), name


def test_a_masked_action_goes_on_first_in_first_out() -> None:
    env = SegmentedPrefillEnv(scenario="small", invalid_cost=0.25)
    env.reset(seed=0)
    masked = int(np.flatnonzero(~env.action_masks())[0])
    _, reward, *_ = env.step(masked)
    assert env.metrics()["invalid_actions"] == 1.0 and env.metrics()["penalty"] == 0.25
    assert reward <= -0.25
    strict = SegmentedPrefillEnv(scenario="small", invalid_action="raise")
    strict.reset(seed=0)
    with pytest.raises(InvalidAction, match="masked"):
        strict.step(masked)


def test_rows_of_candidates() -> None:
    """What the first request's rows say is what the laws say."""
    env = SegmentedPrefillEnv(scenario="small")
    obs, info = env.reset(seed=5)
    rows = obs[env.layout["candidates"]].reshape(-1, FEATURES).astype(np.float64)
    assert len(rows) == env.action_space.n == env.simulation.rows
    mask = info["action_mask"] == 1
    assert (rows[~mask] == 0.0).all() and (rows[mask, :6].sum(axis=1) == 1.0).all()
    request = env.lanes.state.request[0, 0]
    for m, mode in enumerate(env.simulation.params.modes[:-1]):
        row = dict(zip(ROW, rows[m], strict=True))
        seconds = rest_time_s(mode, int(request["prompt"]), 0)
        unit = seconds / env.simulation.unit_s
        assert row["admit"] == 1.0 and row["rest"] == pytest.approx(unit / (1 + unit), rel=1e-5)
        assert row["prompt"] == pytest.approx(np.log2(request["prompt"]) / 20, rel=1e-6)
        quality = answer_quality(mode, int(request["prompt"]), 512)
        assert 2 * row["quality"] == pytest.approx(quality, rel=1e-6)
        assert row["shortfall"] == pytest.approx(max(float(request["quality"]) - quality, 0.0), abs=1e-7)
        assert row["spare"] == pytest.approx(max(1.0 - row["peak"], -1.0), abs=1e-6) or row["peak"] == 1.0


def test_the_order_of_the_actions() -> None:
    config = SegmentedPrefill(scenario="small", window=3, slots=2, modes=("full", "duo")).params.config[0]
    kinds = [kind_of(config, a) for a in range(3 * 3 + 2 * 2 + 2)]
    assert kinds[:6] == [(ADMIT, k, m) for k in range(3) for m in range(2)]
    assert [k[:2] for k in kinds[6:]] == [
        *((RUN, j) for j in range(2)),
        *((EVICT, j) for j in range(2)),
        *((REJECT, k) for k in range(3)),
        (DECODING, 0),
        (WAIT, 0),
    ]
    config = SegmentedPrefill(scenario="small", modes=("full", "duo"), decide="mode").params.config[0]
    assert [kind_of(config, a)[0] for a in range(4)] == [ADMIT, ADMIT, REJECT, WAIT]


def test_load_and_classes() -> None:
    """Arrivals as often as the load says, classes as often as their shares, lengths around their median."""
    env = SegmentedPrefillEnv(scenario="paper", requests=256, load=0.7)
    gaps, groups, prompts, outputs = [], [], [], []
    for seed in range(12):
        env.reset(seed=seed)
        requests = env.lanes.state.request[0]
        gaps.append(np.diff(requests["arrival_s"]).mean())
        groups.append(requests["group"].copy())
        prompts.append(requests["prompt"].copy())
        outputs.append(requests["output"].copy())
    assert np.mean(gaps) == pytest.approx(env.simulation.unit_s / 0.7, rel=0.05)
    shares = np.bincount(np.concatenate(groups), minlength=3) / (12 * 256)
    assert shares == pytest.approx([0.4, 0.3, 0.3], abs=0.03)
    assert np.median(np.concatenate(prompts)) == pytest.approx(16_384, rel=0.06)
    assert np.concatenate(outputs).mean() == pytest.approx(128, rel=0.08)


def test_outputs_that_are_drawn_anew_are_longer_than_what_is_made() -> None:
    env = SegmentedPrefillEnv(scenario="small", requests=6)
    obs, info = env.reset(seed=1)
    policy, ended, compared = baselines.make("paper-fixed", env), False, 0
    while not ended:
        obs, _, ended, _, info = env.step(int(policy.act(obs[None], info["action_mask"][None])[0]))
        other = copy.deepcopy(env)
        other.simulation.redraw(other.lanes.state, 0, compared)
        here, there = env.lanes.state.request[0], other.lanes.state.request[0]
        decoding = here["status"] == DECODE
        compared += int(decoding.sum())
        assert (there["output"][decoding] > there["made"][decoding]).all()
        assert (there[here["status"] >= DONE] == here[here["status"] >= DONE]).all()
    assert compared > 10


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pictures_and_texts(scenario: str) -> None:
    env = SegmentedPrefillEnv(scenario=scenario, requests=12, render_mode="rgb_array")
    obs, info = env.reset(seed=1)
    policy = baselines.make("edf", env)
    assert env.render().shape == (600, 900, 3)
    for _ in range(30):
        obs, _, ended, cut, info = env.step(int(policy.act(obs[None], info["action_mask"][None])[0]))
        if ended or cut:
            break
    frame = env.render()
    assert frame.shape == (600, 900, 3) and frame.dtype == np.uint8 and frame.std() > 10
    words = env.simulation.render(env.lanes.state, 0, "ansi")
    assert "memory" in words and "waiting: " in words


def test_the_state_of_a_lane_is_small() -> None:
    simulation = SegmentedPrefill(scenario="stress", requests=256, slots=32, window=16)
    assert sum(part.nbytes for part in simulation.allocate(1)) < 32 * 1024


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"scenario": "huge"}, "scenario.*huge"),
        ({"model": "gpt-2"}, "model.*gpt-2"),
        ({"device": "tpu"}, "device.*tpu"),
        ({"memory_gib": 12.0}, "memory_gib=12"),
        ({"memory_gib": -1.0}, "memory_gib=-1.0"),
        ({"modes": ()}, "modes=.*different modes"),
        ({"modes": ("full", "fuller")}, "fuller"),
        ({"trained": ("duo",)}, "trained names 'duo'"),
        ({"workload": "nobody"}, "nobody"),
        ({"prompt_least": 9000, "prompt_most": 8000}, "prompt_least=9000"),
        ({"prompt_sigma": -1.0}, "prompt_sigma=-1.0"),
        ({"load": 0.0}, "load=0.0"),
        ({"requests": 257}, "requests=257"),
        ({"classes": ((1.0, 0.9),)}, "classes="),
        ({"classes": ((0.0, 0.9, 1.0),)}, "share in classes=0.0"),
        ({"tpot_limit_s": 0.0}, "tpot_limit_s=0.0"),
        ({"window": 0}, "window=0"),
        ({"slots": 2.5}, "slots=2.5"),
        ({"evictions": -1}, "evictions=-1"),
        ({"decide": "order"}, "decide.*order"),
        ({"invalid_cost": math.inf}, "invalid_cost=inf"),
        ({"gpus": 3}, "gpus"),
    ],
)
def test_wrong_input_is_named(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=match):
        SegmentedPrefill(**arguments)


@pytest.mark.parametrize("action", [10_000, -1, 0.5, np.nan, None, "full"])
def test_actions_that_are_none(action: Any) -> None:
    env = gymnasium.make(ID, requests=3).unwrapped
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action)


def test_statuses_are_told_apart() -> None:
    assert len({PREFILL, DECODE, DONE, REJECTED, LOST}) == 5
