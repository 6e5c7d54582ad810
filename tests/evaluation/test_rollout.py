import gymnasium
import numpy as np
import pytest

from llmgym.errors import InvalidAction, InvalidArgument, LlmgymError, UnknownName
from llmgym.evaluation import rollout, run_episodes
from tests.evaluation.conftest import TOY, WORLDS, Fake, always


def one_by_one(env_id, decide, seeds, **env_kwargs):
    """The same episodes on single environments, by gymnasium's own interface."""
    rows = []
    for seed in seeds:
        env = gymnasium.make(env_id, **env_kwargs).unwrapped
        obs, info = env.reset(seed=int(seed))
        total, steps, time_s, over = 0.0, 0, 0.0, False
        while not over:
            mask = info["action_mask"][None] if len(info["action_mask"]) else None
            obs, reward, terminated, truncated, info = env.step(decide(obs[None], mask)[0])
            total, steps, time_s, over = (
                total + reward,
                steps + 1,
                time_s + info["dt"],
                terminated or truncated,
            )
        rows.append((total, steps, time_s, terminated, truncated, info["metrics"]))
    return rows


def serve_one(obs, mask):
    """Lazy in the second half, so that some episodes end early in a full room and others at the horizon."""
    return np.where(obs[:, 1] < 0.5, 1, 0)


def check(table, rows):
    assert table.returns.tolist() == [row[0] for row in rows]
    assert table.steps.tolist() == [row[1] for row in rows]
    assert table.simulated_s.tolist() == [row[2] for row in rows]
    assert table.terminated.tolist() == [row[3] for row in rows]
    assert table.truncated.tolist() == [row[4] for row in rows]
    for name, column in table.metrics.items():
        assert np.array_equal(column, [row[5][name] for row in rows], equal_nan=True)


def test_every_episode_is_that_of_a_single_environment():
    table = run_episodes(TOY, Fake("rule", serve_one), 20, seed=3, env_kwargs={"arrival": 0.3})
    rows = one_by_one(TOY, serve_one, range(3, 23), arrival=0.3)
    check(table, rows)
    assert len(table) == 20 and table.seeds.tolist() == list(range(3, 23))
    assert table.terminated.any() and table.truncated.any() and len(set(table.steps.tolist())) > 2
    assert table.column("waited_s") is table.metrics["waited_s"] and table.column("return") is table.returns


@pytest.mark.parametrize("episodes", [8, 9, 10])
def test_chunks_change_nothing(monkeypatch, episodes):
    policy = Fake("rule", serve_one)
    whole = run_episodes(TOY, policy, episodes, seed=3, env_kwargs={"arrival": 0.3})
    monkeypatch.setattr(rollout, "LANES_AT_ONCE", 4)
    policy.resets.clear()
    chunked = run_episodes(TOY, policy, episodes, seed=3, env_kwargs={"arrival": 0.3})
    lanes = -(-episodes // -(-episodes // 4))
    assert [len(which) for which in policy.resets] == [lanes] * -(-episodes // 4)
    assert all(which.all() for which in policy.resets)
    for name in ("seeds", "returns", "steps", "simulated_s", "terminated", "truncated"):
        assert np.array_equal(getattr(whole, name), getattr(chunked, name))
    assert all(np.array_equal(whole.metrics[name], chunked.metrics[name]) for name in whole.metrics)


def half(obs, mask):
    return np.stack([np.full(len(obs), 0.5), np.full(len(obs), 1.0)], axis=1)


def box_garbage(obs, mask):
    assert mask is None
    actions = half(obs, mask)
    actions[obs[:, 1] == 1.0] = np.nan
    return actions


def ones(obs, mask):
    return np.ones((len(obs), 2), np.int64)


def multi_garbage(obs, mask):
    assert mask.any(axis=1).all()
    actions = ones(obs, mask) * [1, 0]
    actions[obs[:, 1] == 1.0] = -99
    return actions


def test_spare_lanes_of_the_last_chunk_run_nothing(monkeypatch):
    monkeypatch.setattr(rollout, "LANES_AT_ONCE", 4)
    calls = []
    table = run_episodes(TOY, always(1), 5, progress=lambda *numbers: calls.append(numbers))
    assert table.calls == 80 and {sum(numbers[:2]) for numbers in calls} == {3, 5}
    assert calls[0][:2] == (0, 3) and calls[40][:2] == (3, 2) and calls[-1][:2] == (5, 0)


def test_garbage_in_ended_lanes_of_a_box_is_replaced():
    check(
        run_episodes(WORLDS, Fake("wild", box_garbage), 12), one_by_one(WORLDS, half, range(10_000, 10_012))
    )


def test_garbage_in_ended_lanes_of_a_multidiscrete_is_replaced_and_masks_are_never_empty():
    kwargs = {"action": "multi", "strict": True}
    rows = one_by_one(WORLDS, lambda obs, mask: ones(obs, mask) * [1, 0], range(10_000, 10_012), **kwargs)
    check(run_episodes(WORLDS, Fake("wild", multi_garbage), 12, env_kwargs=kwargs), rows)


def test_integers_are_accepted_by_a_box_whose_bounds_are_not():
    table = run_episodes(WORLDS, Fake("ints", lambda obs, mask: np.ones((len(obs), 2), np.int64)), 12)
    rows = one_by_one(WORLDS, lambda obs, mask: np.ones((len(obs), 2)), range(10_000, 10_012))
    check(table, rows)


def test_a_policy_cannot_reach_into_the_buffers():
    def vandal(obs, mask):
        obs[:] = 7.0
        mask[:] = 7
        return np.ones(len(obs), np.int64)

    wild, tame = run_episodes(TOY, Fake("vandal", vandal), 6), run_episodes(TOY, always(1), 6)
    assert np.array_equal(wild.returns, tame.returns)


def test_counts_and_times():
    calls = []
    table = run_episodes(
        TOY, always(2), 5, env_kwargs={"horizon": 12}, progress=lambda *numbers: calls.append(numbers)
    )
    assert table.calls == 12 and table.decisions == 60
    assert calls[0] == (0, 5, 1) and calls[-1] == (5, 0, 12)
    assert 0.0 < table.decision_s < table.call_s and table.act_s <= table.wall_s
    assert table.decision_s * 60 == pytest.approx(table.call_s * 12) == pytest.approx(table.act_s)


def test_an_argument_the_policy_needs_is_added():
    table = run_episodes(TOY, always(1, env_kwargs={"horizon": 7}), 2, env_kwargs={"arrival": 0.2})
    assert table.env_kwargs == {"arrival": 0.2, "horizon": 7} and table.steps.tolist() == [7, 7]
    same = run_episodes(TOY, always(1, env_kwargs={"horizon": 7}), 2, env_kwargs={"horizon": 7})
    assert same.steps.tolist() == [7, 7]


def test_an_argument_the_policy_contradicts_is_an_error():
    with pytest.raises(InvalidArgument, match=r"needs an environment with horizon=7, but horizon=9"):
        run_episodes(TOY, always(1, env_kwargs={"horizon": 7}), 2, env_kwargs={"horizon": 9})


@pytest.mark.parametrize(
    ("decide", "words"),
    [
        (lambda obs, mask: np.full(len(obs), 3), "'bad', decision 1 .*outside Discrete"),
        (lambda obs, mask: np.full(len(obs), 1.0), "'bad', decision 1 .*dtype float64"),
        (
            lambda obs, mask: np.ones((len(obs), 1), int),
            r"'bad': actions have shape \(2, 1\), expected \(2,\)",
        ),
        (lambda obs, mask: 1, r"'bad': actions have shape \(\)"),
    ],
)
def test_a_wrong_action_names_the_policy(decide, words):
    with pytest.raises(InvalidAction, match=words):
        run_episodes(TOY, Fake("bad", decide), 2)


def test_a_masked_action_of_a_running_lane_still_raises():
    with pytest.raises(InvalidAction, match=r"'always 2', decision 1 .*masked"):
        run_episodes(TOY, always(2), 2, env_kwargs={"invalid_action": "raise"})


def test_a_return_that_is_no_number_is_an_error():
    with pytest.raises(LlmgymError, match="'half' has the return nan on seed 5"):
        run_episodes(WORLDS, Fake("half", half), 2, seed=5, env_kwargs={"broken": True})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"env_id": "toyeval/Quue-v0"}, UnknownName, "unknown environment id 'toyeval/Quue-v0'"),
        ({"env_id": "nowhere:toyeval/Queue-v0"}, UnknownName, "unknown environment id"),
        ({"env_id": "CartPole-v1"}, InvalidArgument, "not a LaneVectorEnv"),
        ({"policy": "nobody"}, UnknownName, "unknown policy .*'nobody'"),
        ({"policy": 3}, InvalidArgument, "policy 3 has no name, privileged, env_kwargs, act, reset"),
        ({"policy": Fake}, InvalidArgument, "is a class|has no"),
        ({"episodes": 0}, InvalidArgument, "episodes=0: expected a whole number from 1"),
        ({"episodes": 2.5}, InvalidArgument, "episodes=2.5"),
        ({"seed": -1}, InvalidArgument, "seed=-1"),
        ({"env_kwargs": {"num_envs": 3}}, InvalidArgument, "num_envs: set by the evaluation"),
        ({"env_kwargs": {"arival": 0.5}}, InvalidArgument, "arival"),
    ],
)
def test_wrong_input_says_what_is_wrong(arguments, error, words):
    with pytest.raises(error, match=words):
        run_episodes(**{"env_id": TOY, "policy": always(1), "episodes": 2, **arguments})


def test_a_module_in_front_of_the_id_is_imported():
    table = run_episodes(f"tests.toy:{TOY}", always(1), 2)
    assert table.env_id == TOY
