"""OServe: wrong input is named, and the scenarios are what they say."""

import math
from typing import Any

import numpy as np
import pytest

import llmgym
from llmgym.envs.oserve.env import OServe
from llmgym.envs.oserve.scenarios import CORNERS, spatial_mix
from llmgym.errors import InvalidArgument, UnknownName
from tests.envs.oserve.playing import QUICK, make


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"gpus": 1}, "gpus=1"),  # 132 GB of weights fit nowhere
        ({"model": "opt-66b", "gpus": 2, "types": ((4000, 4000),)}, "fit into no replica"),
        ({"initial": ()}, "initial"),
        ({"initial": ((8, 1), (8, 1), (4, 1))}, "gpus=16"),
        ({"initial": ((3, 1),)}, "no shape"),
        ({"initial": ((8, 1),)}, "all 16 GPUs"),
        ({"initial": ((2, 1),) * 8}, "every type"),
        ({"gpus": 64}, "gpus=64"),
        ({"nvlink_gb_per_s": 0.0}, "nvlink_gb_per_s"),
        ({"infiniband_gb_per_s": 0}, "infiniband_gb_per_s"),
        ({"disk_gb_per_s": -1.0}, "disk_gb_per_s"),
        ({"mix": (0.5, 0.5, 0.5, -0.5)}, "mix"),
        ({"mix": (0.0, 0.0, 0.0, 0.0)}, "mix"),
        ({"mix": (1.0,)}, "mix"),
        ({"types": ()}, "types"),
        ({"types": ((496,),)}, "prompt and output"),
        ({"types": ((0, 18),)}, "prompt"),
        ({"load": (0.9, 0.5)}, "load"),
        ({"cv": (0.1, 2.0)}, "cv"),
        ({"span_epochs": (0, 3)}, "span_epochs"),
        ({"epoch_s": 3.0}, "epoch_s"),
        ({"ewma": 1.5}, "ewma"),
        ({"model": "gpt-2"}, "model"),
        ({"drift": "sideways"}, "drift"),
        ({"dispatch": "magic"}, "dispatch"),
        ({"switching": "never"}, "switching"),
        ({"action": "press"}, "action"),
        ({"reward": "money"}, "reward"),
        ({"kernels": "h100/kernels"}, "measured for"),
        ({"workloads": ("nowhere",)}, "nowhere"),
        ({"reroute": 1}, "reroute"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=named.replace("(", r"\(")):
        OServe(**{"scenario": "small", **kwargs})


def test_wrong_actions() -> None:
    env = make(**QUICK, action="control")
    env.reset(seed=0)
    low = np.zeros(5)
    for bad in (low - 1.0, np.full(5, np.nan), np.zeros(3)):
        with pytest.raises(llmgym.errors.InvalidAction):
            env.step(bad)
    env.step(low)  # nothing is expected: the routing falls back on rates


def test_spatial_mixes() -> None:
    for cv in (0.0, 0.112, 0.688, math.sqrt(3)):
        mix = np.array(spatial_mix(cv, 2))
        assert mix.sum() == pytest.approx(1.0) and mix.std() / mix.mean() == pytest.approx(cv, abs=1e-9)
        assert mix[2] == pytest.approx(0.25 + 0.4330127 * cv)
    with pytest.raises(InvalidArgument, match="cv"):
        spatial_mix(1.8, 0)
    with pytest.raises(InvalidArgument, match="dominant"):
        spatial_mix(0.5, 4)


def test_scenarios_are_what_they_say() -> None:
    for name, gpus in (("paper", 16), ("real", 16), ("stress", 32)):
        simulation = OServe(scenario=name)
        assert simulation.scenario.gpus == gpus
        assert simulation.menu_loss < 0.03 and len(simulation.menu) <= simulation.scenario.candidates
    real = OServe(scenario="real")
    assert real.requests.types == 4 and len(real.requests.classes) == 32
    assert OServe(scenario="paper").requests.centroids == CORNERS
