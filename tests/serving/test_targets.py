"""Targets of classes: who is within them, and what that is worth."""

import math

import numpy as np
import pytest

from llmgym import profiles
from llmgym.cli import main
from llmgym.errors import InvalidArgument
from llmgym.serving.replay import replay
from llmgym.serving.targets import Target, attained
from llmgym.workloads import Rows

SECOND = profiles.constant(1.0)


def played(classes, **settings):
    """Three requests of 3, 3 and 1 tokens at once on one seat: first tokens after 1, 4 and 7 s, and a second a token."""
    rows = Rows([0.0] * 3, [4] * 3, [3, 3, 1], request_class=classes)
    return rows, replay(rows, SECOND, kv_capacity=64, seats=1, scheduling="sync", **settings)


def test_each_class_has_its_own_targets():
    rows, found = played([0, 0, 2])
    targets = [
        Target(ttft_s=3.0, tpot_s=1.5, weight=4.0),
        Target(),
        Target(ttft_s=7.5, tpot_s=0.1, weight=0.5),
    ]
    share, weighted, goodput = attained(rows, found, targets)
    assert (
        share[0] == 0.5 and math.isnan(share[1]) and share[2] == 1.0
    )  # one token has no next one to wait for
    assert weighted == pytest.approx((4.0 + 0.5) / 8.5)
    assert goodput == pytest.approx(4.5 / 7.0)


def test_a_slow_token_misses_the_target():
    rows, found = played(None)
    assert attained(rows, found, [Target(tpot_s=0.9)]).share[0] == pytest.approx(1 / 3)
    assert attained(rows, found, [Target()]) == (np.ones(1), 1.0, 3 / 7.0)
    assert math.isnan(attained(rows, found, [Target(weight=0.0)]).weighted)


def test_whoever_never_finishes_is_within_no_target():
    rows = Rows([0.0, 1.0], [10, 300], [5, 5])
    found = replay(rows, SECOND, kv_capacity=8_000, budget=256, rule="vllm-prefill-only", scheduling="sync")
    assert found.unfinished > 0
    assert attained(rows, found, [Target()]).weighted == 1 - found.unfinished / 2


@pytest.mark.parametrize(
    ("classes", "targets", "said"),
    [
        (None, 0, "targets: none was given"),
        (None, 2, "targets: 2 were given for requests without a class; expected one"),
        ([0, 1, 0], 1, "targets: 1 were given, and request 1 is of class 1"),
    ],
)
def test_targets_that_do_not_fit_are_told(classes, targets, said):
    rows, found = played(classes)
    with pytest.raises(InvalidArgument, match=said):
        attained(rows, found, [Target()] * targets)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ttft_s": 0.0}, "ttft_s=0.0 of a target: expected a time above 0 s"),
        ({"tpot_s": math.nan}, "tpot_s=nan of a target"),
        ({"weight": -1.0}, "weight of a target=-1.0: expected a finite number >= 0"),
    ],
)
def test_a_target_that_is_none_is_told(settings, said):
    with pytest.raises(InvalidArgument, match=said):
        Target(**settings)


def test_the_command_takes_targets(tmp_path, capsys):
    path = tmp_path / "trace.csv"
    path.write_text(
        "arrival_s,prompt_tokens,output_tokens,request_class\n0,100,5,0\n0,2000,5,1\n0,2000,5,1\n0,100,5,0\n"
    )
    shared = ["replay", str(path), "--kv-capacity", "8192"]
    assert main([*shared, "--targets", "0.0001,1", "60,inf,0.5"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Within their targets, by class: 0.0, 100.0 %; weighted: 33.3 %" in said
    for wrong, message in (
        ("1", "expected TTFT,TPOT or"),
        ("a,b", "expected TTFT,TPOT or"),
        ("1,1", "of class 1"),
    ):
        assert main([*shared, "--targets", wrong]) == 2
        assert message in capsys.readouterr().err
