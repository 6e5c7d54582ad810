"""Measured text: tables made up for the tests, what an environment does with them, and what is refused."""

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from llmgym import baselines
from llmgym.envs.unmask import tables
from llmgym.envs.unmask.env import UnmaskEnv
from llmgym.envs.unmask.tables import ENTROPY, LOG_TOP, LOG_TRUE, MARGIN, Excerpts
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.testing import hidden, invariants
from tests.envs.populations import counting

ID = "llmgym/Unmask-v0"


def made(blocks: int = 5, block: int = 6, seed: int = 0, shares: float = 0.5) -> Excerpts:
    """Random numbers in the form of a table: for tests only."""
    rng = np.random.default_rng(seed)
    top = rng.uniform(0.2, 0.9, (blocks, 1 + block, block))
    right = rng.random(top.shape) < top
    true = np.where(right, top, 0.3 * top)
    values = np.stack([np.log(true), np.log(top), rng.uniform(0, 2, top.shape), 0.5 * top], axis=-1)
    own = np.arange(block)
    values[:, own + 1, own] = [0.0, 0.0, 0.0, 1.0]
    right[:, own + 1, own] = True
    damage = np.where(right, 0.0, rng.normal(4.0, 3.0, top.shape)).astype(np.float32)
    return Excerpts("made", values.astype(np.float32), right.astype(np.uint8), damage, 64, np.full(4, shares))


def kwargs(**more: Any) -> dict[str, Any]:
    return {"text": made(), "mode": "score", "block": 6, "tokens": 18, **more}


def test_the_environment_keeps_its_promises_with_measured_text() -> None:
    """Bits, bounds, counts, lanes, and nothing that is hidden shows."""
    for action in ("add", "macro"):
        settings = kwargs(action=action)
        invariants.it_runs(ID, settings)
        invariants.spaces_and_types(ID, settings)
        for seed in range(3):
            invariants.counts_time_bounds_and_return(ID, settings, seed, seed, counting(ID))
            invariants.same_seed_same_bits(ID, settings, seed, seed)
        invariants.lane_is_single(ID, settings, AutoresetMode.SAME_STEP, [1, 2, 3], 0)
        hidden.what_differs_is_declared(ID, settings)
        hidden.observations_do_not_read_it(ID, settings)
        hidden.another_future_is_another_episode(ID, settings)


def test_what_is_said_with_nothing_one_and_two_known() -> None:
    env = UnmaskEnv(**kwargs(action="set", tokens=6))
    env.reset(seed=3)
    table = env.simulation.excerpts.values[env.lanes.state.lane[0]["excerpt"]].astype(np.float64)
    positions = env.lanes.state.position[0]
    assert positions["confidence"] == pytest.approx(np.exp(table[0, :, LOG_TOP]), abs=1e-6)
    assert positions["entropy"] == pytest.approx(table[0, :, ENTROPY], abs=1e-6)
    env.step(np.array([0, 0, 1, 0, 0, 0]))
    others = [0, 1, 3, 4, 5]
    assert positions["confidence"][others] == pytest.approx(np.exp(table[3, others, LOG_TOP]), abs=1e-6)
    assert positions["log_drawn"][others] == pytest.approx(table[3, others, LOG_TRUE], abs=1e-6)
    assert positions["margin"][others] == pytest.approx(
        np.minimum(table[3, others, MARGIN], positions["confidence"][others]), abs=1e-6
    )
    assert positions["confidence"][2] == 1.0 and positions["entropy"][2] == 0.0
    env.step(np.array([0, 0, 0, 0, 1, 0]))
    for i in (0, 1, 3, 5):
        effects = sorted((table[[3, 5], i, ENTROPY] - table[0, i, ENTROPY]).tolist(), key=abs)
        expected = table[0, i, ENTROPY] + effects[1] + 0.5 * effects[0]
        assert positions["entropy"][i] == pytest.approx(min(max(expected, 0.0), np.log(64)), abs=1e-5)


def test_one_position_a_call_loses_nothing_and_two_lose_what_one_tells_of_the_other() -> None:
    env = UnmaskEnv(**kwargs(action="set", tokens=6, lambda_low=1.0, lambda_high=1.0))
    env.reset(seed=0)
    ended = False
    for i in range(6):
        _, _, ended, _, info = env.step(np.eye(6, dtype=np.int64)[i])
    assert ended and info["metrics"]["kl_nats"] == pytest.approx(0.0, abs=1e-9)
    env.reset(seed=0)
    table = env.simulation.excerpts.values[env.lanes.state.lane[0]["excerpt"]]
    _, reward, *_ = env.step(np.array([1, 0, 0, 0, 1, 0]))
    told = float(table[1, 4, LOG_TRUE] - table[0, 4, LOG_TRUE])
    assert reward == pytest.approx(-1.0 - told, abs=1e-6)


def test_accuracy_and_the_judge_count_the_likeliest_tokens() -> None:
    env = UnmaskEnv(**kwargs(action="macro", tokens=6))
    env.reset(seed=0)
    excerpts, which = env.simulation.excerpts, env.lanes.state.lane[0]["excerpt"]
    _, _, _, _, info = env.step(9)
    assert info["metrics"]["accuracy"] == pytest.approx(excerpts.right[which, 0].mean())
    assert info["metrics"]["scorer_nats"] == pytest.approx(excerpts.damage[which, 0].sum())
    assert np.isnan(info["metrics"]["typical"])
    phrases = UnmaskEnv(action="macro")
    phrases.reset(seed=0)
    ended = False
    while not ended:
        _, _, ended, _, info = phrases.step(9)
    assert np.isnan(info["metrics"]["scorer_nats"])


def test_what_is_written_is_judged_by_what_was_known_then() -> None:
    """The row of the position that tells most of the true token: its likeliest token, and what that costs."""
    env = UnmaskEnv(**kwargs(action="set", tokens=6))
    env.reset(seed=1)
    excerpts, which = env.simulation.excerpts, env.lanes.state.lane[0]["excerpt"]
    table = excerpts.values[which, ..., LOG_TRUE]
    total = float(excerpts.damage[which, 0, [1, 4]].sum())
    env.step(np.array([0, 1, 0, 0, 1, 0]))
    for i in (0, 2, 3, 5):
        row = max((2, 5), key=lambda r, i=i: abs(table[r, i] - table[0, i]))
        total += float(excerpts.damage[which, row, i])
    _, _, _, _, info = env.step(np.array([1, 0, 1, 1, 0, 1]))
    assert info["metrics"]["scorer_nats"] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("rule", ["dus", "confidence", "left-to-right"])
@pytest.mark.parametrize("domain", ["code", "prose"])
def test_what_a_rule_loses_by_the_table_is_what_it_lost_with_the_model_itself(rule: str, domain: str) -> None:
    """The blocks that were also replayed at every call: mean nats, within a tenth and four standard errors of either."""
    measured = tables.shipped_meta()["measured"]
    mean, error = measured["groups"][domain]["replay"]["true tokens"][rule]["gap_nats"]
    shipped = tables.load(f"model-{domain}")
    assert shipped is not None
    lost = []
    for n in range(0, measured["checked_blocks"], 3):
        parts = (x[n : n + 1] for x in (shipped.values, shipped.right, shipped.damage))
        env = UnmaskEnv(
            text=Excerpts("one", *parts, shipped.vocabulary, shipped.shares),
            **{"mode": "score", "tokens": 16, "action": "add"},
        )
        policy = baselines.make(rule, env)
        obs, info = env.reset(seed=0)
        ended = False
        while not ended:
            obs, _, ended, _, info = env.step(policy.act(obs[None], info["action_mask"][None])[0])
        lost.append(info["metrics"]["kl_nats"])
    own = float(np.std(lost, ddof=1) / np.sqrt(len(lost)))
    assert abs(np.mean(lost) - mean) < 0.1 * mean + 4.0 * np.hypot(own, error)


def test_all_rules_play_measured_text() -> None:
    env = UnmaskEnv(**kwargs())
    for name in baselines.names(ID):
        policy = baselines.make(name, env)
        obs, info = env.reset(seed=1)
        ended = False
        while not ended:
            obs, _, ended, _, info = env.step(policy.act(obs[None], info["action_mask"][None])[0])
        assert info["metrics"]["invalid_actions"] == 0


def test_what_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="score"):
        UnmaskEnv(**kwargs(mode="generate"))
    with pytest.raises(InvalidArgument, match="blocks of 6"):
        UnmaskEnv(**kwargs(block=9))
    with pytest.raises(InvalidArgument, match="interleave"):
        UnmaskEnv(**kwargs(interleave=(2,)))
    good = made()
    for change in (
        {"values": good.values[:, :3]},
        {"right": good.right[:2]},
        {"damage": good.damage[:2]},
        {"damage": np.ones_like(good.damage)},
        {"damage": np.where(good.right == 1, 0.0, np.inf).astype(np.float32)},
        {"shares": np.full(4, 2.0)},
        {"values": good.values + np.float32(1.0)},
        {"values": np.full_like(good.values, np.nan)},
        {"vocabulary": 2},
    ):
        fields = {
            name: getattr(good, name)
            for name in ("name", "values", "right", "damage", "vocabulary", "shares")
        }
        with pytest.raises(InvalidArgument):
            Excerpts(**fields | change)
    assert good == made() and good != made(seed=1) and hash(good) == hash(made())


def test_nothing_ships_that_was_not_measured() -> None:
    """`phrases` needs no table; other names are those of a table with its provenance."""
    names = tables.names()
    assert names == [tables.PHRASES, "model-code", "model-prose"] and tables.load(tables.PHRASES) is None
    for name in names[1:]:
        about = tables.load(name).about  # type: ignore[union-attr]
        assert {"what", "script", "date", "machine"} <= set(about)
    with pytest.raises(UnknownName, match="no such"):
        tables.load("no such")
