"""Room: a clairvoyant for every environment, and what is said of it."""

import dataclasses
import itertools
import json

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

import llmgym
from llmgym import baselines, cli
from llmgym.baselines.rule import Rule
from llmgym.core.lanes import HOLD, Lanes
from llmgym.core.memory import arrays_of, copy_lanes
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.evaluation import Comparison, EpisodeTable, RoomResult, compare, room
from llmgym.evaluation.lookahead import LookAhead, candidates
from llmgym.evaluation.measure_room import Throughout
from llmgym.evaluation.rollout import load_decision, run_episodes
from tests.evaluation.conftest import TOY, always
from tests.toy import Toy, ToyVectorEnv


class Serve(Rule[Toy]):
    """Serve so many at each step, and count the steps of each lane."""

    remembered = ("steps",)

    def __init__(self, env, number=1, pair=False):
        super().__init__(env, f"serve {number}", Toy)
        self.number, self.pair, self.steps = number, pair, np.zeros(env.num_envs, np.int64)

    def act(self, obs, mask):
        self.steps += 1
        wanted = np.full(len(obs), self.number)
        if self.pair:
            return np.stack([wanted, 0 * wanted], axis=1)
        return np.where(mask[np.arange(len(obs)), wanted] == 1, wanted, 0)

    def reset(self, lanes):
        self.steps[lanes] = 0


def looked(seeds, *, number=1, horizon=6, copies=None, **kwargs):
    """Returns of the toy under a clairvoyant and under its rule, float64 [seeds] each, and the clairvoyant."""
    action = kwargs.pop("action", "number")
    pair = action == "pair"

    def make(count):
        return ToyVectorEnv(count, horizon=horizon, action=action)

    totals = []
    for build in (
        lambda env: LookAhead(env, make, lambda e: Serve(e, number, pair), **kwargs),
        lambda env: Serve(env, number, pair),
    ):
        env = make(len(seeds))
        policy = build(env)
        if copies is not None and isinstance(policy, LookAhead):
            policy._count, policy._copies = copies, make(copies)
            policy._follow = Serve(policy._copies, number, pair)
        env.reset(seed=seeds)
        policy.reset(np.ones(len(seeds), np.bool_))
        total, buffers = np.zeros(len(seeds)), env.lanes.buffers
        while not buffers.ended.all():
            actions = policy.act(buffers.obs.copy(), buffers.mask.copy())
            env.lanes.load_actions(actions)
            env.lanes.step(HOLD)
            total += buffers.reward
        totals.append(total)
    return totals


def by_hand(seed, number, horizon):
    """The same clairvoyant in plain Python: each action anew from the first step, by gymnasium's own interface."""
    env = gymnasium.make(TOY, horizon=horizon).unwrapped

    def play(plan):
        _, info = env.reset(seed=seed)
        total, ended, step = 0.0, False, 0
        while not ended:
            allowed = info["action_mask"]
            action = plan[step] if step < len(plan) else number if allowed[number] else 0
            if not allowed[action]:
                return None
            _, reward, terminated, truncated, info = env.step(action)
            total, ended, step = total + reward, terminated or truncated, step + 1
        return total, step

    plan = []
    while True:
        _, info = env.reset(seed=seed)
        for action in plan:
            _, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                return play(plan)[0]
        own = number if info["action_mask"][number] else 0
        tried = [own, *(a for a in range(3) if a != own and info["action_mask"][a])]
        plan.append(max(tried, key=lambda a: play([*plan, a])[0]))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_it_is_the_clairvoyant_of_plain_python(number):
    seeds = list(range(40, 52))
    clairvoyant, rule = looked(seeds, number=number)
    assert clairvoyant.tolist() == [by_hand(seed, number, 6) for seed in seeds]
    assert (clairvoyant >= rule).all()
    assert (clairvoyant > rule).any() == (number != 1)  # to serve one at a time is best


def test_with_fewer_copies_than_actions_it_is_the_same():
    seeds = list(range(7))
    whole, _ = looked(seeds, number=0)
    for copies in (1, 2, 5):
        assert looked(seeds, number=0, copies=copies)[0].tolist() == whole.tolist()


def test_a_stride_is_a_bound_below():
    seeds = list(range(60))
    every, rule = looked(seeds, number=0, horizon=12)
    third, _ = looked(seeds, number=0, horizon=12, stride=3)
    assert (third >= rule).all() and rule.mean() < third.mean() < every.mean()
    never, _ = looked(seeds, number=0, horizon=12, stride=100)
    assert never.mean() < third.mean()  # the first decision alone


def test_a_horizon_cuts_copies_off():
    """Of a rule that never serves the far future tells little: that a queue overflows in the end whatever is done now."""
    env = ToyVectorEnv(40, horizon=12)
    copies = {}
    for steps in (1, 11, None):
        env.reset(seed=list(range(40)))
        policy = LookAhead(env, lambda n: ToyVectorEnv(n, horizon=12), lambda e: Serve(e, 0), horizon=steps)
        total = np.zeros(40)
        while not env.lanes.buffers.ended.all():
            env.lanes.load_actions(policy.act(env.lanes.buffers.obs.copy(), env.lanes.buffers.mask.copy()))
            env.lanes.step(HOLD)
            total += env.lanes.buffers.reward
        copies[steps] = total
    assert copies[11].tolist() == copies[None].tolist()  # as long as an episode
    assert (copies[1] == 0.0).all() and copies[None].mean() < 0.0


def test_pairs_of_actions_are_all_tried():
    seeds = list(range(9))
    both, rule = looked(seeds, number=0, action="pair")
    alone, _ = looked(seeds, number=0)
    assert both.mean() > rule.mean()
    # without a mask in the way the second part changes nothing
    assert both.shape == alone.shape


def test_what_a_rule_remembers_follows_the_lane():
    env, copies = ToyVectorEnv(3), ToyVectorEnv(5)
    one, other = Serve(env), Serve(copies)
    one.steps[:] = 3, 5, 7
    other.take(one, np.array([2, 2, 0, 1, 0]))
    assert other.steps.tolist() == [7, 7, 3, 5, 3]
    other.steps += 1
    assert one.steps.tolist() == [3, 5, 7]


def test_memories_of_every_kind_are_copies_of_their_own():
    class Remembers(Rule[Toy]):
        remembered = ("rows", "lists", "by_lane")

        def __init__(self, env):
            super().__init__(env, "remembers", Toy)

    one, other = Remembers(ToyVectorEnv(2)), Remembers(ToyVectorEnv(3))
    one.rows, one.lists, one.by_lane = np.arange(4.0).reshape(2, 2), [[1], [2]], {1: [9]}
    other.take(one, np.array([1, 0, 1]))
    assert other.rows.tolist() == [[2, 3], [0, 1], [2, 3]] and other.lists == [[2], [1], [2]]
    assert other.by_lane == {0: [9], 2: [9]}
    other.lists[0].append(5), other.by_lane[0].append(5)
    assert one.lists == [[1], [2]] and one.by_lane == {1: [9]} and other.lists[2] == [2]


@pytest.mark.parametrize(
    "env_id",
    [
        pytest.param(env_id, marks=[pytest.mark.slow] if "OServe" in env_id else [])
        for env_id in llmgym.env_ids()
    ],
)
def test_every_rule_with_a_memory_names_it(env_id):
    """Whoever has something to forget has something to take along."""
    cases = llmgym.spec(env_id).test_cases()
    for name in baselines.names(env_id):
        kwargs = baselines.env_kwargs(env_id, name)
        try:
            env = gymnasium.make_vec(env_id, num_envs=2, **{**next(iter(cases.values())), **kwargs}).unwrapped
            policy = baselines.make(name, env)
        except (InvalidArgument, TypeError):
            continue
        assert policy.privileged or hasattr(policy, "take"), name
        if isinstance(policy, Rule) and not policy.privileged and type(policy).reset is not Rule.reset:
            assert policy.remembered and all(hasattr(policy, one) for one in policy.remembered), name


@pytest.mark.parametrize("env_id", [*llmgym.env_ids()])
def test_copies_of_lanes_are_what_they_were(env_id):
    kwargs = next(iter(llmgym.spec(env_id).test_cases().values()))
    env = gymnasium.make_vec(env_id, num_envs=3, **kwargs).unwrapped
    env.reset(seed=5)
    env.action_space.seed(1)
    for _ in range(4):
        env.step(env.action_space.sample())
    copies = Lanes(env.simulation, 4)
    copy_lanes(env.lanes, np.array([2, 0, 2]), copies)
    for mine, theirs in zip(arrays_of(copies.state), arrays_of(env.lanes.state), strict=True):
        if mine.size == 0:
            continue
        mine, theirs = mine.reshape(4, -1), theirs.reshape(3, -1)
        for n, lane in enumerate((2, 0, 2)):
            assert mine[n].tobytes() == theirs[lane].tobytes()
    assert copies.buffers.obs[:3].tobytes() == env.lanes.buffers.obs[[2, 0, 2]].tobytes()


def goes_on(env_id, kwargs):
    """The last rule of an environment that acts by its own actions, with the arguments that it needs."""
    space = gymnasium.make_vec(env_id, num_envs=1, **kwargs).unwrapped.single_action_space
    for name in reversed(baselines.names(env_id)):
        try:
            given = {**kwargs, **baselines.env_kwargs(env_id, name)}
            env = gymnasium.make_vec(env_id, num_envs=1, **given).unwrapped
            policy = baselines.make(name, env)
        except (InvalidArgument, TypeError):
            continue
        if env.single_action_space == space and not policy.privileged and "random" not in name:
            return name, given
    return None, kwargs


@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_what_copies_promise_is_what_comes(env_id):
    """In every environment: the first time that there is a choice all is tried, and the best copy tells the return."""
    cases = llmgym.spec(env_id).test_cases()
    name, kwargs = goes_on(env_id, cases["edit" if "OServe" in env_id else next(iter(cases))])
    env = gymnasium.make_vec(env_id, num_envs=2, **kwargs).unwrapped

    def build(env):
        return Throughout(env, "action=0") if name is None else baselines.make(name, env)

    def make(count):
        return gymnasium.make_vec(env_id, num_envs=count, **kwargs).unwrapped

    points = 3 if isinstance(env.single_action_space, Box) else None
    policy = LookAhead(env, make, build, points=points)
    promised = {}
    measured = policy._worth

    def worth(which, actions):
        found = measured(which, actions)
        promised.update(
            {lane: total[lane] + found[which == lane].max() for lane in np.unique(which).tolist()}
        )
        policy._stride = 10**6  # never again
        return found

    policy._worth = worth
    env.reset(seed=[11, 12])
    policy.reset(np.ones(2, np.bool_))
    total, decision = np.zeros(2), 0
    while not env.lanes.buffers.ended.all():
        load_decision(env, policy, "clairvoyant", decision)
        env.lanes.step(HOLD)
        total += env.lanes.buffers.reward
        decision += 1
    assert promised
    for lane, value in promised.items():
        assert total[lane] == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_actions_of_every_space():
    assert candidates(Discrete(3), None).tolist() == [[0], [1], [2]]
    assert candidates(MultiDiscrete([2, 3]), None).tolist() == [
        list(p) for p in itertools.product(range(2), range(3))
    ]
    assert candidates(Box(-1.0, 1.0, (2,)), 3).tolist() == [
        list(p) for p in itertools.product((-1, 0, 1), repeat=2)
    ]
    for space, points, says in (
        (Box(0.0, 1.0, (2,)), None, "points=None: the actions are Box"),
        (Box(0.0, 1.0, (4,)), 5, "625 actions a decision"),
        (Box(0.0, np.inf, (1,)), 5, "which has no ends"),
        (Discrete(3), 5, "points=5: the actions are Discrete"),
        (Discrete(513), None, "513 actions a decision"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            candidates(space, points)


SMALL = {"worlds": 4, "tuning": 4, "progress": False, "scenario": "small"}


@pytest.fixture(scope="module")
def measured():
    return room("llmgym/MemPipe-v0", requests=12, **SMALL)


def test_the_room_of_an_environment(measured):
    best = run_episodes("llmgym/MemPipe-v0", measured.best, 4, 10_000, {"scenario": "small", "requests": 12})
    assert measured.rules[measured.best].tolist() == best.returns.tolist()
    assert measured.best == measured.tail and measured.best.startswith("earliest-finish:favour=")
    assert (
        "random" not in measured.rules
        and set(measured.knowing) == {"clairvoyant"}
        and measured.top == "clairvoyant"
    )
    assert (measured.gains >= 0.0).all() and measured.gain > 0.0
    assert measured.percent == pytest.approx(100 * measured.gain / abs(best.returns.mean()))
    assert measured.metrics["latency_relative"] == pytest.approx(
        (-measured.rules[measured.best].mean(), -measured.knowing["clairvoyant"].mean())
    )
    text = measured.table().text()
    assert "4 worlds, seeds 10000-10003" in text and "clairvoyant †" in text and "lower bound" in text


def test_a_measurement_is_read_back(measured, tmp_path):
    path = tmp_path / "room.json"
    text = measured.to_json(path)
    assert json.loads(text) == json.loads(path.read_text())
    again = RoomResult.read(path)
    assert again.table().text() == measured.table().text() and again.seeds.tolist() == measured.seeds.tolist()
    for content, name in (("{}", "a.json"), ("[1]", "b.json"), ("no", "c.json")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InvalidArgument, match=f"room='.*{name}': no measurement of room"):
            RoomResult.read(tmp_path / name)
    with pytest.raises(InvalidArgument, match="no measurement of room"):
        RoomResult.read(tmp_path / "absent.json")


def result_of(knowing, rule, seeds):
    return RoomResult(
        env_id="made/Up-v0",
        env_kwargs={},
        seeds=np.asarray(seeds),
        rules={"rule": np.asarray(rule), "bad": np.asarray(rule) - 9.0},
        knowing={"clairvoyant": np.asarray(knowing)},
        tail="rule",
        metrics={},
        wall_s=1.0,
        date="2026-01-01",
        version="0",
    )


def test_shares_of_the_room():
    rule, seeds = np.random.default_rng(3).normal(-5.0, 1.0, 20), np.arange(100, 120)
    gains = np.random.default_rng(4).uniform(1.0, 3.0, 20)
    result = result_of(rule + gains, rule, seeds)
    assert result.best == "rule" and result.gain == pytest.approx(gains.mean()) and result.interval.low > 1.0
    assert result.share(result.gain, rule, seeds) == pytest.approx(1.0)
    assert result.share(-result.gain / 2, rule, seeds) == pytest.approx(-0.5)
    # over a weaker reference there is more room
    assert result.share(result.gain, rule - 1.0, seeds) == pytest.approx(result.gain / (result.gain + 1.0))
    more = np.concatenate([seeds + 50, seeds])
    assert result.share(1.0, np.concatenate([rule + 99.0, rule]), more) == pytest.approx(1.0 / result.gain)
    assert np.isnan(result.share(1.0, rule, seeds + 1000))
    assert np.isnan(result.share(1.0, rule + gains, seeds)) and np.isnan(
        result_of(rule, rule, seeds).share(1.0, rule, seeds)
    )


def test_a_comparison_tells_shares_of_the_room(measured, tmp_path):
    name, path = measured.env_id, tmp_path / "room.json"
    measured.to_json(path)
    rules = ["static", "gpu-only", measured.best]
    kwargs = {"scenario": "small", "requests": 12, "episodes": 4, "seed": 10_000, "progress": False}
    plain = compare(name, rules, **kwargs)
    with_room = compare(name, rules, room=path, **kwargs)
    assert "share of the room" not in plain.table().columns
    table = with_room.table()
    column = table.columns.index("share of the room")
    shares = {row[0]: row[column] for row in table.rows}
    assert shares[with_room.reference] == "" and set(shares.values()) == {
        "",
        "-",
    }  # no room is sure on four worlds
    assert any(note.startswith("Share of the room: ") and "4 worlds" in note for note in table.notes)
    with pytest.raises(
        InvalidArgument, match=r"room: it was measured in .*12.*, and these are episodes of .*13"
    ):
        compare(name, rules, room=measured, **{**kwargs, "requests": 13})


def test_shares_in_a_table():
    """A policy that gets half of the room, one that loses a little, and one that loses more than there is to win."""
    noise = np.random.default_rng(5).normal(0.0, 0.01, (5, 20))
    means = {"rule": 1.0, "half": 2.0, "less": 0.5, "bad": -3.0}
    tables = [
        EpisodeTable(
            name,
            "baseline" if name == "rule" else "given",
            name,
            False,
            "made/Up-v0",
            {},
            100 + np.arange(20),
            mean + noise[n],
            np.ones(20, np.int64),
            noise[n],
            noise[n] < 9.0,
            noise[n] > 9.0,
            {},
            {},
            1.0,
            1.0,
            1,
        )
        for n, (name, mean) in enumerate(means.items())
    ]
    result = result_of(3.0 + noise[4], 1.0 + noise[0], np.arange(100, 120))
    table = Comparison(tables, room=result).table()
    column = table.columns.index("share of the room")
    assert {row[0]: row[column] for row in table.rows} == {
        "half": "50%",
        "rule": "",
        "less": "-25%",
        "bad": "< -100%",
    }
    other = dataclasses.replace(result, env_id="made/Down-v0")
    with pytest.raises(
        InvalidArgument, match=r"room: it was measured in .*Down.*, and these are episodes of .*Up"
    ):
        Comparison(tables, room=other)


def test_one_action_throughout_where_no_rule_acts():
    result = room(
        "toyeval/Queue-v0", against=["action=0", "action=1", "action=2"], worlds=6, tuning=2, progress=False
    )
    assert (
        set(result.rules) == {"action=0", "action=1", "action=2"} and result.tail == result.best == "action=1"
    )
    assert (result.gains >= 0).all()
    with pytest.raises(
        InvalidArgument, match=r"policy 'action=7': expected action=N with an action of Discrete\(3\)"
    ):
        room("toyeval/Queue-v0", against=["action=7"], worlds=6, progress=False)


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"worlds": 1}, InvalidArgument, "worlds=1: expected a whole number from 2"),
        ({"stride": 0}, InvalidArgument, "stride=0: expected"),
        ({"horizon": 0}, InvalidArgument, "horizon=0: expected"),
        ({"points": 3}, InvalidArgument, "points=3: the actions are Discrete"),
        ({"against": ["nope"]}, UnknownName, "unknown policy .* 'nope'"),
        ({"against": [always(0)]}, InvalidArgument, "is no baseline"),
        ({"against": []}, InvalidArgument, r"against=\[\]: llmgym/MemPlace-v0 needs at least one rule"),
        ({"against": ["oracle"]}, InvalidArgument, "against: 'oracle' is privileged"),
        ({"privileged": ["static"]}, InvalidArgument, "privileged: 'static' sees no more"),
        ({"tail": always(0)}, InvalidArgument, "says what it remembers"),
        ({"confidence": 2}, InvalidArgument, "confidence=2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told(kwargs, error, says):
    with pytest.raises(error, match=says):
        room("llmgym/MemPlace-v0", **{**SMALL, "worlds": 3, "tuning": 2, **kwargs})


def test_a_rule_without_a_choice_cannot_go_on():
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(InvalidArgument, match=r"tail='vllm': it acts by Discrete\(1\)"),
    ):
        room("llmgym/KVQueue-v0", tail="vllm", scenario="tiny", progress=False)


def test_a_rule_of_another_world_cannot_go_on():
    with pytest.raises(InvalidArgument, match="tail='replica': it does not play the same world"):
        room("llmgym/PPDRouting-v0", tail="replica", scenario="small", against=["local"], progress=False)


def test_the_command(tmp_path, capsys):
    out = tmp_path / "a" / "room.json"
    arguments = [
        "room",
        "llmgym/MemPlace-v0",
        "--scenario",
        "small",
        "--worlds",
        "3",
        "--tuning",
        "2",
        "--no-progress",
    ]
    assert cli.main([*arguments, "--privileged", "oracle", "--out", str(out)]) == 0
    assert "Room in llmgym/MemPlace-v0 (scenario='small'): 3 worlds" in capsys.readouterr().out
    assert set(RoomResult.read(out).knowing) == {"clairvoyant", "oracle"}
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tail"] == RoomResult.read(out).tail
    assert cli.main(["room", "llmgym/MemPlace-v0", "--worlds", "1"]) == cli.USAGE
