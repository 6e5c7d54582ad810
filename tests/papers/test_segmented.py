"""Published numbers on segmented execution of long prompts.

Shang, Li, Duo, Cai and Su, "Training-Inference Consistent Segmented Execution for Long-Context LLMs", ICML 2026 (arXiv 2605.11744):
peak memory, time to first token and scores, and what follows from them. What is not reached is a row of `docs/deviations.csv`.
"""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import brentq

from llmgym.envs.segmented.env import SegmentedPrefill, SegmentedPrefillEnv
from llmgym.envs.segmented.law import (
    GIB,
    KIB,
    LENGTHS,
    MODELS,
    PEAK_GIB,
    TTFT_S,
    full_s,
    peak_gib,
    pool_entries,
    segmented_s,
    visible_prefix,
)
from llmgym.envs.segmented.modes import (
    QUALITY,
    TRAINED,
    UNTRAINED_QUALITY,
    names,
    peak_bytes,
    quality_of,
    rest_time_s,
    table,
)
from tests.papers.deviations import Deviation, check, every_deviation

LLAMA2, LLAMA3 = "llama-2-7b", "llama-3.1-8b"
LONG = 131_072
"""128K tokens."""


@pytest.mark.parametrize("method", PEAK_GIB)
def test_the_table_of_peak_memory(method: str) -> None:
    """Five methods at both lengths, to 0.1 GiB."""
    for tokens, published in zip(LENGTHS, PEAK_GIB[method], strict=True):
        assert peak_gib(method, tokens) == pytest.approx(published, abs=0.1)


def test_bytes_for_each_token() -> None:
    """Of the whole cache and of the pool, and the slopes of both peaks."""
    assert MODELS[LLAMA2].kv_bytes == 512 * KIB and MODELS[LLAMA2].pool_bytes == 32 * KIB
    assert MODELS[LLAMA3].kv_bytes == 128 * KIB and MODELS[LLAMA3].pool_bytes == 8 * KIB
    assert MODELS[LLAMA2].carried_bytes(512) == GIB // 8
    for method, slope in (("full", 707.5), ("segmented", 32.0), ("streaming", 614.0), ("duo", 358.0)):
        grown = peak_gib(method, 2 * LONG) - peak_gib(method, LONG)
        assert grown * GIB / KIB / LONG == pytest.approx(slope, rel=1e-9)
    grown = peak_gib("full", 2 * LONG, LLAMA3) - peak_gib("full", LONG, LLAMA3)
    assert grown * GIB / KIB / LONG == pytest.approx(887.5, rel=1e-9)


@pytest.mark.parametrize(
    ("segment", "peak"), [(1024, 16.99), (2048, 17.68), (4096, 19.06), (8192, 21.82), (16384, 27.35)]
)
def test_peak_memory_of_other_segments(segment: int, peak: float) -> None:
    assert peak_gib("segmented", 32_768, segment=segment) == pytest.approx(peak, abs=0.01)


def test_ratios_of_peak_memory() -> None:
    """Full attention over segments, at the lengths for which the paper's forms give them."""
    for tokens, ratio in ((16, 1.27), (32, 1.82), (64, 2.83), (80, 3.30), (128, 4.58), (256, 7.27)):
        assert ratio_at(1024 * tokens) == pytest.approx(ratio, abs=0.006)
    assert ratio_at(LONG, LLAMA3) == pytest.approx(5.7, abs=0.03)
    # with the logits of the last token alone
    last = peak_gib("streaming", LONG) / peak_gib("segmented", LONG)
    assert last == pytest.approx(4.05, abs=0.005)
    assert peak_gib("full", LONG, LLAMA3) == pytest.approx(125.9, abs=0.05)
    assert peak_gib("segmented", LONG, LLAMA3) == pytest.approx(22.2, abs=0.05)
    assert brentq(lambda t: ratio_at(int(t)) - 6.0, LONG, 2 * LONG) == pytest.approx(195_000, abs=2000)


def ratio_at(tokens: int, model: str = LLAMA2) -> float:
    return peak_gib("full", tokens, model) / peak_gib("segmented", tokens, model)


def test_time_to_first_token() -> None:
    """Full attention and segments at both lengths, to 3 %; so are the modes that the paper compares with."""
    for tokens, full, segmented in zip(LENGTHS, TTFT_S["full"], TTFT_S["segmented"], strict=True):
        assert full_s(tokens) == pytest.approx(full, rel=0.03)
        assert segmented_s(tokens) == pytest.approx(segmented, rel=0.03)
    rows = table(("full", "duo", "streaming", TRAINED), (TRAINED,), LLAMA2, "a100")
    for mode, name in zip(rows, ("full", "duo", "streaming", "segmented"), strict=True):
        for tokens, published in zip(LENGTHS, TTFT_S[name], strict=True):
            assert rest_time_s(mode, tokens, 0) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(
    ("segment", "tokens"), [(1024, 63_500), (2048, 33_600), (4096, 20_000), (8192, 16_200), (16384, 20_400)]
)
def test_where_segments_become_faster(segment: int, tokens: float) -> None:
    crossing = brentq(lambda t: full_s(t) - segmented_s(t, segment), 8192, LONG)
    assert crossing == pytest.approx(tokens, abs=500 if segment == 4096 else 0.005 * tokens)


def test_times_at_128k() -> None:
    assert full_s(LONG) == pytest.approx(35.6, abs=0.05)
    for segment, expected in ((4096, 13.85), (8192, 13.13), (1024, 22.4)):
        assert segmented_s(LONG, segment) == pytest.approx(expected, abs=0.05)


def test_what_a_token_sees() -> None:
    """S + alpha M + beta (1 - alpha) R = 4384 for both models."""
    for model in MODELS.values():
        assert 4096 + visible_prefix(model, 512, 512) == pytest.approx(4384)


def test_the_pools_buffer_doubles() -> None:
    assert [pool_entries(tokens) for tokens in (1, 8192, 8193, 32_768, 100_000)] == [
        8192,
        8192,
        16_384,
        32_768,
        LONG,
    ]


def test_128k_on_80_gib() -> None:
    """Full attention needs 101 GiB and cannot run; the paper's segments need 22.06; chunks 76.6 of weights and cache."""
    assert peak_gib("full", LONG) == pytest.approx(101.0, abs=0.1)
    assert peak_gib("segmented", LONG) == pytest.approx(22.06, abs=0.01)
    chunked, full, mine = table(("chunked-2048", "full", TRAINED), (TRAINED,), LLAMA2, "a100")
    weights = MODELS[LLAMA2].weights_gib
    assert weights + LONG * MODELS[LLAMA2].kv_bytes / GIB == pytest.approx(76.55, abs=0.05)
    assert weights + peak_bytes(chunked, LONG, 1) / GIB > 76.55
    for mode, lost in ((full, 1.0), (mine, 0.0)):
        env = lone(LONG, ("full",) if lost else (TRAINED,))
        ended = False
        env.reset(seed=0)
        env.step(0)
        while not ended:
            _, _, ended, cut, info = env.step(int(np.flatnonzero(env.action_masks())[0]))
            ended |= cut
        assert info["metrics"]["lost"] == lost
        if not lost:
            assert info["metrics"]["peak_memory_gib"] == pytest.approx(22.06, abs=0.01)
        assert peak_bytes(mode, LONG, 1) / GIB + weights > (80.0 if lost else 22.0)


def lone(tokens: int, modes: tuple[str, ...], **kwargs: object) -> SegmentedPrefillEnv:
    """One request of this length on the paper's card, with one token of output."""
    lengths = {"prompt_least": tokens, "prompt_most": tokens, "output_mean": 1.0, "output_most": 1}
    return SegmentedPrefillEnv(scenario="paper", requests=1, modes=modes, **lengths, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [*LENGTHS, LONG])
def test_an_episode_of_one_prompt_is_the_closed_form(tokens: int) -> None:
    """Time to first token and peak memory, of full attention (where it fits) and of the paper's segments."""
    for name, method, seconds in (
        (TRAINED, "segmented", segmented_s(tokens)),
        ("full", "full", full_s(tokens)),
    ):
        if peak_gib(method, tokens) > 80.0:
            continue
        env = lone(tokens, (name,))
        _, info = env.reset(seed=0)
        ended = False
        while not ended:
            *_, ended, _, info = env.step(int(np.flatnonzero(info["action_mask"])[0]))
        assert info["metrics"]["ttft_mean_s"] == pytest.approx(seconds, rel=1e-9)
        assert info["metrics"]["peak_memory_gib"] == pytest.approx(peak_gib(method, tokens), rel=1e-6)


def test_scores() -> None:
    """LongBench-E of the 80K model over full attention's 23.38, and what training on segments is worth."""
    full = 23.38
    assert quality_of(TRAINED, (TRAINED,)) == pytest.approx(24.17 / full, abs=1e-3)
    assert quality_of("segmented-4096-0-512", names()[8:]) == pytest.approx(23.27 / full, abs=1e-3)
    assert quality_of("segmented-4096-1024-512", names()[8:]) == pytest.approx(24.19 / full, abs=1e-3)
    assert quality_of("segmented-4096-512-0", names()[8:]) == pytest.approx(22.63 / full, abs=1e-3)
    assert QUALITY["duo"] == pytest.approx(22.94 / full, abs=1e-3)
    assert QUALITY["streaming"] == pytest.approx(21.56 / full, abs=1e-3)
    assert pytest.approx(11.91 / full, abs=1e-3) == UNTRAINED_QUALITY


def test_segments_without_training_do_not_pay() -> None:
    """Whatever S is: the same request is worth 1 in the trained mode and less than nothing in one that nobody trained."""
    for name in ("segmented-2048-512-512", "segmented-8192-512-512", TRAINED):
        env = lone(LENGTHS[1], (name,), classes=((1.0, 0.98, 4.0),), memory_weight=0.0)
        _, info = env.reset(seed=0)
        ended, total = False, 0.0
        while not ended:
            _, reward, ended, _, info = env.step(int(np.flatnonzero(info["action_mask"])[0]))
            total += reward
        assert total == pytest.approx(1.0 if name == TRAINED else 1.0 - 10.0 * (0.98 - 0.509), abs=1e-6)


def test_what_the_default_trains() -> None:
    assert SegmentedPrefill(scenario="paper").scenario.trained == (TRAINED,)


OURS: dict[str, Callable[[], float]] = {"segmented/ratio-128k": lambda: ratio_at(LONG)}
"""What the paper prints and is not reached, as it is here."""


@every_deviation("segmented")
def test_deviations(row: Deviation) -> None:
    check(row, OURS)
