"""Rules for PipeSDNav: what they do on given observations, how EdgeLLM's threshold moves, wrong numbers."""

from typing import Any

import gymnasium
import numpy as np
import pytest

import llmgym
from llmgym.envs.pipesd.nav.env import PipeSDNav
from llmgym.envs.pipesd.state import CONTINUE, UPLOAD, VERIFY
from llmgym.errors import InvalidArgument, UnknownName

ID = "llmgym/PipeSDNav-v0"


def made(name: str, **kwargs: Any) -> Any:
    kwargs = {"scenario": "s1", **kwargs, **llmgym.baselines.env_kwargs(ID, name)}
    return llmgym.baselines.make(name, gymnasium.make_vec(ID, 1, **kwargs))


def choose(policy: Any, mask: tuple[int, int, int] = (1, 1, 1), **fields: float) -> int:
    """The action on an observation with these fields (tokens in tokens), everything else certain and empty."""
    layout = PipeSDNav.layout
    row = np.zeros((1, layout.size), np.float32)
    for name, value in {"confidence": 1.0, "product": 1.0, "plan": 5, **fields}.items():
        name = name.replace("_", ".")
        tokens = name in (
            "block",
            "unsent",
            "plan",
            "window",
            "last.tokens",
            "last.accepted",
            "waiting.tokens",
        )
        row[0, layout[name].start] = value / 32 if tokens else value
    return int(policy.act(row, np.array([mask], np.int8))[0])


def test_fixed_lengths() -> None:
    assert choose(made("vanilla"), block=7) == CONTINUE and choose(made("vanilla"), block=8) == VERIFY
    assert choose(made("vanilla:n=3"), block=3) == VERIFY
    assert choose(made("vanilla", scenario="s1-gsm8k"), block=4) == VERIFY
    assert choose(made("fixed-1"), block=1) == VERIFY
    assert choose(made("pipesd-fixed"), block=7, plan=0) == UPLOAD
    assert choose(made("pipesd-fixed"), block=8, plan=0) == VERIFY


def test_hsl() -> None:
    assert choose(made("hsl"), confidence=0.985) == VERIFY
    assert choose(made("hsl"), confidence=0.995, product=0.1, plan=0) == CONTINUE
    assert choose(made("hsl", scenario="s1-gsm8k"), confidence=0.75) == CONTINUE


def test_dual_threshold_and_uploads() -> None:
    policy = made("pipesd")
    assert choose(policy, product=0.95) == VERIFY and choose(policy, product=0.96) == CONTINUE
    assert choose(policy, confidence=0.9, product=0.99) == VERIFY
    assert choose(policy, plan=0) == UPLOAD
    token, sequence = made("pipesd-token"), made("pipesd-seq")
    assert choose(token, product=0.01) == CONTINUE and choose(token, confidence=0.5) == VERIFY
    assert choose(sequence, confidence=0.1) == CONTINUE and choose(sequence, product=0.5) == VERIFY
    assert choose(made("immediate")) == UPLOAD
    assert choose(made("single-batch"), plan=0) == CONTINUE
    assert choose(made("pipesd-nopipe"), plan=0) == CONTINUE
    assert choose(made("greedy"), link=0.0) == UPLOAD and choose(made("greedy"), link=0.1) == CONTINUE


@pytest.mark.parametrize("name", llmgym.baselines.names(ID))
def test_where_a_draft_must_end_all_ask(name: str) -> None:
    assert choose(made(name), mask=(0, 0, 1)) == VERIFY


def test_edgellms_threshold_follows_the_verdicts() -> None:
    policy = made("edgellm")
    policy.reset(np.ones(1, np.bool_))
    limit = 0.92
    for n, a, product in ((4, 4, 0.9), (4, 4, 0.9), (5, 2, 0.8), (2, 0, 0.05), (3, 0, 0.0), (3, 3, 0.9)):
        choose(
            policy, verdicts=0.5, last_tokens=float(n), last_accepted=float(a), last_product=float(product)
        )
        if a == n:
            limit *= 0.95
        else:
            power = product ** ((n - a) / n)
            limit = min(1.99, limit / (power if power > 1e-12 else 0.5))
        assert policy._limit[0, 0] == pytest.approx(limit, rel=1e-5)
    assert limit > 1 and choose(policy) == VERIFY  # above one: every token
    before = policy._limit.copy()
    choose(policy, last_tokens=5.0, last_accepted=5.0)
    assert (policy._limit == before).all()  # no verdict, no change
    policy.reset(np.ones(1, np.bool_))
    assert policy._limit[0, 0] == 0.92
    for _ in range(400):
        choose(policy, verdicts=0.5, last_tokens=4.0, last_accepted=4.0, last_product=0.9)
    assert policy._limit[0, 0] == pytest.approx(1e-4)


def test_edgellm_uploads_while_it_waits() -> None:
    policy = made("edgellm")
    assert choose(policy, waiting=1.0, unsent=5, window=5) == UPLOAD
    assert choose(policy, waiting=1.0, unsent=4, window=5) == CONTINUE
    assert choose(policy, unsent=5, window=5) == CONTINUE
    assert choose(made("edgellm:batch=1"), waiting=1.0, unsent=1, window=5) == UPLOAD


def test_clients_have_thresholds_of_their_own() -> None:
    policy = made("edgellm", clients=2)
    policy.reset(np.ones(1, np.bool_))
    choose(policy, client=0.5, verdicts=0.5, last_tokens=4.0, last_accepted=4.0, last_product=0.9)
    assert policy._limit.tolist() == [[0.92, pytest.approx(0.92 * 0.95)]]


def test_idle_rules_want_an_idle_world() -> None:
    for name in llmgym.baselines.names(ID):
        idle = name in ("vanilla", "hsl", "pipesd-nopipe", "fixed-1")
        assert llmgym.baselines.env_kwargs(ID, name) == ({"proactive": False} if idle else {})


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("vanilla:n=0", "n=0"),
        ("vanilla:n=-4", "n=-4"),
        ("pipesd-fixed:n=0", "n=0"),
        ("hsl:token=1.01", "token=1.01"),
        ("pipesd:sequence=-0.1", "sequence=-0.1"),
        ("pipesd:sequence=1.5", "sequence=1.5"),
        ("pipesd:token=2", "token=2"),
        ("pipesd:token=nan", "pipesd:argument=number"),
        ("edgellm:start=2", "start=2"),
        ("edgellm:factor=1.2", "factor=1.2"),
        ("edgellm:batch=-1", "batch=-1"),
        ("pipesd:limit=0.3", "sequence, token"),
    ],
)
def test_wrong_numbers_are_named(name: str, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        made(name)
    with pytest.raises(UnknownName):
        made("dual")


def test_variants_of_the_grids_can_be_made() -> None:
    variants = {name: llmgym.baselines.grid(ID, name) for name in llmgym.baselines.names(ID)}
    assert {name for name, grid in variants.items() if grid} >= {"vanilla", "hsl", "edgellm", "pipesd"}
    for name in llmgym.baselines.names(ID):
        for variant in llmgym.baselines.grid(ID, name):
            made(variant)
