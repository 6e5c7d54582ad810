"""PipeSDNav: events against a plain simulation, promotion and dropping, a shared cloud, what is hidden, toys with known optima."""

import copy
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym.core.lanes import observing
from llmgym.envs.pipesd.draft_tokens import Chain, of_rows
from llmgym.envs.pipesd.nav.env import PipeSDNav, PipeSDNavEnv, PipeSDNavVectorEnv
from llmgym.envs.pipesd.scenarios import LINKS, SCENARIOS, Link
from llmgym.envs.pipesd.speculation import batch_plan, finish_time
from llmgym.envs.pipesd.state import CHECK, DONE, DRAFTING, NO_GUESS, WAITING
from llmgym.envs.pipesd.view import intervals
from llmgym.errors import InvalidAction, InvalidArgument, UnknownName
from tests.envs.pipesd.plain import Plain
from tests.envs.pipesd.test_speculation import path

ID = "llmgym/PipeSDNav-v0"
SURE = Chain("sure", 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Everything is accepted."""


@pytest.mark.parametrize("proactive", [True, False])
@pytest.mark.parametrize("link", ["paper", "compressed", "far"])
@pytest.mark.parametrize("text", ["humaneval", "gsm8k", "pair-code"])
def test_events_are_those_of_a_plain_simulation(text: str, link: str, proactive: bool) -> None:
    """Random actions: the same times, tokens, energy and verdicts."""
    env = PipeSDNavEnv(
        scenario="s1",
        tokens=60,
        max_draft=12,
        text=text,
        link=link,
        proactive=proactive,
        gamma_s=0.03,
        gamma_wait_s=0.021,
        downlink_s=0.013,
    )
    rng = np.random.default_rng(0)
    for seed in range(6):
        _, info = env.reset(seed=seed)
        weights = rng.dirichlet([1, 1, 1])
        key = int(env.lanes.state.client[0, 0]["key"])
        by_hand = Plain([bool(a) for a in path(text, key, 400)[:, 1]], env.simulation.scenario, LINKS[link])
        total, terminated = 0.0, False
        while not terminated:
            episode, client = env.lanes.state.lane[0], env.lanes.state.client[0, 0]
            assert episode["clock_s"] == pytest.approx(by_hand.t, abs=1e-9)
            assert (client["block"], client["sent"], client["output"]) == (
                by_hand.block,
                by_hand.sent,
                by_hand.output,
            )
            assert (client["phase"] == WAITING) == (by_hand.awaited is not None)
            assert env.lanes.state.link[0, 0]["free_s"] == pytest.approx(by_hand.free, abs=1e-9)
            assert info["action_mask"].tolist() == [0, 0, 1] if by_hand.must() else [1, 1, 1]
            action = 2 if by_hand.must() else int(rng.choice(3, p=weights))
            by_hand.step(action)
            _, reward, terminated, _, info = env.step(action)
            total += reward
        metrics = info["metrics"]
        assert by_hand.done and metrics["output_tokens"] == by_hand.output in (60, 61)
        assert metrics["duration_s"] == pytest.approx(by_hand.t, abs=1e-9)
        assert metrics["tpt_ms"] == pytest.approx(1000 * by_hand.t / by_hand.output, rel=1e-9)
        assert metrics["energy_j"] == pytest.approx(by_hand.energy, rel=1e-9)
        assert total == pytest.approx(-(by_hand.t - 0.03) / 0.1, rel=1e-9)


def best_return(env: PipeSDNavEnv) -> float:
    """The largest return over all sequences of unmasked actions."""
    arrays = [*env.lanes.state, *env.lanes.buffers]

    def search() -> float:
        kept = [array.copy() for array in arrays]
        best = -math.inf
        for action in np.flatnonzero(env.action_masks()):
            _, reward, terminated, _, _ = env.step(int(action))
            best = max(best, reward + (0.0 if terminated else search()))
            for array, old in zip(arrays, kept, strict=True):
                array[...] = old
        return best

    env.reset(seed=0)
    return search()


@pytest.mark.parametrize(
    ("alpha", "token_mb", "gamma", "verify"),
    [(0.05, 0.29, 0.04, 0.03), (0.05, 0.0125, 0.04, 0.1), (0.2, 0.05, 0.15, 0.5), (0.0, 0.1, 0.04, 0.02)],
)
def test_the_optimum_of_a_toy(alpha: float, token_mb: float, gamma: float, verify: float) -> None:
    """I12: with everything accepted and an idle wait, rounds of n tokens cost the planned upload and a verdict.

    The optimum over rounds is a shortest path over tokens made; inside a round it is the plan of Algorithm 1.
    """
    env = PipeSDNavEnv(
        scenario="s1",
        tokens=7,
        text=SURE,
        gamma_s=gamma,
        proactive=False,
        link=Link("toy", alpha, token_mb, verify, 0.0),
    )
    beta = token_mb / 2.5

    def cost(n: int) -> float:
        return finish_time(batch_plan(n, alpha, beta, gamma), alpha, beta, gamma) + verify

    best = [0.0] + [math.inf] * 7
    for left in range(1, 8):
        # a draft ends at the latest where all that is missing could come of it
        best[left] = min(cost(n) + best[max(left - n - 1, 0)] for n in range(1, max(left - 1, 1) + 1))
    assert best_return(env) == pytest.approx(-(best[7] - gamma) / 0.1, rel=1e-9)
    hasty = PipeSDNavEnv(
        scenario="s1",
        tokens=7,
        text=SURE,
        gamma_s=gamma,
        proactive=True,
        link=Link("toy", alpha, token_mb, verify, 0.0),
    )
    assert best_return(hasty) >= -(best[7] - gamma) / 0.1 - 1e-9  # drafting on while waiting can only help


def rows_env(accepted: list[int], **kwargs: Any) -> PipeSDNavEnv:
    return PipeSDNavEnv(
        **{
            "scenario": "s1",
            "text": of_rows("rows", [0.9] * len(accepted), accepted),
            "tokens": 50,
            "gamma_s": 0.1,
            "link": Link("x", 0.1, 0.25, 0.05, 0.0),  # 0.1 s a token
            **kwargs,
        }
    )


def test_promotion_by_hand() -> None:
    """Two tokens, right, and a right guess: what was drafted and uploaded while waiting is the beginning of the next draft."""
    env = rows_env([1] * 20)
    env.reset(seed=0)
    env.step(0)  # the second token is there at 0.2 s
    # alpha + 2 beta = 0.3 s of upload, 0.05 s of verification: the verdict is due at 0.55 s. Guess at 0.3 s, a token at 0.4 s.
    env.step(2)
    client, link = env.lanes.state.client[0, 0], env.lanes.state.link[0, 0]
    assert env.lanes.state.lane[0]["clock_s"] == pytest.approx(0.4)
    assert (client["phase"], client["block"], client["sent"], client["awaited"]) == (WAITING, 1, 0, 2)
    env.step(1)  # in line behind the request: from 0.5 s to 0.7 s; the next token is there at 0.5 s
    assert (client["block"], client["sent"]) == (2, 1) and link["free_s"] == pytest.approx(0.7)
    env.step(0)  # the verdict comes before the next token, whose drafting begins anew
    assert (client["phase"], client["block"], client["sent"], client["output"], client["promoted"]) == (
        DRAFTING,
        3,
        1,
        3,
        2,
    )
    assert env.lanes.state.lane[0]["clock_s"] == pytest.approx(0.55 + 0.1)
    assert link["free_s"] == pytest.approx(0.7)
    assert env.metrics()["dropped_tokens"] == 0


def test_dropping_by_hand() -> None:
    """A wrong guess drops what was drafted after it: a batch on the link goes through, the one behind it is withdrawn."""
    env = rows_env([1, 1, 0] + [1] * 20, gamma_wait_s=0.05)
    env.reset(seed=0)
    env.step(0)
    env.step(2)  # verdict at 0.55 s; the wrong guess at 0.25 s, tokens at 0.3, 0.35, ... s
    client, link = env.lanes.state.client[0, 0], env.lanes.state.link[0, 0]
    assert env.lanes.state.lane[0]["clock_s"] == pytest.approx(0.3)
    env.step(1)  # 0.5 s to 0.7 s: has begun when the verdict comes
    env.step(1)  # 0.7 s to 0.9 s: has not
    assert link["queued"] == 4 and link["free_s"] == pytest.approx(0.9)
    clock = env.lanes.state.lane[0]
    while client["verdicts_all"] == 0:
        env.step(0)
    assert (client["phase"], client["block"], client["sent"], client["output"]) == (DRAFTING, 1, 0, 3)
    assert clock["clock_s"] == pytest.approx(0.65)
    assert link["queued"] == 3 and link["free_s"] == pytest.approx(0.7)
    assert client["dropped"] == 6 and client["wasted"] == 1 and client["promoted"] == 0
    metrics = env.metrics()
    assert metrics["upload_wasted_share"] == pytest.approx(1 / 3) and metrics["rollback_rate"] == 0.0


def test_a_stop_while_waiting_asks_at_the_promotion() -> None:
    env = rows_env([1] * 30)
    env.reset(seed=0)
    env.step(0)
    env.step(2)
    client = env.lanes.state.client[0, 0]
    env.step(
        2
    )  # a waiting token is there at 0.4 s: no more; the verdict at 0.55 s asks again, a guess, then a token at 0.75 s
    assert (client["phase"], client["requests"], client["awaited"], client["block"]) == (WAITING, 2, 1, 1)
    assert env.lanes.state.lane[0]["clock_s"] == pytest.approx(0.75)
    assert client["arrival_s"] == pytest.approx(0.55 + 0.1 + 0.1)


def test_no_time_for_a_guess() -> None:
    """A verdict that comes before the guess: nothing to promote, and the text goes on after the target's token."""
    env = rows_env([1, 1, 0, 1, 1, 1], gamma_wait_s=5.0)
    env.reset(seed=0)
    env.step(0)
    env.step(2)
    client = env.lanes.state.client[0, 0]
    assert (client["phase"], client["guess"], client["output"], client["drafted"]) == (
        DRAFTING,
        NO_GUESS,
        3,
        3,
    )
    assert client["rejected"] < 0  # position 3, after the target's own token at the rejected position 2
    assert env.lanes.state.cursor[0, 0]["position"] == 4


def test_a_shared_cloud_serves_in_the_order_of_arrival() -> None:
    env = PipeSDNavEnv(scenario="shared", clients=5, tokens=60, link="compressed")
    rng = np.random.default_rng(3)
    env.reset(seed=1)
    terminated, turns = False, set()
    while not terminated:
        rows = intervals(env.lanes.state, 0)
        checks = rows[rows["activity"] == CHECK]
        assert (np.diff(checks["start_s"]) >= 0).all()
        assert (checks["start_s"][1:] >= checks["end_s"][:-1] - 1e-12).all()
        turns.add(int(env.lanes.state.lane[0]["turn"]))
        _, _, terminated, _, info = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
    assert turns == set(range(5)) and (env.lanes.state.client[0]["phase"] == DONE).all()
    finish = env.lanes.state.client[0]["finish_s"]
    assert info["metrics"]["client_mean_s"] == pytest.approx(finish.mean() - 0.04, rel=1e-9)
    assert info["metrics"]["cloud_utilisation"] <= 1.0 + 1e-12
    keys = env.lanes.state.client[0]["key"]
    assert len(set(keys.tolist())) == 5


def test_another_client_does_not_change_ones_text_and_only_delays() -> None:
    times = []
    for clients in (1, 2, 4):
        env = PipeSDNavEnv(scenario="compressed", clients=clients, tokens=100)
        policy = llmgym.baselines.make("pipesd", env)
        obs, info = env.reset(seed=5)
        terminated = False
        while not terminated:
            action = policy.act(obs[None], info["action_mask"][None])[0]
            obs, _, terminated, _, info = env.step(action)
        times.append((int(env.lanes.state.client[0, 0]["key"]), info["metrics"]["tpt_ms"]))
    assert len({key for key, _ in times}) == 1
    assert times[0][1] < times[1][1] < times[2][1]


def test_what_the_cloud_will_say_shows_nowhere() -> None:
    """I11: other acceptances of what is drafted and awaited change no observation before the verdict."""
    env = PipeSDNavEnv(scenario="small")
    policy = llmgym.baselines.make("random", env)
    obs, info = env.reset(seed=2)
    compared = 0
    for _ in range(120):
        other = copy.deepcopy(env)
        client = other.lanes.state.client[0, 0]
        client["rejected"] = 0 if client["rejected"] < 0 else -1
        client["awaited_rejected"] = 0 if client["awaited_rejected"] < 0 else -1
        if client["guess"] != NO_GUESS:
            client["guess"] = 3 - client["guess"]
        row = np.zeros(obs.size, np.float32)
        observing(other.simulation)(other.lanes.state, other.simulation.params, 0, row)
        assert row.tobytes() == obs.tobytes()
        before = env.metrics()["nav_per_token"], env.lanes.state.client[0, 0]["verdicts_all"]
        action = int(policy.act(obs[None], info["action_mask"][None])[0])
        told, *_ = other.step(action)
        obs, _, terminated, _, info = env.step(action)
        if terminated:
            break
        if env.lanes.state.client[0, 0]["verdicts_all"] == before[1]:
            assert told.tobytes() == obs.tobytes()
            compared += 1
    assert compared > 20


def test_an_upload_is_measured_when_it_is_through() -> None:
    """I11: the estimate does not know of a slower link before a batch has gone over it."""
    env = PipeSDNavEnv(scenario="s1", change_at=0, change_rate=0.5, tokens=500, max_draft=200)
    env.reset(seed=0)
    estimate, link = env.lanes.state.estimate[0, 0], env.lanes.state.link[0, 0]
    seen = [estimate["uploads_seen"]]
    assert estimate["beta"] == pytest.approx(0.116, rel=1e-5)
    env.step(1)
    while link["count"] > 0:
        assert estimate["uploads_seen"] == seen[0] and estimate["beta"] == pytest.approx(0.116, rel=1e-5)
        env.step(0)
    assert estimate["uploads_seen"] == seen[0] + 1 and estimate["beta"] != pytest.approx(0.116, rel=1e-5)


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.1])
def test_a_busy_link_is_shown_by_what_was_timed_before(rate: float) -> None:
    """I11: how long an upload that is under way will take, over a link that has changed, shows when it is through."""
    env = PipeSDNavEnv(scenario="s1", change_at=0, change_rate=rate, tokens=500, max_draft=200)
    obs, _ = env.reset(seed=0)
    state = env.lanes.state
    link, line, estimate = state.link[0, 0], state.line[0, 0], state.estimate[0, 0]
    assert obs[env.layout["link"]] == 0.0
    late = 0
    for action in (1, 1, *[0] * 100):
        obs, *_ = env.step(action)
        clock = env.lanes.state.lane["clock_s"][0]
        rows = [line[(link["first"] + i) % len(line)] for i in range(link["count"])]
        one = float(estimate["alpha"] + estimate["beta"])
        if link["carried"] == 0:  # by the probes
            assert one == pytest.approx(0.166, abs=1e-6)
        reckoned = [one] * len(rows)
        if rows:  # the first since it began
            late += clock - rows[0]["start_s"] > one
            reckoned[0] = max(one - (clock - rows[0]["start_s"]), 0.001)
        assert obs[env.layout["link"]] == pytest.approx(sum(reckoned), abs=1e-6)
        if rate == 1.0:
            assert obs[env.layout["link"]] == pytest.approx(max(link["free_s"] - clock, 0.0), abs=1e-6)
    assert link["count"] == 0 and link["carried"] == 2
    assert (late == 0) == (rate == 1.0)


def test_a_change_of_speed_comes_and_is_noticed() -> None:
    env = PipeSDNavEnv(scenario="compressed", tokens=400, change_at=100, change_gamma=2.0, change_rate=0.1)
    policy = llmgym.baselines.make("pipesd", env)
    obs, info = env.reset(seed=0)
    terminated, gammas = False, {}
    while not terminated:
        obs, _, terminated, _, info = env.step(policy.act(obs[None], info["action_mask"][None])[0])
        client = env.lanes.state.client[0, 0]
        if client["phase"] == DRAFTING:
            gammas.setdefault(bool(client["made"] >= 100), []).append(float(client["took_s"]))
    assert set(np.round(gammas[False][:-1], 6)) == {0.04} and max(gammas[True]) == pytest.approx(0.08)
    estimate = env.lanes.state.estimate[0, 0]
    assert estimate["gamma"] == pytest.approx(0.08, rel=0.01)
    # The plan is now a token at a time: all remembered uploads have one size, no line goes through them, alpha and beta stay.
    log = env.lanes.state.log[0, 0]
    assert log["uploads"][1] == 100 and estimate["beta"] < 0.01
    assert estimate["planned_gamma"] == pytest.approx(estimate["gamma"], rel=0.2)


def test_accepted_tokens_can_be_what_counts() -> None:
    for count in ("output", "accepted"):
        env = gymnasium.make(ID, scenario="s1", tokens=100, count=count).unwrapped
        policy = llmgym.baselines.make("pipesd", env)
        obs, info = env.reset(seed=0)
        terminated = False
        while not terminated:
            obs, _, terminated, _, info = env.step(policy.act(obs[None], info["action_mask"][None])[0])
        metrics = info["metrics"]
        assert metrics[f"{count}_tokens"] == pytest.approx(100, abs=1)
        assert metrics["tpt_ms"] == pytest.approx(
            1000 * metrics["duration_s"] / metrics[f"{count}_tokens"], rel=1e-9
        )


def test_worlds_do_not_depend_on_what_is_done() -> None:
    envs = PipeSDNavVectorEnv(3, scenario="mobile", tokens=300, autoreset_mode="DISABLED")
    envs.reset(seed=[3] * 3)
    rates, keys = envs.lanes.state.rates.copy(), envs.lanes.state.client["key"].copy()
    assert (rates == rates[0]).all() and (keys == keys[0]).all() and rates.std() > 0
    for _ in range(40):
        envs.step(np.array([0, 1, 2]))
    assert len(set(envs.metrics()["world_checksum"])) == 1
    assert len(set(envs.metrics()["duration_s"])) > 1
    assert (envs.lanes.state.rates == rates).all()


def test_a_masked_choice_asks() -> None:
    env, strict = (
        PipeSDNavEnv(scenario="small", max_draft=3, invalid_action=mode) for mode in ("penalize", "raise")
    )
    for one in (env, strict):
        one.reset(seed=0)
        one.step(0), one.step(0)
    assert env.action_masks().tolist() == [False, False, True]
    with pytest.raises(InvalidAction, match="masked"):
        strict.step(1)
    _, reward, *_ = env.step(1)
    _, free, *_ = strict.step(2)
    assert reward == pytest.approx(free - 0.1) and env.metrics()["invalid_actions"] == 1
    assert env.lanes.state.client.tobytes() == strict.lanes.state.client.tobytes()


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs(name: str) -> None:
    env = gymnasium.make(ID, scenario=name, tokens=40, energy_weight=0.1)
    policy = llmgym.baselines.make("pipesd", env)
    obs, info = env.reset(seed=0)
    terminated = False
    while not terminated:
        obs, _, terminated, _, info = env.step(policy.act(obs[None], info["action_mask"][None])[0])
        assert obs in env.observation_space
    assert 20 < info["metrics"]["tpt_ms"] < 2000
    settings = env.unwrapped.simulation.settings()
    assert settings["text"]["name"] and settings["link"]["token_mb"] > 0 and settings["bandwidth"]


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"bandwidth": 0.0}, "bandwidth=0.0"),
        ({"bandwidth": -5}, "bandwidth=-5"),
        ({"bandwidth": "6g"}, "6g"),
        ({"bandwidth_scale": 0.0}, "bandwidth_scale=0.0"),
        ({"energy_weight": -0.1}, "energy_weight=-0.1"),
        ({"energy_weight": math.nan}, "energy_weight=nan"),
        ({"gamma_s": 0.0}, "gamma_s=0.0"),
        ({"gamma_wait_s": -1.0}, "gamma_wait_s"),
        ({"gamma_jitter": -0.1}, "gamma_jitter"),
        ({"clients": 0}, "clients=0"),
        ({"clients": 2.5}, "clients=2.5"),
        ({"tokens": 0}, "tokens=0"),
        ({"max_draft": 0}, "max_draft=0"),
        ({"count": "words"}, "words"),
        ({"text": "mbpp"}, "mbpp"),
        ({"text": 3}, "text=3"),
        ({"link": "5g"}, "5g"),
        ({"link": Link("x", -0.1, 0.1, 0.1)}, "alpha_s=-0.1"),
        ({"link": Link("x", 0.1, 0.0, 0.1)}, "token_mb=0.0"),
        ({"proactive": 1}, "proactive=1"),
        ({"change_rate": 0.0}, "change_rate=0.0"),
        ({"change_at": -1}, "change_at=-1"),
        ({"downlink_s": -0.1}, "downlink_s"),
        ({"invalid_cost": -1.0}, "invalid_cost"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=named):
        PipeSDNavEnv(scenario="small", **kwargs)


def test_pictures() -> None:
    env = PipeSDNavEnv(render_mode="rgb_array", scenario="shared", tokens=200)
    env.reset(seed=0)
    before = env.render()
    for _ in range(60):
        env.step(1 if env.lanes.state.client[0]["block"].max() < 4 else 2)
    after = env.render()
    assert before.shape == after.shape == (420, 820, 3) and after.dtype == np.uint8
    assert (before != after).mean() > 0.02
    words = PipeSDNavEnv(render_mode="ansi", scenario="shared")
    words.reset(seed=0)
    assert "client 3 drafts" in words.render()


def test_the_page_shows_the_observation_and_every_scenario() -> None:
    page = (Path(__file__).parents[3] / "docs" / "envs" / "pipesd_nav.md").read_text()
    assert PipeSDNav.layout.markdown() in page
    assert [name for name, s in SCENARIOS.items() if f"| `{name}` | {s.about} |" not in page] == []


@pytest.mark.parametrize(
    "text",
    [Chain("never", 0.5, 0.5, 0.1, 0.0, 1.0, 0.0, 1.0), of_rows("none", [0.9, 0.5], [0, 0])],
    ids=["chain", "table"],
)
def test_a_text_of_which_nothing_is_accepted_has_no_end_where_only_that_counts(text: Any) -> None:
    """A step of PipeSDTune would never return. Where the target's own token counts too, every verdict brings one."""
    for env_id in (ID, "llmgym/PipeSDTune-v0"):
        with pytest.raises(InvalidArgument, match=r"count='accepted'.*has no end"):
            gymnasium.make(env_id, scenario="small", text=text, count="accepted")
    env = gymnasium.make(
        "llmgym/PipeSDTune-v0", scenario="small", text=text, tokens=64, step_tokens=32
    ).unwrapped
    env.reset(seed=0)
    *_, info = env.step(np.array([0.5, 0.5]))
    assert env.lanes.metrics_now(0)["acceptance"] == 0.0 and info["dt"] > 0
