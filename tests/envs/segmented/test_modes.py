"""Modes of a prefill: their steps add up to the closed forms, and wrong names are told."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym import profiles
from llmgym.envs.segmented.law import DEVICES, GIB, MODELS, device, peak_gib, segmented_s
from llmgym.envs.segmented.modes import (
    QUALITY,
    TRAINED,
    UNTRAINED_QUALITY,
    WHOLE,
    answer_quality,
    check_modes,
    check_trained,
    kept_bytes,
    names,
    parse,
    peak_bytes,
    quality_of,
    resident_bytes,
    rest_time_s,
    running_bytes,
    step_time_s,
    step_tokens,
    table,
)
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.profiles.cost import dense_s

ROWS = {model: table(names(), (TRAINED,), model, "a100") for model in MODELS}


@settings(max_examples=150, deadline=None)
@given(
    mode=st.integers(0, len(names()) - 1),
    model=st.sampled_from(sorted(MODELS)),
    prompt=st.integers(1, 300_000),
    output=st.integers(1, 4096),
)
def test_steps_add_up(mode: int, model: str, prompt: int, output: int) -> None:
    """The time of all steps is that of the rest, the most that is held is the peak, and all tokens are done."""
    row: Any = ROWS[model][mode]
    done, spent_s, held, before = 0, 0.0, 0, 0
    start = rest_time_s(row, prompt, 0)
    while done < prompt:
        assert rest_time_s(row, prompt, done) == pytest.approx(start - spent_s, rel=1e-9, abs=1e-9)
        n = step_tokens(row, prompt, done)
        assert 0 < n <= row["size"]
        running, resident = running_bytes(row, prompt, done), resident_bytes(row, done)
        assert running > resident >= before
        spent_s += step_time_s(row, prompt, done)
        held, before, done = max(held, running), resident, done + n
    assert done == prompt and spent_s == pytest.approx(start, rel=1e-9)
    kept = kept_bytes(row, prompt, output)
    # the last chunk may be short: then the peak is the bound that is reached with a whole one
    assert max(held, kept) <= peak_bytes(row, prompt, output)
    if prompt % min(int(row["size"]), prompt) == 0:
        assert max(held, kept) == peak_bytes(row, prompt, output)


def test_whole_segments_are_the_published_form() -> None:
    row: Any = ROWS["llama-2-7b"][names().index(TRAINED)]
    for tokens in (4096, 16_384, 131_072):
        assert rest_time_s(row, tokens, 0) == pytest.approx(segmented_s(tokens), rel=1e-12)
        expected = (peak_gib("segmented", tokens) - MODELS["llama-2-7b"].weights_gib) * GIB
        assert peak_bytes(row, tokens, 1) == pytest.approx(expected, rel=1e-6)


def test_exact_attention_in_chunks_is_that_of_the_whole() -> None:
    """Plus 5 ms a chunk."""
    full: Any = ROWS["llama-2-7b"][0]
    for chunk in (512, 8192):
        row: Any = ROWS["llama-2-7b"][names().index(f"chunked-{chunk}")]
        whole = rest_time_s(full, 32_768, 0)
        assert rest_time_s(row, 32_768, 0) == pytest.approx(whole + 0.005 * 32_768 / chunk, rel=1e-12)


def test_segments_need_less_the_smaller_they_are_and_see_nothing_without_a_prefix() -> None:
    rows = dict(zip(names(), ROWS["llama-2-7b"], strict=True))
    small, large = rows["segmented-2048-512-512"], rows["segmented-8192-512-512"]
    assert peak_bytes(small, 65_536, 1) < peak_bytes(large, 65_536, 1)
    bare = rows["segmented-4096-0-0"]
    assert bare["prefix_s"] == bare["token_bytes"] == bare["carried_bytes"] == bare["step_s"] == 0
    assert peak_bytes(bare, 8192, 1) == peak_bytes(bare, 262_144, 1)


def test_quality() -> None:
    rows = dict(zip(names(), ROWS["llama-2-7b"], strict=True))
    assert rows[TRAINED]["quality"] == 1.034
    untrained = rows["segmented-8192-512-512"]
    assert untrained["quality"] == UNTRAINED_QUALITY
    # what fits one segment is executed as full attention is
    assert answer_quality(untrained, 8192 - 10, 10) == 1.0
    assert answer_quality(untrained, 8192 - 10, 11) == UNTRAINED_QUALITY
    assert answer_quality(rows["streaming"], 100, 10) == QUALITY["streaming"]
    both = quality_of("segmented-2048-0-0", ("segmented-2048-0-0",))
    assert both == pytest.approx(0.995 * 0.968 / 1.034)


def test_names_and_their_parts() -> None:
    assert len(names()) == 26 and len(set(names())) == 26
    assert parse("segmented-2048-0-512") == ("segmented", 2048, 0, 512)
    assert parse("chunked-512") == ("chunked", 512, 0, 0) and parse("full").size == WHOLE
    with pytest.raises(UnknownName, match="chunked-100"):
        parse("chunked-100")
    for wrong in ((), "full", [3], ("full", "full")):
        with pytest.raises(InvalidArgument, match="modes="):
            check_modes("modes", wrong)
    with pytest.raises(InvalidArgument, match="only segmented"):
        check_trained("trained", ("full",))
    check_trained("trained", ())


def test_devices() -> None:
    """Measured ones reach what the profile says: N parameters over 8192 tokens take the time that was measured."""
    profile = profiles.load("h200/llama-3.1-8b-measured")
    gpu, model = device("h200"), MODELS["llama-3.1-8b"]
    seconds = 2 * model.parameters * 8192 / gpu.dense_flops
    assert seconds == pytest.approx(dense_s(profile.step_cost(), 8192))
    assert gpu.memory_gib == pytest.approx(139.8, abs=0.1)
    assert 2e14 < gpu.attention_flops < gpu.dense_flops < 9e14 and 2e12 < gpu.bytes_per_s < 4.8e12
    assert device("a100-40").memory_gib == 40.0
    with pytest.raises(UnknownName, match="tpu"):
        device("tpu")
    for name in DEVICES:
        row = table((TRAINED,), (), "llama-3.1-8b", name)[0]
        assert np.isfinite(rest_time_s(row, 100_000, 0))


def test_wrong_lengths_are_told() -> None:
    with pytest.raises(InvalidArgument, match="tokens=0"):
        peak_gib("full", 0)
    with pytest.raises(UnknownName, match="flash"):
        peak_gib("flash", 10)
    with pytest.raises(UnknownName, match="gpt"):
        peak_gib("full", 10, "gpt")
