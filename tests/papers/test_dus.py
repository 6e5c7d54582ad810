"""Published numbers on dilated unmasking, and numbers worked out for the language of phrases.

Luxembourg, Permuter and Nachmani, "Plan for Speed: Dilated Scheduling for Masked Diffusion Language Models", ICML 2026 (arXiv
2506.19037), and the code released with it. What is not reached is a row of `docs/deviations.csv`, with the reason.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmgym.envs.unmask.denoiser import Denoiser
from llmgym.envs.unmask.planners import budget
from llmgym.envs.unmask.process import Process, chain_of, log_probability, phrases_of
from llmgym.envs.unmask.published import ABLATION, BLOCKS, ONE_PER_CALL, TABLE_1
from llmgym.envs.unmask.schedule import (
    bisection_levels,
    budget_count,
    calls_of,
    dus_levels,
    fixed_counts,
    paper_levels,
    rising_counts,
    spacing_gap,
    sufficient_distance,
)
from llmgym.envs.unmask.tables import shipped_meta

ID = "llmgym/Unmask-v0"


def sizes(*args: int) -> list[int]:
    return [len(level) for level in dus_levels(*args)]


# 1: levels, calls, speedups


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((8,), [2, 2, 4]),
        ((16,), [2, 2, 4, 8]),
        ((32,), [2, 2, 4, 8, 16]),
        ((64,), [2, 2, 4, 8, 16, 32]),
        ((32, 2, 2), [4, 4, 8, 16]),
        ((32, 2, 3), [8, 8, 16]),
        ((16, 3), [4, 12]),
        ((32, 3), [4, 9, 19]),
        ((64, 3), [4, 6, 27, 27]),
        ((16, 4), [4, 12]),
        ((32, 4), [4, 12, 16]),
        ((64, 4), [4, 12, 48]),
    ],
)
def test_sizes_of_the_levels(arguments: tuple[int, ...], expected: list[int]) -> None:
    levels = dus_levels(*arguments)
    assert [len(level) for level in levels] == expected
    assert sorted(np.concatenate(levels).tolist()) == list(range(arguments[0]))


def test_the_levels_of_eight_positions() -> None:
    expected = [[0, 4], [2, 6], [1, 3, 5, 7]]
    assert [level.tolist() for level in dus_levels(8)] == expected
    assert [level.tolist() for level in paper_levels(8)] == expected
    for block in BLOCKS:
        assert len(paper_levels(block)) == len(dus_levels(block)) == math.log2(block)
    assert [level.tolist() for level in bisection_levels(7)] == [[3], [1, 5], [0, 2, 4, 6]]


def test_calls_and_speedups() -> None:
    assert [calls_of(64, block) for block in BLOCKS] == [24, 16, 10, 6]
    assert [calls_of(256, block) for block in BLOCKS] == [96, 64, 40, 24]
    speedups = [256 / calls_of(256, block) for block in BLOCKS]
    assert speedups == pytest.approx([2.67, 4.0, 6.4, 10.67], abs=0.005)
    # with base 3 the code needs fewer calls than the formula says
    assert [len(dus_levels(block, 3)) for block in (16, 32)] == [2, 3]
    assert [math.ceil(math.log(block, 3)) for block in (16, 32)] == [3, 4]


# 2 and 3: counts, budget, spacing


def test_counts_of_the_rivals() -> None:
    assert fixed_counts(32, 5).tolist() == [7, 7, 6, 6, 6]
    assert rising_counts(32).tolist() == [2, 2, 4, 8, 16]


@pytest.mark.parametrize(("gamma", "count"), [(0.5, 3), (0.7, 4), (0.0, 1)])
def test_the_budget_of_entropy(gamma: float, count: int) -> None:
    entropies = np.array([0.3, 2.0, 0.1, 0.2])
    assert budget_count(entropies, gamma) == count
    out = np.zeros(4, np.int8)
    budget(np.ones(4, np.int8), entropies, gamma, np.empty(4), out)
    assert out.sum() == count and (count == 4 or out[1] == 0)


def test_the_spacing_filter() -> None:
    assert [spacing_gap(masked, 32) for masked in (32, 10, 4)] == [8, 2, 2]


def test_a_distance_that_suffices() -> None:
    """The sum of k terms C rho^d is at most epsilon from that distance on, and not before."""
    d = sufficient_distance(5, 0.01, 2.0, 0.7)
    assert 5 * 2.0 * 0.7**d <= 0.01 < 5 * 2.0 * 0.7 ** (d - 1)


# 4: identities


def play(process: Process, text: np.ndarray, sets: list[list[int]]) -> list[float]:
    """What each call loses on a text: sum of ln p(x_i | S) - ln p(x_I | S), nats."""
    denoiser, known, losses = Denoiser(process), np.full(len(text), -1), []
    for chosen in sets:
        laws, before = denoiser(known)
        drawn = sum(math.log(laws[i, text[i]]) for i in chosen)
        known[chosen] = text[chosen]
        losses.append(drawn - (denoiser(known)[1] - before))
    return losses


@pytest.mark.parametrize("order", [range(12), range(11, -1, -1), np.random.default_rng(0).permutation(12)])
def test_one_position_a_call_loses_nothing(order: Any) -> None:
    process = phrases_of(3)
    text = np.random.default_rng(1).integers(0, 32, 12)
    assert np.abs(play(process, text, [[int(i)] for i in order])).max() < 1e-9


SCHEDULES: dict[str, Callable[[np.ndarray], list[list[int]]]] = {
    "all": lambda x: [[0, 1, 2, 3, 4]],
    "dilated": lambda x: [[0, 2, 4], [1, 3]],
    "neighbours": lambda x: [[0, 1], [2, 3], [4]],
    "adaptive": lambda x: [[1, 3], [0, 4] if x[1] == 0 else [2], [2] if x[1] == 0 else [0, 4]],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_losses_add_up_to_the_divergence_by_brute_force(name: str) -> None:
    """KL(p||q) is the mean of the entropy gaps along true texts, KL(q||p) that of the losses along generated ones."""
    process = phrases_of(5, topics=2, phrases=3, vocabulary=3, noise=0.1)
    p, q, lost = [], [], []
    for letters in itertools.product(range(3), repeat=5):
        text = np.array(letters)
        losses = play(process, text, SCHEDULES[name](text))
        p.append(log_probability(process, text))
        q.append(p[-1] + sum(losses))
        lost.append(sum(losses))
    p_all, q_all, lost_all = np.array(p), np.array(q), np.array(lost)
    assert np.exp(p_all).sum() == pytest.approx(1.0, abs=1e-9)
    assert np.exp(q_all).sum() == pytest.approx(1.0, abs=1e-9)  # the law of a generated text
    assert np.exp(q_all) @ lost_all == pytest.approx(np.exp(q_all) @ (q_all - p_all), abs=1e-9)
    gaps = -(np.exp(p_all) @ lost_all)
    assert gaps == pytest.approx(np.exp(p_all) @ (p_all - q_all), abs=1e-9) and gaps > 1e-3


def test_the_bounds_of_lemma_3_3() -> None:
    """Between the entropy of the block and the sum of the entropies of its positions lies what any schedule pays."""
    process = phrases_of(5, topics=2, phrases=3, vocabulary=3, noise=0.1)
    texts = [np.array(letters) for letters in itertools.product(range(3), repeat=5)]
    p = np.array([log_probability(process, text) for text in texts])
    entropy = -np.exp(p) @ p
    paid = {
        name: -sum(
            math.exp(log) * (log + sum(play(process, text, rule(text))))
            for log, text in zip(p, texts, strict=True)
        )
        for name, rule in {**SCHEDULES, "one": lambda x: [[0], [1], [2], [3], [4]]}.items()
    }
    laws = Denoiser(process)(np.full(5, -1))[0]
    assert paid["one"] == pytest.approx(entropy, abs=1e-9)
    assert paid["all"] == pytest.approx(-(laws * np.log(laws)).sum(), abs=1e-9)
    assert all(entropy < paid[name] <= paid["all"] + 1e-9 for name in SCHEDULES)


# 5: a first-order chain


def test_on_a_first_order_chain_dus_loses_in_its_first_call_only() -> None:
    """Every later call reveals positions that known ones separate."""
    rng = np.random.default_rng(2)
    process = chain_of(0.8 * np.eye(8) + 0.2 * rng.dirichlet(np.ones(8), 8))
    dilated = [level.tolist() for level in dus_levels(16)]
    others = {
        "left to right": [list(range(4 * i, 4 * i + 4)) for i in range(4)],
        "random": [part.tolist() for part in np.array_split(rng.permutation(16), 4)],
    }
    for seed in range(5):
        text = np.random.default_rng(seed).integers(0, 8, 16)
        losses = play(process, text, dilated)
        assert np.abs(losses[1:]).max() < 1e-9 < abs(losses[0])
        for sets in others.values():
            assert np.abs(play(process, text, sets)).max() > 0.1


def test_what_dus_loses_on_a_chain_that_mixes_fast() -> None:
    """The first call of a block of 32, after a known token: 0.0012 nats with 16 tokens of which each stays with 0.8."""
    process = chain_of((0.8 - 0.2 / 15) * np.eye(16) + 0.2 / 15)
    denoiser, known = Denoiser(process).after(np.zeros(1, np.int64)), np.full(32, -1)
    laws = denoiser(known)[0]
    shared = 0.0
    for token in range(16):
        known[0] = token
        given = denoiser(known)[0][16]
        shared += laws[0, token] * float(given @ np.log(given / laws[16]))
    assert shared == pytest.approx(0.0012, abs=0.0001)


# 6: the published tables, and a trained model


def test_the_table_of_accuracies() -> None:
    """61 of 64 cells for DUS, one tie, two for confidence; and the ablation."""
    cells = [cell for row in TABLE_1.values() for cell in row]
    wins = [(dus > conf) - (dus < conf) for conf, dus in cells]
    assert (len(cells), wins.count(1), wins.count(0), wins.count(-1)) == (64, 61, 1, 2)
    for model, one in ONE_PER_CALL.items():
        assert all(max(cell) < one for cell in TABLE_1["gsm8k", model])
    for confidence, confidence_rising, random, random_rising, dus in ABLATION.values():
        assert dus == max(confidence, confidence_rising, random, random_rising, dus)
        assert confidence_rising < confidence and random < random_rising
    at_32 = [row for (_, block), row in ABLATION.items() if block == 32]
    assert all(random_rising > confidence for confidence, _, _, random_rising, _ in at_32)


@pytest.mark.parametrize("domain", ["code", "prose"])
def test_the_order_of_rules_on_a_trained_model(domain: str) -> None:
    """DUS is ahead of all with as many calls, by the model's own law and by another model's."""
    replay = shipped_meta()["measured"]["groups"][domain]["replay"]
    rivals = ("random-rising", "random-fixed", "confidence", "left-to-right")
    for rule in rivals:
        for text, metric in (("true tokens", "gap_nats"), ("own tokens", "scorer_nats")):
            (dus, dus_error), (other, error) = (replay[text][name][metric] for name in ("dus", rule))
            assert other - dus > 4.0 * math.hypot(dus_error, error)
            assert replay[text]["one"][metric][0] < dus < other < replay[text]["all"][metric][0]
    for text, metric in (("true tokens", "gap_nats"), ("own tokens", "scorer_nats")):
        found = [replay[text][rule][metric][0] for rule in ("random-rising", "confidence", "left-to-right")]
        assert found == sorted(found)
