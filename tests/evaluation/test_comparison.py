import warnings

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym import baselines, policies
from llmgym.errors import InvalidArgument, MissingExtra, UnknownName
from llmgym.evaluation import Comparison, EpisodeTable, compare, statistics
from llmgym.evaluation.paired import members
from tests.evaluation import worlds
from tests.evaluation.conftest import TOY, WORLDS, Fake, always


def episodes_of(
    name,
    returns,
    *,
    kind="baseline",
    privileged=False,
    headline=None,
    clairvoyant=None,
    privileged_observation=False,
    other_world=None,
    **metrics,
):
    """An `EpisodeTable` with given returns and metrics."""
    returns = np.asarray(returns, np.float64)
    count = len(returns)
    return EpisodeTable(
        policy=name,
        kind=kind,
        source=name,
        privileged=privileged,
        env_id="made/Up-v0",
        env_kwargs={},
        seeds=100 + np.arange(count),
        returns=returns,
        steps=np.full(count, 4),
        simulated_s=np.full(count, 2.0),
        terminated=np.ones(count, np.bool_),
        truncated=np.zeros(count, np.bool_),
        metrics={metric: np.asarray(values, np.float64) for metric, values in metrics.items()},
        headline=headline or {},
        wall_s=1.0,
        act_s=0.5,
        calls=4,
        clairvoyant=privileged if clairvoyant is None else clairvoyant,
        privileged_observation=privileged_observation,
        other_world=other_world,
    )


NOISE = np.random.default_rng(0).normal(size=(6, 25))
WORLD = np.random.default_rng(1).lognormal(1.0, 1.0, 25)


def contest(**kwargs):
    """Five policies: an oracle, a better network, two equal baselines, a worse one."""
    return Comparison(
        [
            episodes_of("worse", WORLD - 1.0 + 0.1 * NOISE[0], late_s=WORLD + 1.0),
            episodes_of("net", WORLD + 0.5 + 0.1 * NOISE[1], kind="learned", late_s=WORLD - 1.0),
            episodes_of("rule", WORLD + 0.02, late_s=WORLD),
            episodes_of("same", WORLD + 0.01 * np.where(np.arange(25) % 2, 3, 1), late_s=WORLD),
            episodes_of("oracle", WORLD + 2.0 + 0.1 * NOISE[4], privileged=True, late_s=WORLD - 2.0),
        ],
        **kwargs,
    )


def test_verdicts_order_and_reference():
    result = contest()
    assert result.policies == ["oracle", "net", "rule", "same", "worse"] or result.policies == [
        "oracle",
        "net",
        "same",
        "rule",
        "worse",
    ]
    assert result.reference in ("rule", "same")  # never the oracle, never the network
    other = "same" if result.reference == "rule" else "rule"
    verdicts = {name: one.verdict for name, one in result.differences().items()}
    assert verdicts == {"oracle": "win", "net": "win", other: "tie", "worse": "lose"}
    assert result.beats("net") and not result.beats("worse") and not result.beats(other)
    assert result.beats("net", reference="worse") and not result.beats("net", reference="oracle")


def test_numbers_are_those_of_the_statistics():
    result = contest(confidence=0.9)
    values = result.tables["net"].returns
    one = result.summary("net")
    assert one.mean == values.mean() and one.iqm == statistics.iqm(values) and one.count == 25
    assert one.mean_interval == statistics.bootstrap(values, confidence=0.9)
    assert one.iqm_interval == statistics.bootstrap(values, statistics.iqm, confidence=0.9)
    gap = result.difference("net", reference="worse")
    paired = statistics.paired(values - result.tables["worse"].returns, confidence=0.9)
    assert (gap.mean, gap.interval, gap.p_wilcoxon, gap.probability) == (
        paired.mean,
        paired.interval,
        paired.p_wilcoxon,
        paired.probability,
    )
    family = result.differences(reference="worse")
    assert [d.p_holm for d in family.values()] == statistics.holm([d.p_wilcoxon for d in family.values()])


def test_lower_is_better_where_the_environment_says_so():
    tables = [
        episodes_of("slow", WORLD, late_s=WORLD + NOISE[0] * 0.1, headline={"late_s": "min"}),
        episodes_of("fast", WORLD - 1.0, late_s=WORLD - 1.0, headline={"late_s": "min"}),
    ]
    gap = Comparison(tables).difference("fast", "late_s")
    assert gap.mean < 0 and gap.verdict == "win" and gap.probability == 1.0
    assert gap.probability_interval.high == 1.0
    undeclared = contest().difference("net", "late_s")
    assert undeclared.direction is None and undeclared.verdict == "lower" and undeclared.probability == 0.0


def test_without_a_baseline_the_best_unprivileged_policy_is_the_reference():
    tables = [
        episodes_of("a", WORLD, kind="given"),
        episodes_of("b", WORLD + 1.0, kind="learned"),
        episodes_of("c", WORLD + 2.0, kind="given", privileged=True),
    ]
    assert Comparison(tables).reference == "b"
    assert Comparison(tables[2:]).reference == "c" and Comparison(tables[2:]).differences() == {}


def test_missing_values_are_left_out_pair_by_pair():
    late = WORLD.copy()
    late[[3, 7]] = np.nan
    other = WORLD + 1.0
    other[[7, 8, 9]] = np.nan
    nothing = np.full(25, np.nan)
    result = Comparison(
        [
            episodes_of("a", WORLD, late_s=late),
            episodes_of("b", WORLD - 1, late_s=other),
            episodes_of("c", WORLD - 2, late_s=nothing),
        ]
    )
    assert result.summary("a", "late_s").count == 23 and result.summary("b", "late_s").count == 22
    gap = result.difference("b", "late_s")
    assert gap.count == 21 and gap.mean == pytest.approx(1.0) and gap.verdict == "higher"
    empty = result.difference("c", "late_s")
    assert empty.verdict == "n/a" and np.isnan(empty.mean) and np.isnan(result.summary("c", "late_s").mean)
    assert "b: 22 of 25 episodes have a value." in result.metric_table("late_s").notes


def test_who_plays_another_world_is_no_reference_and_wins_nothing():
    """Free switches, or more GPUs: what that is worth can be read off, but it is no rival."""
    tables = [
        episodes_of("free", WORLD + 3.0, other_world="switches take no time"),
        episodes_of("rule", WORLD),
        episodes_of("net", WORLD + 1.0, kind="learned"),
        episodes_of("bad", WORLD - 1.0),
    ]
    result = Comparison(tables)
    assert result.policies[0] == "free" and result.reference == "rule"
    gap = result.difference("free")
    assert gap.mean == pytest.approx(3.0) and gap.interval.excludes_zero
    assert gap.verdict == "other world" and not result.beats("free") and np.isnan(gap.p_holm)
    assert result.beats("net") and result.difference("bad").verdict == "lose"
    # the family that is corrected is of the others
    family = [result.difference(name).p_wilcoxon for name in ("net", "bad")]
    assert [result.difference(name).p_holm for name in ("net", "bad")] == statistics.holm(family)
    # nor does anybody lose to it
    assert {one.verdict for one in result.differences(reference="free").values()} == {"other world"}
    both = Comparison([*tables, episodes_of("free too", WORLD + 2.0, other_world="switches take no time")])
    assert both.difference("free", reference="free too").verdict == "win"


def test_the_reference_is_the_best_that_can_be_one():
    free = episodes_of("free", WORLD + 3.0, other_world="no queue")
    oracle = episodes_of("oracle", WORLD + 2.0, privileged=True)
    seer = episodes_of("seer", WORLD + 1.0, kind="learned", privileged=True)
    assert Comparison([free, oracle]).reference == "oracle"
    assert Comparison([free, seer, oracle]).reference == "oracle"  # all privileged: the best of them
    assert Comparison([free]).reference == "free"
    honest = episodes_of("honest", WORLD - 5.0, kind="given")
    assert Comparison([free, seer, oracle, honest]).reference == "honest"


def test_a_policy_without_values_is_neither_best_nor_reference():
    """NaN ranks last: in a metric, and in the return of tables that were made by hand."""
    nothing = np.full(25, np.nan)
    some = np.where(np.arange(25) < 3, np.nan, -50.0)
    tables = [
        episodes_of("none", nothing, late_s=nothing, headline={"late_s": "min"}),
        episodes_of("some", WORLD + 1.0, late_s=some, headline={"late_s": "min"}),
        episodes_of("slow", WORLD + 2.0, late_s=WORLD + 9.0, headline={"late_s": "min"}),
        episodes_of("fast", WORLD, late_s=WORLD, headline={"late_s": "min"}),
    ]
    result = Comparison(tables)
    assert result.policies == ["slow", "some", "fast", "none"] and result.reference == "slow"
    # a mean over the worlds in which it served somebody is no match for one over all
    assert result.ranked("late_s") == ["fast", "slow", "some", "none"]
    gap = result.difference("some", "late_s")
    assert gap.count == 22 and gap.lacking == 3 and gap.beyond == 0 and gap.mean < -50.0
    assert gap.verdict == "n/a" and not result.beats("some", metric="late_s")
    back = result.difference("slow", "late_s", reference="some")
    assert back.beyond == 3 and back.verdict == "n/a"
    assert result.difference("fast", "late_s").verdict == "win"
    worse = Comparison([tables[2], episodes_of("w", WORLD, late_s=-some, headline={"late_s": "min"})])
    assert worse.difference("w", "late_s").verdict == "lose"


def test_a_policy_that_plays_another_world_says_so(monkeypatch):
    def middle(obs, mask):
        return np.full((len(obs), 2), 0.5)

    free = Fake("free", middle)
    free.other_world = "no costs"
    result = compare(WORLDS, [Fake("rule", middle), free], episodes=3)
    assert result.tables["free"].other_world == "no costs" and result.tables["rule"].other_world is None
    assert result.difference("free").verdict == "other world"


def test_observations_that_show_the_truth_mark_every_row(monkeypatch):
    """An argument such as `information="exact"` makes a scheduler of every policy that no real one could be."""
    monkeypatch.setattr(worlds.Worlds, "privileged_observation", True, raising=False)

    def middle(obs, mask):
        return np.full((len(obs), 2), 0.5)

    def low(obs, mask):
        return np.full((len(obs), 2), [0.25, 0.5])

    result = compare(WORLDS, [Fake("low", low), Fake("middle", middle)], episodes=4)
    assert all(table.privileged and table.privileged_observation for table in result.tables.values())
    assert [row[0] for row in result.table().rows] == [f"{name} †" for name in result.policies]
    assert result.reference == result.policies[0]
    notes = " ".join(result.table().notes)
    assert "observations of the environment show it" in notes
    assert "the best rule that sees no more than the observations" in notes


def test_where_observations_show_the_truth_the_reference_sees_no_more_than_they_do():
    """An oracle that clones the world is no reference there either."""
    told = {"privileged": True, "privileged_observation": True}
    result = Comparison(
        [
            episodes_of("oracle", WORLD + 1.0, **told),
            episodes_of("learned", WORLD + 0.5, kind="learned", clairvoyant=False, **told),
            episodes_of("rule", WORLD, clairvoyant=False, **told),
        ]
    )
    assert result.policies == ["oracle", "learned", "rule"] and result.reference == "rule"
    assert result.difference("learned").verdict == "win"
    assert [result.marked(policy) for policy in result.policies] == ["oracle †", "learned †", "rule †"]


def admitting(name, **more):
    """A policy for KVQueue that admits what fits, with arguments of its own."""

    def act(obs, mask):
        return mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)

    policy = Fake(name, act)
    policy.env_kwargs = {"action": "admit", **more}
    return policy


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"horizon_s": 0.5}, "horizon_s=0.5"),
        ({"reward": "slo"}, "reward='slo'"),
        ({"drop_cost": 1.0, "ttft_slo_s": 3.0}, "drop_cost=1.0, ttft_slo_s=3.0"),
        ({"overflow": "recompute"}, "overflow='recompute'"),
        ({}, None),
        ({"order": "smallest-area", "slots": 4}, None),  # how it acts and what it sees
        ({"information": "none"}, None),
        ({"seats": 128}, None),  # as it is anyway
    ],
)
def test_a_policy_that_asks_for_another_world_is_found_out(more, told):
    """It need not say so: what it changes of the settings, or of what a return counts, is no way to act."""
    result = compare(
        "llmgym/KVQueue-v0",
        [admitting("plain"), admitting("other", **more)],
        episodes=2,
        scenario="tiny",
        requests=40,
    )
    assert result.tables["plain"].other_world is None
    assert result.tables["other"].other_world == told
    if told:
        assert result.reference == "plain" and result.difference("other").verdict == "other world"


def test_nobody_plays_another_world_where_all_were_given_it():
    kwargs = {"scenario": "tiny", "requests": 40, "horizon_s": 0.5}
    result = compare(
        "llmgym/KVQueue-v0", [admitting("plain"), admitting("other", horizon_s=0.5)], episodes=2, **kwargs
    )
    assert [table.other_world for table in result.tables.values()] == [None, None]
    small = {"scenario": "small", "epochs": 4, "switching": "free"}
    result = compare("llmgym/OServe-v0", ["no-switch-cost", "oserve-last"], episodes=2, **small)
    assert [table.other_world for table in result.tables.values()] == [None, None]


def test_rules_that_play_another_world_declare_it():
    """Those whose arguments change what the cluster is or what it can, not how it is steered."""
    declared = {}
    for env_id in llmgym.env_ids():
        for name in baselines.names(env_id):
            kwargs = baselines.env_kwargs(env_id, name)
            steers = set(kwargs) <= {"action", "dispatch", "ewma", "rules", "proactive"}
            if not steers and kwargs.get("switching") != "reload":  # a reload is as real as it is slow
                env = gymnasium.make_vec(env_id, num_envs=1, **kwargs)
                declared[f"{env_id.removeprefix('llmgym/')} {name}"] = baselines.make(name, env).other_world
    assert declared == {
        "Forage-v0 scout-no-anchors": "claims carry no source, so that an evaluation exposes fewer false ones",
        "OServe-v0 no-switch-cost": "switches take no time",
        "PPDRouting-v0 replica": "four GPUs that all do both",
    }
    env = gymnasium.make_vec("llmgym/OServe-v0", num_envs=1, action="control", switching="free")
    assert baselines.make("no-switch-cost:gain=1.1", env).other_world == "switches take no time"


def test_kinds_of_worlds_are_strata():
    kinds = np.repeat([0.0, 1.0], [12, 13])
    values = 1000.0 * kinds + NOISE[0]
    plain = Comparison([episodes_of("a", values)])
    told = Comparison([episodes_of("a", values, scenario=kinds)])
    assert told.metric_names == [] and told.strata is not None and plain.strata is None
    one = told.summary("a").mean_interval
    assert one == statistics.bootstrap(values, strata=kinds)
    assert one.high - one.low < 0.1 * (
        plain.summary("a").mean_interval.high - plain.summary("a").mean_interval.low
    )
    assert any("stratified over 2 kinds" in note for note in told.table().notes)


def test_worlds_that_differ_are_refused():
    same = [episodes_of("a", WORLD, world_checksum=WORLD), episodes_of("b", WORLD, world_checksum=WORLD)]
    assert Comparison(same).metric_names == []
    other = WORLD.copy()
    other[4] += 1e-9
    with pytest.raises(InvalidArgument, match=r"'a' and 'c' met other worlds on seed 104"):
        Comparison([*same, episodes_of("c", WORLD, world_checksum=other)])
    with pytest.raises(InvalidArgument, match=r"scenario 0\.0 and 1\.0"):
        Comparison([episodes_of("a", [1, 2], scenario=[0, 0]), episodes_of("b", [1, 2], scenario=[0, 1])])


def test_a_policy_that_changes_the_world_is_found_out_when_it_runs():
    def middle(obs, mask):
        return np.full((len(obs), 2), 0.5)

    honest, other = Fake("honest", middle), Fake("other", middle, env_kwargs={"shift": 0.25})
    assert compare(WORLDS, [honest, Fake("too", middle)], episodes=3).difference("too").verdict == "tie"
    with pytest.raises(InvalidArgument, match=r"met other worlds on seed 10000 .*'shift': 0.25"):
        compare(WORLDS, [honest, other], episodes=3)
    with pytest.raises(InvalidArgument, match="'never_s', 'sometimes_s'"):
        compare(WORLDS, [honest, Fake("odd", middle, env_kwargs={"action": "other"})], episodes=3)


def test_compare_runs_all_on_the_same_seeds(capsys, monkeypatch):
    monkeypatch.setenv("LLMGYM_QUIET", "1")  # compiling announces itself on stderr as well
    result = compare(TOY, [always(1), always(2), always(0)], episodes=6, seed=50, arrival=0.5)
    assert result.policies[0] == "always 1" and result.env_kwargs == {"arrival": 0.5}
    assert all(table.seeds.tolist() == list(range(50, 56)) for table in result.tables.values())
    assert result.difference("always 2").verdict == "lose"
    assert capsys.readouterr().err == ""  # no progress bar where stderr is no terminal


def test_labels_of_a_dict_tell_policies_of_one_name_apart():
    result = compare(TOY, {"mine": always(1, "x"), "yours": always(2, "x")}, episodes=2)
    assert set(result.tables) == {"mine", "yours"}
    with pytest.raises(InvalidArgument, match=r"\['x'\] more than once"):
        compare(TOY, [always(1, "x"), always(2, "x")], episodes=2)


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """Baselines and learned policies of the toy, and a checkpoint file."""
    made = {"one": 1, "two": 2, "short": 1}
    needs = {"short": {"horizon": 5}, "shipped": {"horizon": 9}}
    made_for = []

    def make(name, env):
        made_for.append((name, env.num_envs))
        return always(made[name.partition(":")[0]], name, env_kwargs=needs.get(name, {}))

    def load(name, env):
        if name == "no-torch":
            raise MissingExtra("loading", "train")
        return always(1, "net", env_kwargs=needs.get(name, {}))

    monkeypatch.setattr(baselines, "names", lambda env_id: list(made))
    monkeypatch.setattr(baselines, "env_kwargs", lambda env_id, name: needs.get(name, {}))
    monkeypatch.setattr(baselines, "make", make)
    monkeypatch.setattr(policies, "names", lambda env_id: ["shipped", "no-torch"])
    monkeypatch.setattr(policies, "env_kwargs", lambda name: needs.get(name, {}))
    monkeypatch.setattr(policies, "load", load)
    (tmp_path / "best.pt").write_bytes(b"")
    return made_for


def test_names_and_paths_are_resolved(registry, tmp_path):
    path = str(tmp_path / "best.pt")
    result = compare(TOY, ["two", "one:x=1", "shipped", path], episodes=3)
    kinds = {name: (table.kind, table.source) for name, table in result.tables.items()}
    assert kinds == {
        "two": ("baseline", "two"),
        "one:x=1": ("baseline", "one:x=1"),
        "shipped": ("learned", "shipped"),
        path: ("learned", path),
    }
    assert registry == [("two", 3), ("one:x=1", 3)]
    assert result.tables["shipped"].steps.tolist() == [9, 9, 9]
    with pytest.raises(
        UnknownName, match=r"'shiped'\. Did you mean 'shipped'\? Known: no-torch, one, shipped, short, two"
    ):
        compare(TOY, ["shiped"], episodes=3)


def test_none_takes_all_that_can_act_and_warns_of_the_others(registry):
    with pytest.warns(UserWarning) as caught:
        result = compare(TOY, episodes=2, horizon=9)
    assert set(result.tables) == {"one", "two", "shipped"}
    said = [str(one.message) for one in caught]
    assert any("'short' is left out" in text and "horizon=5" in text for text in said)
    assert any("'no-torch' is left out" in text and "pip install" in text for text in said)
    assert len(said) == 2


@pytest.mark.filterwarnings("ignore:policy .* is left out")
def test_words_for_several_policies_and_those_of_another_scenario(registry, monkeypatch):
    monkeypatch.setattr(policies, "meta", lambda name: {"env_kwargs": {"scenario": "far"}})
    nine = {"horizon": 9}
    assert members(TOY, ["rules"], nine) == ["one", "two"]
    assert members(TOY, ["learned"], nine) == ["shipped"]
    assert members(TOY, ["shipped", "one:x=1", "all"], nine) == ["shipped", "one:x=1", "one", "two"]
    assert members(TOY, ["two"], nine) == ["two"]
    assert members(TOY, ["rules"], nine, trained_on="far") == ["one", "two", "shipped"]
    with pytest.raises(InvalidArgument, match=r"trained_on='near': no shipped .* there are policies of far"):
        members(TOY, ["rules"], nine, trained_on="near")


def test_none_with_a_wrong_argument_is_an_error_not_a_warning(registry):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidArgument, match="horizn"):
            compare(TOY, episodes=2, horizn=9)


def test_none_where_nothing_is_known_is_an_error():
    with pytest.raises(InvalidArgument, match="no known policy fits toyeval/Queue-v0"):
        compare(TOY, episodes=2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"env_id": "llmgym/KVQeue-v0"}, UnknownName, "Did you mean 'llmgym/KVQueue-v0'"),
        ({"episodes": 1}, InvalidArgument, "episodes=1: expected a whole number from 2"),
        ({"episodes": "9"}, InvalidArgument, "episodes='9'"),
        ({"seed": 1.5}, InvalidArgument, "seed=1.5"),
        ({"confidence": 1.0}, InvalidArgument, "confidence=1.0"),
        ({"policies": []}, InvalidArgument, "policies is empty"),
        ({"policies": {}}, InvalidArgument, "policies is empty"),
        ({"policies": "fcfs"}, InvalidArgument, "policies='fcfs': expected a list"),
        ({"policies": 5}, InvalidArgument, "policies=5"),
        ({"policies": ["nobody"]}, UnknownName, "'nobody'"),
        ({"metrics": ["waited"]}, UnknownName, "Did you mean 'waited_s'"),
        ({"metrics": "waited_s"}, InvalidArgument, "expected a list of names"),
        ({"metrics": ["waited_s", "waited_s"]}, InvalidArgument, "given twice"),
        ({"num_envs": 4}, InvalidArgument, "num_envs"),
        ({"horizn": 4}, InvalidArgument, "horizn"),
    ],
)
def test_wrong_input_says_what_is_wrong_before_anything_runs(arguments, error, words):
    policy = always(1)
    with pytest.raises(error, match=words):
        compare(**{"env_id": TOY, "policies": [policy], "episodes": 2, **arguments})
    assert policy.seen == []


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda r: r.summary("nobody"), UnknownName, "nobody"),
        (lambda r: r.summary("net", "late"), UnknownName, "'late_s'"),
        (lambda r: r.difference("net", reference="nobody"), UnknownName, "nobody"),
        (lambda r: r.difference(r.reference), InvalidArgument, "is the reference itself"),
        (lambda r: r.metric_table("late"), UnknownName, "late_s"),
        (lambda r: r.plot("x.png", "late"), UnknownName, "late_s"),
        (lambda r: Comparison([]), InvalidArgument, "at least one policy"),
        (lambda r: Comparison([episodes_of("a", [1.0])]), InvalidArgument, "episodes=1"),
        (lambda r: Comparison([episodes_of("a", [1, 2])] * 2), InvalidArgument, "more than once"),
        (
            lambda r: Comparison([episodes_of("a", [1, 2]), episodes_of("b", [1, 2, 3])]),
            InvalidArgument,
            "different environments or|ran different",
        ),
        (
            lambda r: Comparison([episodes_of("a", [1, 2], x=[1, 2], headline={"x": "low"})]),
            InvalidArgument,
            r"headline_metrics\['x'\]='low'",
        ),
    ],
)
def test_wrong_questions_say_what_is_wrong(call, error, words):
    with pytest.raises(error, match=words):
        call(contest())


def test_the_mean_stands_beside_a_percentile():
    """In front of the first percentile of a headline, with its direction, where the environment has such a metric."""
    metrics = {
        name: [1.0, 2.0]
        for name in ("a_p50_s", "a_p99_s", "a_mean_s", "b_p99_s", "c_p9_s", "c_mean_s", "d_mean_s")
    }
    headline = {"b_p99_s": "min", "c_mean_s": "max", "c_p9_s": "min", "a_p50_s": "max", "a_p99_s": "min"}
    found = Comparison([episodes_of("one", [1.0, 2.0], headline=headline, **metrics)])
    assert found.shown == ["b_p99_s", "c_mean_s", "c_p9_s", "a_mean_s", "a_p50_s", "a_p99_s"]
    assert found.direction("a_mean_s") == "max" and found.direction("d_mean_s") is None
    given = Comparison([episodes_of("one", [1.0, 2.0], headline=headline, **metrics)], metrics=["a_p99_s"])
    assert given.shown == ["a_p99_s"]
