"""Wrong input raises an error that names it, and leaves the environment exactly as it was."""

import pickle
import re

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from llmgym import errors
from llmgym.core import memory as core_memory
from llmgym.core.settings import settled
from llmgym.envs.kv.queue.env import KVQueueEnv
from llmgym.envs.kv.queue.scenarios import SCENARIOS
from llmgym.errors import InvalidAction, InvalidArgument, ResetNeeded, UnknownArgument, UnknownName
from llmgym.testing.drive import legal_action, legal_actions, same
from tests.toy import ToyEnv, ToyVectorEnv

NAN = float("nan")

BAD_NUMBERS = [
    -1,
    3,
    np.int64(3),
    2**70,
    -(2**70),
    1.0,
    np.float32(1.0),
    NAN,
    float("inf"),
    True,
    np.True_,
    "1",
    b"1",
    None,
    1j,
    {},
    object(),
    [1],
    [[1]],
    [[1], [1, 2]],
    np.array([1]),
    np.array([], int),
    np.datetime64(1, "s"),
]
BAD_PAIRS = [
    1,
    [1],
    [1, 2],
    [3, 0],
    [-1, 0],
    [1.0, 0.0],
    [NAN, 0],
    [True, False],
    ["1", "0"],
    [1, None],
    [[1, 0]],
    [1, [0]],
    [1, 0, 0],
]
BAD_BOXES = [
    1.0,
    [-0.1],
    [2.1],
    [NAN],
    [float("inf")],
    [True],
    ["1"],
    [None],
    [1j],
    [0.5, 0.5],
    [[0.5]],
    [],
    np.array([1], "m8[s]"),
]


def named(value):
    """The id of a test: the same in every process, so that the workers of pytest-xdist collect the same tests."""
    return "object()" if type(value) is object else repr(value)


KINDS = {"number": BAD_NUMBERS, "pair": BAD_PAIRS, "box": BAD_BOXES}
BAD = [(kind, bad) for kind, some in KINDS.items() for bad in some]
SHAPES = [1, [1], [1, 0], [1, 0, 1, 0], [[1], [0], [1]], "101", None, [1.0, 0.0, 1.0]]


@pytest.mark.parametrize(("kind", "bad"), BAD, ids=named)
def test_a_bad_action_changes_nothing(kind, bad):
    env, twin = ToyEnv(action=kind), ToyEnv(action=kind)
    rng = np.random.default_rng(0)
    env.reset(seed=3)
    _, info = twin.reset(seed=3)
    for _ in range(100):
        with pytest.raises(InvalidAction, match="action"):
            env.step(bad)
        action = legal_action(env, info["action_mask"], rng)
        expected = twin.step(action)
        same(env.step(action), expected)
        info = expected[4]
        if expected[2] or expected[3]:
            info = twin.reset()[1]
            same(env.reset()[1], info)


@pytest.mark.parametrize(("kind", "bad"), BAD, ids=named)
@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_a_bad_action_of_one_lane_changes_no_lane(kind, bad, mode):
    envs, twin = (ToyVectorEnv(3, action=kind, autoreset_mode=mode) for _ in range(2))
    rng = np.random.default_rng(0)
    envs.reset(seed=3)
    _, infos = twin.reset(seed=3)
    for _ in range(60):
        actions = legal_actions(envs.single_action_space, infos["action_mask"], rng)
        with pytest.raises(InvalidAction, match="action"):
            # numpy makes numbers of booleans among numbers, so these come in every lane
            envs.step([bad] * 3 if "True" in repr(bad) else [*actions[:2].tolist(), bad])
        expected = twin.step(actions)
        same(envs.step(actions), expected)
        infos = expected[4]
        ended = expected[2] | expected[3]
        if mode == AutoresetMode.DISABLED and ended.any():
            infos = twin.reset(options={"reset_mask": ended})[1]
            envs.reset(options={"reset_mask": ended})


@pytest.mark.parametrize("bad", SHAPES, ids=repr)
def test_actions_of_a_wrong_shape(bad):
    envs, twin = ToyVectorEnv(3), ToyVectorEnv(3)
    envs.reset(seed=1)
    twin.reset(seed=1)
    with pytest.raises(InvalidAction, match="expected"):
        envs.step(bad)
    same(envs.step([0, 0, 0]), twin.step([0, 0, 0]))


@pytest.mark.parametrize("good", [1, np.int8(1), np.uint64(1), np.array(1), np.array(1, np.uint8)], ids=repr)
def test_whole_numbers_of_every_kind_are_actions(good):
    env, twin = ToyEnv(arrival=1.0), ToyEnv(arrival=1.0)
    for one in (env, twin):
        one.reset(seed=0)
        one.step(0)
    same(env.step(good), twin.step(1))


def test_a_masked_action_is_a_safe_step_unless_masks_are_enforced():
    env = ToyEnv()
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True, False, False]
    env.step(2)
    for kind, action in (("number", 2), ("pair", [2, 0])):
        env, twin = (ToyEnv(invalid_action="raise", action=kind) for _ in range(2))
        envs, twins = (ToyVectorEnv(2, invalid_action="raise", action=kind) for _ in range(2))
        calm = 0 if kind == "number" else [0, 1]
        for one in (env, twin, envs, twins):
            one.reset(seed=0)
        with pytest.raises(InvalidAction, match=r"masked; allowed: \[0"):
            env.step(action)
        with pytest.raises(InvalidAction, match="lane 1 is masked"):
            envs.step([calm, action])
        same(env.step(calm), twin.step(calm))
        same(envs.step([calm, calm]), twins.step([calm, calm]))


def test_no_mask_is_enforced_on_a_lane_that_is_about_to_be_reset():
    envs = ToyVectorEnv(1, invalid_action="raise", arrival=1.0, horizon=3)
    envs.reset(seed=0)
    for _ in range(3):
        _, _, _, truncated, _ = envs.step([0])
    assert truncated.all()
    envs.lanes.buffers.mask[:] = 0
    obs, reward, *_ = envs.step([2])
    assert obs[0, 1] == 0.0 and reward[0] == 0.0


def test_step_needs_a_running_episode():
    env = ToyEnv(horizon=2)
    for _ in range(2):
        with pytest.raises(ResetNeeded, match="reset"):
            env.step(0)
    env.reset(seed=0)
    env.step(0)
    *_, info = env.step(0)
    kept = info["metrics"]
    for _ in range(2):
        with pytest.raises(ResetNeeded, match="reset"):
            env.step(0)
    assert env.metrics() == kept
    twin = ToyEnv(horizon=2)
    twin.reset(seed=0)
    same(env.reset()[0], twin.reset()[0])
    same(env.step(0), twin.step(0))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_over_an_ended_lane_moves_no_other_lane(threads):
    """Found here: the lanes before the ended one had already been stepped when the error came."""
    envs, twin = (ToyVectorEnv(4, autoreset_mode="DISABLED", threads=threads) for _ in range(2))
    for one in (envs, twin):
        one.reset(seed=0)
        ended = np.zeros(4, bool)
        while not ended.any():
            _, _, terminated, truncated, _ = one.step(np.zeros(4, int))
            ended = terminated | truncated
    assert not ended.all()
    for _ in range(3):
        with pytest.raises(ResetNeeded, match=re.escape(str(np.flatnonzero(ended).tolist()))):
            envs.step(np.zeros(4, int))
    same(envs.reset(options={"reset_mask": ended}), twin.reset(options={"reset_mask": ended}))
    same(envs.step(np.zeros(4, int)), twin.step(np.zeros(4, int)))
    envs.close()
    twin.close()


def test_a_first_reset_that_fails_does_not_count():
    """Found here: after a refused seed the vector environment took itself for reset and stepped a world of key 0."""
    envs = ToyVectorEnv(2)
    with pytest.raises(gymnasium.error.Error):
        envs.reset(seed=-1)
    with pytest.raises(ResetNeeded):
        envs.step([0, 0])


@pytest.mark.parametrize("seed", ["12", 1.5, (1,), [1, 2, 3], [1, "2"], [1, -2], [1, 2.0], {1}], ids=repr)
def test_bad_seeds_of_a_vector_environment(seed):
    envs, twin = ToyVectorEnv(2), ToyVectorEnv(2)
    envs.reset(seed=4)
    twin.reset(seed=4)
    with pytest.raises((InvalidArgument, gymnasium.error.Error)):
        envs.reset(seed=seed)
    same(envs.step([0, 0]), twin.step([0, 0]))
    same(envs.reset()[0], twin.reset()[0])


@pytest.mark.parametrize("seed", ["12", 1.5, -1, [1]], ids=repr)
def test_bad_seeds_of_a_single_environment(seed):
    env, twin = ToyEnv(), ToyEnv()
    env.reset(seed=4)
    twin.reset(seed=4)
    with pytest.raises(gymnasium.error.Error):
        env.reset(seed=seed)
    same(env.step(0), twin.step(0))


def test_unknown_reset_options():
    env, twin = ToyEnv(), ToyEnv()
    envs = ToyVectorEnv(2)
    env.reset(seed=4)
    twin.reset(seed=4)
    with pytest.raises(InvalidArgument, match=r"\['reset_mask'\]"):
        env.reset(seed=9, options={"reset_mask": np.array([True])})
    assert env.np_random_seed == 4
    with pytest.raises(InvalidArgument, match=r"'x'.*known: reset_mask"):
        envs.reset(options={"x": 1})
    same(env.step(0), twin.step(0))
    env.reset(options={})
    envs.reset(options={})


@pytest.mark.parametrize(
    "make", [ToyEnv, lambda **kwargs: ToyVectorEnv(2, **kwargs)], ids=["single", "vector"]
)
@pytest.mark.parametrize("mode", ["picture", "", "ANSI", 3])
def test_unknown_render_modes(make, mode):
    with pytest.raises(InvalidArgument, match=rf"render_mode={mode!r}.*None, 'rgb_array', 'ansi'"):
        make(render_mode=mode)


@pytest.mark.parametrize("name", ["num_envs", "threads", "max_episode_steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "3", NAN], ids=repr)
def test_bad_counts(name, value):
    with pytest.raises(InvalidArgument, match=f"{name}={value!r}: expected a whole number"):
        ToyVectorEnv(**{name: value})


@pytest.mark.parametrize("value", ["next", "", None, 1, ["NextStep"]], ids=repr)
def test_bad_autoreset_modes(value):
    with pytest.raises(InvalidArgument, match=r"autoreset_mode=.*NEXT_STEP, SAME_STEP, DISABLED"):
        ToyVectorEnv(1, autoreset_mode=value)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_refused_constructor_leaves_nothing_to_complain_about():
    with pytest.raises(InvalidArgument):
        ToyVectorEnv(0)
    with pytest.raises(InvalidArgument):
        ToyVectorEnv(2, render_mode="human")
    ToyVectorEnv.__new__(ToyVectorEnv).close_extras()


@pytest.mark.parametrize(
    "make", [ToyEnv, lambda **kwargs: ToyVectorEnv(2, **kwargs)], ids=["single", "vector"]
)
@pytest.mark.parametrize("mode", [None, "ansi", "rgb_array"])
@pytest.mark.parametrize("method", ["render", "action_masks", "metrics"])
def test_nothing_is_shown_before_the_first_reset(make, mode, method):
    """It was the zeros that memory begins with: a picture of no episode, a mask that forbids everything."""
    env = make(render_mode=mode)
    for _ in range(2):
        with pytest.raises(ResetNeeded, match=rf"^call reset\(\) before {method}\(\)$"):
            getattr(env, method)()
    with pytest.raises(gymnasium.error.Error):
        env.reset(seed=-1)
    with pytest.raises(ResetNeeded):
        getattr(env, method)()
    env.reset(seed=0)
    getattr(env, method)()


def test_lanes_that_no_memory_holds(monkeypatch):
    monkeypatch.setattr(core_memory, "memory_bytes", lambda: 16.0 * 2**30)
    with pytest.raises(
        InvalidArgument,
        match=r"^num_envs=1000000000: the arrays of the lanes take [\d,.]+ GiB, this machine has [\d,.]+ GiB",
    ):
        ToyVectorEnv(10**9)
    with pytest.raises(InvalidArgument, match="num_envs=1000000000"):
        gymnasium.make_vec("llmgym/KVQueue-v0", num_envs=10**9)
    assert ToyVectorEnv(100_000).reset(seed=0)[0].shape[0] == 100_000


def test_the_memory_of_a_lane_is_that_of_its_arrays():
    envs = ToyVectorEnv(64)
    arrays = [
        *envs.lanes.state,
        envs.lanes.buffers.obs,
        envs.lanes.buffers.final_obs,
        envs.observation_space.low,
    ]
    arrays += [envs.observation_space.high, envs.lanes.buffers.mask, envs.lanes.buffers.final_mask]
    arrays += [envs.lanes.buffers.action, envs.lanes.buffers.metrics]
    assert core_memory.bytes_of_a_lane(envs.simulation) * 64 == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("make", [ToyEnv, lambda: ToyVectorEnv(8)], ids=["single", "vector"])
def test_memory_that_the_system_does_not_grant(make, monkeypatch):
    def no_memory(*arguments, **keywords):
        raise MemoryError("Unable to allocate 48.0 GiB for an array with shape (1, 1073741824)")

    monkeypatch.setattr(core_memory.Lanes, "__init__", no_memory)
    with pytest.raises(
        InvalidArgument,
        match=r"do not fit into memory \(Unable to allocate 48.0 GiB\); .*smaller scenario may$",
    ):
        make()


@pytest.mark.parametrize("threads", [0, 1025, 10**9])
def test_threads_that_no_machine_has(threads):
    with pytest.raises(InvalidArgument, match=f"threads={threads}: expected a whole number from 1 to 1024"):
        ToyVectorEnv(2, threads=threads)


@pytest.mark.parametrize(
    "make",
    [
        lambda **kwargs: gymnasium.make("llmgym/KVQueue-v0", **kwargs),
        lambda **kwargs: gymnasium.make_vec("llmgym/KVQueue-v0", num_envs=2, **kwargs),
        KVQueueEnv,
        lambda **kwargs: settled("tiny", SCENARIOS, kwargs, "KVQueue"),
    ],
    ids=["make", "make_vec", "class", "settled"],
)
def test_an_unknown_keyword_is_what_python_calls_one(make):
    """Libraries try a keyword and look for Python's own words in its own error, as TorchRL does with `frameskip`."""
    for kind in (TypeError, ValueError, UnknownName, UnknownArgument):
        with pytest.raises(
            kind, match=r"got an unexpected keyword argument 'frameskip'.*Known: .*kv_capacity"
        ):
            make(frameskip=1)
    with pytest.raises(UnknownArgument, match="Did you mean 'kv_capacity'"):
        make(kv_capcity=1)
    with pytest.raises(UnknownName, match="unknown scenario 'nope'") as caught:
        gymnasium.make("llmgym/KVQueue-v0", scenario="nope")
    assert not isinstance(caught.value, TypeError), "a wrong value is no unknown keyword"


@pytest.mark.parametrize("env_id", [env_id for env_id in gymnasium.registry if env_id.startswith("llmgym/")])
def test_every_environment_knows_its_keywords(env_id):
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'frameskip'"):
        gymnasium.make(env_id, frameskip=1)
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'frameskip'"):
        gymnasium.make_vec(env_id, num_envs=1, frameskip=1)


def test_errors_travel_between_processes():
    known = [
        UnknownName("rule", "vlm", ["vllm"]),
        UnknownName("rule", "vlm", ["vllm"], "no such rule"),
        UnknownArgument("KVQueue", "x", ["y"]),
        errors.MissingExtra("PPO", "train"),
        InvalidAction("no"),
        ResetNeeded("no"),
    ]
    for error in known:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
