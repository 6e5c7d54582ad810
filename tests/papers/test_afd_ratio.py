"""The simulation of attention and FFN instances against the experiments of Song et al., arXiv 2601.21351: section 5.

See `tests/papers/afd.py` for the numbers, and `tests/papers/test_afd_law.py` for the closed forms.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmgym import baselines
from llmgym.core.lanes import HOLD, Lanes
from llmgym.envs.afd.costs import PAPER
from llmgym.envs.afd.law import (
    barrier_time,
    kappa,
    microbatch_ratio,
    microbatch_time,
    optimal_ratio,
    step_time,
)
from llmgym.envs.afd.occupancy import (
    finite_load,
)
from llmgym.envs.afd.ratio.env import AFDRatio
from llmgym.envs.afd.refill.env import AFDRefillVectorEnv
from llmgym.envs.afd.requests import load
from tests.papers.afd import BASELINE, LAWS, NU, PRINTED, RATIOS, TABLE, THETA, B, N, column
from tests.papers.deviations import KNOWN, Deviation, every_deviation
from tests.papers.deviations import check as check_deviation

TESTED = (1, 2, 4, 6, 8, 9, 10, 11, 12, 16, 24, 32)


def simulate(ratios: Any, seeds: int = 1, epochs: int = 1, first: int = 0, **kwargs: Any) -> dict[str, Any]:
    """Metrics of AFDRatio with each ratio, mean over `seeds` worlds, float64 [ratios]; `first` epochs are not counted."""
    settings = {
        "scenario": "paper",
        "requests": BASELINE,
        "ratios": ratios,
        "epochs": epochs + first,
        **kwargs,
    }
    simulation = AFDRatio(**settings)
    runs = Lanes(simulation, len(ratios) * seeds)
    runs.reset(None, [1 + k // len(ratios) for k in range(len(ratios) * seeds)])
    runs.load_actions(np.tile(np.arange(len(ratios)), seeds))
    names = ("output", "instance_time", "cycle_time", "cycle", "excess")
    before = {name: np.zeros(runs.count) for name in names}
    for k in range(epochs + first):
        if k == first:
            before = {name: runs.state.lane[name].copy() for name in names}
        runs.step(HOLD)
    metrics: dict[str, Any] = {
        name: runs.column(name).reshape(seeds, -1).mean(axis=0) for name in simulation.metric_names
    }
    counted = {name: runs.state.lane[name] - before[name] for name in names}
    per = {
        "rate": counted["output"] / counted["instance_time"],
        "tau": counted["cycle_time"] / counted["cycle"],
        "barrier": counted["excess"] / counted["cycle"],
    }
    return metrics | {name: value.reshape(seeds, -1).mean(axis=0) for name, value in per.items()}


def long_run(ratios: Any, seeds: int = 4, cycles: int = 20_000, **kwargs: Any) -> dict[str, Any]:
    settings = {"fidelity": "slot", "stop": 0, "start": "stationary", "cycles": cycles, **kwargs}
    return simulate(ratios, seeds, **settings)


@pytest.mark.parametrize("text", LAWS)
def test_the_best_ratio_of_each_law_in_the_simulation(text: str) -> None:
    """The ratio that was best in the other simulation is within half a percent of the best here: neighbours differ by less."""
    rates = long_run(TESTED, seeds=2, cycles=10_000, requests=text)["rate"]
    *_, best = LAWS[text]
    assert rates[TESTED.index(best)] >= 0.995 * rates.max()


def test_means_alone_choose_a_bad_ratio() -> None:
    """mu_P + mu_D = 600 for the constant law asks for 9.57; it loses a fifth of the throughput."""
    rates = long_run((4, 9), requests="constant:prompt=100,steps=500")["rate"]
    assert round(optimal_ratio(PAPER, B, 600.0).ratio, 2) == 9.57
    assert rates == pytest.approx([1.01, 0.79], rel=0.01)


# -- experiments (section 5) --------------------------------------------------------------------------------------------------

TOLERANCE = np.array(
    [0.04] + [0.025] * (len(RATIOS) - 1)
)  # one instance mixes slowly: a memory of mu_D steps


def check(simulated: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    assert (np.abs(simulated / expected - 1.0) <= TOLERANCE).all(), np.round(simulated, 4)


def test_synchronous_bundle_in_the_long_run() -> None:
    metrics = long_run(RATIOS)
    check(metrics["rate"], column(2))
    check(metrics["rate"], column(1))
    assert RATIOS[int(np.argmax(metrics["rate"]))] == 10


def test_thr80_of_the_synchronous_bundle() -> None:
    check(simulate(RATIOS, fidelity="slot")["thr80_tokens_per_cycle"], column(3))


@functools.cache
def in_flight() -> dict[str, Any]:
    """Two microbatches, as in the paper's simulator, at each ratio."""
    return simulate(RATIOS)


def idle(side: str, ratio: int) -> float:
    """Idle share of the attention instances or of the FFN, per cent."""
    return 100.0 * float(in_flight()[f"idle_{side}"][RATIOS.index(ratio)])


def test_thr80_with_two_microbatches() -> None:
    """Simulated optimum 8."""
    thr80 = in_flight()["thr80_tokens_per_cycle"]
    check(thr80, column(4))
    assert RATIOS[int(np.argmax(thr80))] == 8


def test_idle_shares_follow_from_the_throughput() -> None:
    """An instance idles for 1 - t_A / tau, whatever the schedule."""
    metrics = in_flight()
    mean = PAPER.attention(B * metrics["load_mean_tokens"])
    assert metrics["idle_attention"] == pytest.approx(1.0 - mean / metrics["tau_mean_cycles"], abs=0.01)
    ffn = PAPER.ffn(B * np.array(RATIOS))
    assert metrics["idle_ffn"] == pytest.approx(1.0 - ffn / metrics["tau_mean_cycles"], abs=0.01)


@pytest.mark.parametrize(
    ("side", "ratio"),
    [(s, r) for s in ("attention", "ffn") for r in RATIOS if f"afd/idle-{s} {r}" not in KNOWN],
)
def test_idle_shares_with_two_microbatches(side: str, ratio: int) -> None:
    """To two points of the other simulation, which prints whole ones."""
    expected = 100.0 * TABLE[ratio][5 if side == "attention" else 6]
    assert idle(side, ratio) == pytest.approx(expected, abs=2.0)


def test_attention_idles_most_of_the_time_at_32() -> None:
    """The paper: above 60 %."""
    assert idle("attention", 32) > 60.0


def test_thr80_misses_the_tokens_of_unfinished_requests() -> None:
    """B mu_D m / (0.8 N mu_D): 3.2 % with one microbatch, 6.4 % with two. It is no loss: the long run has all of them."""
    steady = TABLE[32][0]
    one = simulate((32,), fidelity="slot")["thr80_tokens_per_cycle"][0]
    two = simulate((32,))["thr80_tokens_per_cycle"][0]
    assert one / steady == pytest.approx(1 - B / (0.8 * N), abs=0.004)
    assert two / steady == pytest.approx(1 - 2 * B / (0.8 * N), abs=0.006)
    stationary = long_run((32,), fidelity="pipeline", seeds=1)["rate"][0]
    assert stationary == pytest.approx(steady, rel=2e-3)


def test_stragglers_cost_nothing_at_32() -> None:
    """There the FFN takes 780 cycles, the slowest attention instance 331: what is missing is what Thr80 does not count."""
    assert in_flight()["bound_ffn"][-1] == 1.0
    assert float(PAPER.ffn(32 * B)) == pytest.approx(780, abs=0.5)
    slowest = float(PAPER.attention(B * THETA)) + PAPER.alpha_attention * NU * np.sqrt(B) * float(kappa(32))
    assert slowest == pytest.approx(331, abs=1.0)


@functools.cache
def best_ratio() -> int:
    """The best whole ratio with two microbatches."""
    ratios = tuple(range(6, 13))
    return ratios[int(np.argmax(simulate(ratios, seeds=2)["thr80_tokens_per_cycle"]))]


def test_the_form_for_two_in_flight_chooses_the_simulated_ratio() -> None:
    form = microbatch_ratio(PAPER, B, finite_load(B, 100, 500, N) / B, 2).ratio
    assert best_ratio() == round(form) and form == pytest.approx(8.11, abs=0.005)


def test_without_pipeline_effects_the_simulated_ratio_is_within_ten_percent_of_theory() -> None:
    """Against the printed 9.3."""
    ratios = tuple(range(6, 13))
    best = ratios[int(np.argmax(long_run(ratios)["rate"]))]
    assert best == pytest.approx(PRINTED[256, 100, 500][0], rel=0.1)


@pytest.mark.parametrize("text", LAWS)
def test_the_barrier_form_against_slots(text: str) -> None:
    """Error at most 2.5 % (one instance: 3 %, see `TOLERANCE`), typically 0.7 %; the mean field is up to 8 % low near r*."""
    law = load(text)
    simulated = long_run(TESTED, seeds=4, cycles=10_000, requests=text)["tau"]
    error = barrier_time(PAPER, B, law.theta, law.nu, TESTED) / simulated - 1.0
    assert abs(error[1:]).max() < 0.025 and abs(error[0]) < 0.03, np.round(error, 4)
    assert np.median(abs(error)) < 0.01
    field = step_time(PAPER, B, law.theta, TESTED) / simulated - 1.0
    assert -0.085 < field.min() < -0.01


def test_the_form_with_two_microbatches_against_the_pipeline() -> None:
    """Within 2 % for r = 4 .. 12, and 3.5 % at r = 2."""
    ratios = (2, 4, 6, 8, 10, 12)
    simulated = long_run(ratios, seeds=4, fidelity="pipeline")["tau"]
    error = microbatch_time(PAPER, B, THETA, ratios, 2, NU) / simulated - 1.0
    assert abs(error[1:]).max() < 0.02 and abs(error[0]) < 0.035, np.round(error, 4)


@pytest.mark.slow
def test_the_whole_table_over_many_worlds() -> None:
    """Twenty worlds each: the columns of the other simulation, which had one, lie within its tolerance; optima are those stated."""
    sync, flight = simulate(RATIOS, seeds=20, fidelity="slot"), simulate(RATIOS, seeds=20)
    steady = long_run(RATIOS, seeds=20, cycles=50_000)["rate"]
    for simulated, i in (
        (sync["thr80_tokens_per_cycle"], 3),
        (flight["thr80_tokens_per_cycle"], 4),
        (steady, 2),
    ):
        check(simulated, column(i))
    assert RATIOS[int(np.argmax(steady))] == 10
    assert RATIOS[int(np.argmax(flight["thr80_tokens_per_cycle"]))] == 8
    assert steady == pytest.approx(column(1), rel=0.015)


# -- refill balancing -----------------------------------------------------------------------------------------------------------


def refill(name: str, lanes: int = 8, cycles: int = 3000, **kwargs: Any) -> tuple[float, float]:
    """Mean barrier excess and tau of a rule, cycles, over the second half of an episode."""
    env = AFDRefillVectorEnv(lanes, cycles=cycles, autoreset_mode="SAME_STEP", **kwargs)
    policy = baselines.make(name, env)
    obs, infos = env.reset(seed=1)
    episode = env.lanes.state.lane
    middle = None
    while episode["cycle"].max() < cycles - 20:
        obs, _, _, _, infos = env.step(policy.act(obs, infos["action_mask"]))
        if middle is None and episode["cycle"].min() >= cycles // 2:
            middle = episode.copy()
    assert middle is not None
    run = episode["cycle"] - middle["cycle"]
    return float(((episode["excess"] - middle["excess"]) / run).mean()), float(
        ((episode["clock"] - middle["clock"]) / run).mean()
    )


LOGNORMAL = "geometric:prompt=1000,decode=500,prompt_law=lognormal,prompt_cv=1.5"


LAW_OF = {"geometric": {}, "lognormal": {"requests": LOGNORMAL}}


@functools.cache
def excess(law: str, ratio: int, name: str) -> tuple[float, float]:
    """Barrier excess and tau of a rule, cycles, mean over bundles of so many instances."""
    lanes = 16 if (law, name) == ("geometric", "fcfs") else 8
    return refill(name, lanes, scenario="paper", ratio=ratio, **LAW_OF[law])


# law, instances -> excess of first come, first served, and of the balanced rule, cycles, simulated elsewhere
REFILLS = {
    ("geometric", 8): (21.9, 10.3),
    ("lognormal", 8): (55.5, 9.1),
    ("lognormal", 16): (75.3, 10.4),
}


@pytest.mark.parametrize(
    ("law", "ratio", "name"),
    [
        (law, ratio, name)
        for law, ratio in REFILLS
        for name in ("fcfs", "least-loaded")
        if name != "fcfs" or f"afd/refill {law} {ratio}" not in KNOWN
    ],
)
def test_balanced_refill(law: str, ratio: int, name: str) -> None:
    """Within 5 %."""
    expected = REFILLS[law, ratio][0 if name == "fcfs" else 1]
    assert excess(law, ratio, name)[0] == pytest.approx(expected, rel=0.05)


def test_first_come_first_served_is_what_the_normal_approximation_says() -> None:
    """Geometric prompts: 19.2 cycles."""
    normal = PAPER.alpha_attention * float(kappa(8)) * load("geometric:prompt=100,decode=500").nu * np.sqrt(B)
    assert normal == pytest.approx(19.2, abs=0.05)
    assert excess("geometric", 8, "fcfs")[0] == pytest.approx(normal, rel=0.04)


@pytest.mark.parametrize(("ratio", "taus"), [(8, (743.2, 688.7)), (16, (761.5, 697.2))])
def test_balanced_refill_shortens_the_cycle(ratio: int, taus: tuple[float, float]) -> None:
    """tau before and after, and 7.3 % less with 8 instances."""
    simulated = [excess("lognormal", ratio, name)[1] for name in ("fcfs", "least-loaded")]
    assert simulated == pytest.approx(taus, rel=0.02)
    assert 1.0 - simulated[1] / simulated[0] == pytest.approx(1.0 - taus[1] / taus[0], abs=0.015)


def test_constant_prompts_leave_nothing_to_balance() -> None:
    excesses = {
        name: refill(name, scenario="constant-prompt", lanes=2, cycles=400)
        for name in ("fcfs", "least-loaded", "min-max")
    }
    assert excesses["fcfs"] == excesses["least-loaded"] == excesses["min-max"]


# -- deviations ----------------------------------------------------------------------------------------------------------------


def _crossing() -> float:
    """Ratio at which both sides idle equally, between the tested ones."""
    gap = in_flight()["idle_attention"] - in_flight()["idle_ffn"]
    return float(np.interp(0.0, gap, RATIOS))


OURS: dict[str, Callable[[], float]] = {
    "afd/idle-ffn-at-1": functools.partial(idle, "ffn", 1),
    "afd/crossing": _crossing,
    "afd/best-ratio": best_ratio,
    "afd/gap-at-32": lambda: 100.0 * (1.0 - in_flight()["thr80_tokens_per_cycle"][-1] / TABLE[32][0]),
    "afd/refill geometric 8": lambda: excess("geometric", 8, "fcfs")[0],
    "afd/refill lognormal 8": lambda: excess("lognormal", 8, "fcfs")[0],
}
OURS |= {
    f"afd/idle-{side} {r}": functools.partial(idle, side, r)
    for side in ("attention", "ffn")
    for r in RATIOS
    if f"afd/idle-{side} {r}" in KNOWN
}


@every_deviation("afd")
def test_deviations(row: Deviation) -> None:
    check_deviation(row, OURS)
