"""Rules for SegmentedPrefill: what they choose, what that is worth, and that they never run out of memory."""

from typing import Any

import numpy as np
import pytest

from llmgym import baselines
from llmgym.baselines.segmented import BASELINES, GRIDS
from llmgym.core.policy import Policy
from llmgym.envs.memory.pipe.env import MemPipeEnv
from llmgym.envs.segmented.env import SegmentedPrefillEnv
from llmgym.envs.segmented.modes import TRAINED, parse
from llmgym.envs.segmented.observing import kind_of
from llmgym.envs.segmented.scenarios import SCENARIOS
from llmgym.envs.segmented.state import ADMIT, DECODING, EVICT, LOST, PREFILL, REJECT, RUN
from llmgym.errors import InvalidArgument
from llmgym.evaluation import run_episodes

ID = "llmgym/SegmentedPrefill-v0"
OPEN = [name for name in BASELINES if name not in ("clairvoyant", "random")]


def played(
    name: str, seed: int = 0, **kwargs: Any
) -> tuple[SegmentedPrefillEnv, list[tuple[int, int, int]], dict[str, float]]:
    """An episode of a rule: the environment at its end, its actions as (kind, which, mode), and the metrics."""
    env = SegmentedPrefillEnv(invalid_action="raise", **kwargs)
    policy = baselines.make(name, env)
    assert isinstance(policy, Policy)
    obs, info = env.reset(seed=seed)
    actions, ended = [], False
    while not ended:
        action = int(policy.act(obs[None], info["action_mask"][None])[0])
        actions.append(kind_of(env.simulation.params.config[0], action))
        obs, _, ended, cut, info = env.step(action)
        ended |= cut
    return env, actions, info["metrics"]


def modes_of(env: SegmentedPrefillEnv) -> list[str]:
    """The mode that each request had; "" for one that had none."""
    return [
        env.simulation.scenario.modes[m] if m >= 0 else ""
        for m in env.lanes.state.request[0]["mode"].tolist()
    ]


def test_the_papers_rule_has_one_mode_and_one_order() -> None:
    env, actions, _ = played("paper-fixed", scenario="small")
    assert set(modes_of(env)) == {TRAINED}
    assert all(which == 0 for kind, which, _ in actions if kind == ADMIT)
    first = env.lanes.state.request[0]["first_s"]
    assert (np.diff(first) > 0.0).all()  # prompts are done in the order of their arrival


def test_full_attention_waits_until_it_fits_and_rejects_what_never_does() -> None:
    """On a card of 40 GiB: prompts above 40K tokens are rejected, nothing else is, and nothing is lost."""
    env, _, metrics = played("full", scenario="paper", requests=40, memory_gib=40.0)
    requests = env.lanes.state.request[0]
    fits = requests["prompt"] * 707.5 / 2**20 <= 40.0 - 12.551
    assert [mode == "full" for mode in modes_of(env)] == fits.tolist()
    assert metrics["rejected"] == (~fits).sum() > 0 and metrics["lost"] == 0.0


def test_thresholds() -> None:
    for tokens in (0, 8192, 20_000):
        name = "threshold" if tokens == 20_000 else f"threshold:tokens={tokens}"
        env, _, _ = played(name, scenario="small")
        for mode, request in zip(modes_of(env), env.lanes.state.request[0], strict=True):
            # one that is short may still not have fitted beside the others
            assert mode == TRAINED if request["prompt"] > tokens else mode in ("full", TRAINED)
    _, long = played("threshold:tokens=1000000", scenario="small")[:2]
    assert {mode for kind, _, mode in long if kind == ADMIT} >= {0}


def test_chunks_evict_the_newest_where_memory_is_short() -> None:
    """Four prompts at once on a card that holds one of them: what loses its place is never the oldest, and all are done."""
    kwargs: dict[str, Any] = {
        "scenario": "paper",
        "modes": ("chunked-2048",),
        "requests": 4,
        "load": 1e6,
        "prompt_least": 30_000,
        "prompt_most": 34_000,
        "memory_gib": 34.0,
        "output_mean": 1.0,
    }
    env, actions, metrics = played("chunked-fcfs", **kwargs)
    assert metrics["lost"] == 0.0 and metrics["completed"] == 4.0
    assert all(which > 0 for kind, which, _ in actions if kind == EVICT)
    # by hand: two prompts that are half done do not fit, so the newer one goes
    env = SegmentedPrefillEnv(**(kwargs | {"requests": 2}))
    policy = baselines.make("chunked-fcfs", env)
    env.reset(seed=0)
    step(env, 0)
    config = env.simulation.params.config[0]
    step(env, int(np.flatnonzero(env.action_masks())[-1]))  # the second arrives
    while kinds_allowed(env).count(ADMIT):
        step(env, 0)
    runs = [a for a in np.flatnonzero(env.action_masks()) if kind_of(config, int(a))[0] == RUN]
    for _ in range(9):
        for a in runs:
            step(env, int(a))
    assert env.lanes.state.request[0]["status"].tolist() == [PREFILL, PREFILL]
    decided = []
    while EVICT not in decided and len(decided) < 10:
        obs = env.lanes.buffers.obs[0]
        action = int(policy.act(obs[None], env.lanes.buffers.mask[:1])[0])
        decided.append(kind_of(config, action)[0])
        step(env, action)
    assert decided[-1] == EVICT and env.lanes.state.slot[0].tolist()[:2] == [0, -1]


def step(env: SegmentedPrefillEnv, action: int) -> None:
    env.step(action)


def kinds_allowed(env: SegmentedPrefillEnv) -> list[int]:
    config = env.simulation.params.config[0]
    return [kind_of(config, int(action))[0] for action in np.flatnonzero(env.action_masks())]


def test_greedy_takes_the_best_mode_in_time_and_the_fastest_where_none_is() -> None:
    """By hand, for the first request of an empty card: with time enough segments, which answer best; with none what is fastest."""
    for slack, expected in ((10.0, TRAINED), (0.01, None)):
        for name in ("memory-greedy", "edf"):
            env = SegmentedPrefillEnv(
                scenario="paper",
                prompt_least=65_536,
                prompt_most=65_536,
                limit_s=0.0,
                classes=((1.0, 0.5, slack),),
            )
            obs, info = env.reset(seed=0)
            action = int(baselines.make(name, env).act(obs[None], info["action_mask"][None])[0])
            chosen = env.simulation.scenario.modes[action]
            fastest = "streaming"
            assert chosen == (expected or fastest)


def test_edf_runs_the_nearest_limit() -> None:
    """Of two admitted prompts the one whose limit is nearer goes first, which for the oldest-first rule is the older."""
    env = SegmentedPrefillEnv(
        scenario="paper",
        requests=2,
        load=1e9,
        modes=(TRAINED,),
        slots=2,
        limit_s=0.0,
        classes=((0.5, 0.9, 9.0), (0.5, 0.9, 1.0)),
    )
    seen = set()
    for seed in range(12):
        env.reset(seed=seed)
        env.step(int(np.flatnonzero(env.action_masks())[-1]))
        for _ in range(2):
            env.step(0)
        requests, obs, mask = env.lanes.state.request[0], env.lanes.buffers.obs, env.lanes.buffers.mask
        limit = requests["arrival_s"] + requests["limit_s"]
        for name, slot in (("edf", int(limit.argmin())), ("memory-greedy", 0)):
            kind, which, _ = kind_of(
                env.simulation.params.config[0], int(baselines.make(name, env).act(obs, mask)[0])
            )
            assert kind == RUN and which == slot
        seen.add(int(limit.argmin()))
    assert seen == {0, 1}


def test_triage_gives_up_what_comes_too_late() -> None:
    """A request whose limit has passed twice over is rejected at once; with `give_up=-1` it is served."""
    kwargs: dict[str, Any] = {
        "scenario": "paper",
        "requests": 3,
        "classes": ((1.0, 0.9, 0.05),),
        "limit_s": 0.0,
    }
    _, actions, metrics = played("triage", **kwargs)
    assert metrics["rejected"] == 3.0 and {kind for kind, _, _ in actions} == {REJECT}
    _, _, metrics = played("triage:give_up=-1", **kwargs)
    assert metrics["rejected"] == 0.0 and metrics["completed"] == 3.0


def test_triage_decodes_when_later_tokens_are_pressed() -> None:
    """The lower the share, the sooner later tokens come."""
    tpot = [
        run_episodes(ID, f"triage:pressure={x}", 6, 3, {"scenario": "small"}).metrics["tpot_mean_s"].mean()
        for x in (0.2, 3)
    ]
    assert tpot[0] < tpot[1]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_rule_runs_out_of_memory(scenario: str) -> None:
    for name in OPEN:
        if name == "chunked-fcfs" and scenario == "stress":
            continue  # the longest to play
        table = run_episodes(ID, name, 3, 11, {"scenario": scenario, "requests": 24})
        assert table.metrics["lost"].sum() == table.metrics["invalid_actions"].sum() == 0.0, name
        assert table.metrics["forfeited"].sum() == 0.0 and table.terminated.all()


def test_the_order_of_the_rules() -> None:
    """Deadlines help, and weighing time, quality and memory helps more; full attention and chunks lose."""
    value = {name: run_episodes(ID, name, 20, 50, {"scenario": "small"}).returns.mean() for name in OPEN}
    assert value["triage"] > value["edf"] > max(value["memory-greedy"], value["paper-fixed"], value["full"])
    assert value["threshold"] > value["full"]
    assert value["chunked-fcfs"] < value["paper-fixed"]


def test_the_clairvoyant_is_privileged_and_at_least_as_good_as_its_rules() -> None:
    env = SegmentedPrefillEnv(scenario="small", requests=5)
    policy = baselines.make("clairvoyant", env)
    assert policy.privileged and not baselines.make("triage", env).privileged
    better = 0.0
    for seed in range(2):
        returns = []
        for one in (policy, baselines.make("triage", env)):
            obs, info = env.reset(seed=seed)
            ended, total = False, 0.0
            while not ended:
                obs, reward, ended, _, info = env.step(int(one.act(obs[None], info["action_mask"][None])[0]))
                total += reward
            returns.append(total)
        assert returns[0] >= returns[1] - 1e-9
        better += returns[0] - returns[1]
    assert better >= 0.0


def test_what_a_rule_needs_is_told() -> None:
    env = SegmentedPrefillEnv(scenario="small", modes=("full", "duo"))
    for name in ("paper-fixed", "threshold", "chunked-fcfs"):
        with pytest.raises(InvalidArgument, match=f"{name}.*needs"):
            baselines.make(name, env)
    with pytest.raises(InvalidArgument, match="for SegmentedPrefill"):
        BASELINES["edf"](MemPipeEnv())
    with pytest.raises(InvalidArgument, match="pressure"):
        baselines.make("triage:pressure=0", SegmentedPrefillEnv())
    env = SegmentedPrefillEnv()
    for variants in GRIDS.values():
        for name in variants:
            assert baselines.make(name, env).name == name


def test_the_modes_of_the_menu_are_of_every_family() -> None:
    families = {parse(mode).family for mode in SCENARIOS["small"].modes}
    assert families == {"full", "chunked", "duo", "streaming", "segmented"}
    assert len({ADMIT, RUN, EVICT, REJECT, DECODING}) == 5 and LOST
