"""Parts of the engine by themselves: areas, overflow, what is lost and what is kept."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.core.lanes import HOLD, Lanes
from llmgym.envs.kv import audit
from llmgym.envs.kv.queue.env import KVQueue
from llmgym.serving import overflow
from llmgym.serving.capacity import exact_area
from llmgym.serving.requests import FIRST_TOKENS, chunks_of, remaining_area

CHUNKS = (1, 2, 3, 5, 16, 512)
CONFIG = {
    (first, chunk): KVQueue(scenario="tiny", requests=2, chunk=chunk, first_token=first).params.config[0]
    for first in FIRST_TOKENS
    for chunk in CHUNKS
}


def left(first: str, chunk: int, prompt: int, prefilled: int, produced: int, kept: int, output: int) -> int:
    """Area left, by running the request alone. `prompt` includes the kept output, which is prefilled again."""
    total = 0
    own = prompt - kept  # what the user wrote
    while prefilled < prompt:
        prefilled += min(chunk, prompt - prefilled)
        total += prefilled
        if prefilled == prompt and first != "next-batch":
            produced += 1
            total += 1 if first == "stored" else 0
    while produced < output:
        produced += 1
        # The batch that yields token j writes the cache entry of token j, or of j - 1 where the entry follows a batch later.
        total += own + produced - (1 if first == "with-prefill" else 0)
    return total


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(FIRST_TOKENS)),
    st.sampled_from(CHUNKS),
    st.integers(1, 700),
    st.integers(0, 40),
    st.integers(1, 60),
    st.data(),
)
def test_remaining_area_is_the_sum_over_the_batches_that_are_left(
    first: str, chunk: int, own: int, kept: int, more: int, data: Any
) -> None:
    config = CONFIG[first, chunk]
    prompt, output = own + kept, kept + more
    prefilled = data.draw(st.integers(0, prompt - 1))
    assert remaining_area(config, prompt, prefilled, kept, kept, 0, output) == left(
        first, chunk, prompt, prefilled, kept, kept, output
    )
    produced = data.draw(st.integers(kept, output))
    if produced > 0 or first == "next-batch":
        assert remaining_area(config, prompt, prompt, kept, produced, 1, output) == left(
            first, chunk, prompt, prompt, produced, kept, output
        )
    if kept == 0 and first != "stored":
        assert exact_area(own, output, chunk, FIRST_TOKENS[first][0]) == left(
            first, chunk, own, 0, 0, 0, output
        )


@pytest.mark.parametrize("chunk", CHUNKS)
def test_number_of_chunks_is_rounded_up(chunk: int) -> None:
    config = CONFIG["next-batch", chunk]
    for tokens in [*range(200), *(k * chunk + d for k in (10**3, 10**5, 10**6) for d in (-1, 0, 1))]:
        if tokens > 0:
            assert chunks_of(config, tokens) == -(-tokens // chunk)


def crowded(**settings: Any) -> Lanes:
    """A cache much too small for what arrives, at full load, a hundred batches in."""
    arguments = {
        "scenario": "tiny",
        "kv_capacity": 400,
        "load": 1.5,
        "requests": 300,
        "action": "rule",
        **settings,
    }
    lanes = Lanes(KVQueue(**arguments), 1)
    lanes.reset(None, [3])
    lanes.load_action(0)
    for _ in range(100):
        lanes.step(HOLD)
    return lanes


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
def test_eviction_frees_the_cache_and_keeps_or_drops_the_output(first_token: str) -> None:
    lanes = crowded(rules=("wc-fcfs",), overflow="recompute", first_token=first_token)
    params = lanes.simulation.params
    for keep in (True, False):
        for index in range(int(lanes.state.lane[0]["residents"])):
            state = copy.deepcopy(lanes.state)
            episode = state.lane[0]
            r = state.resident[0, index].copy()
            before = episode.copy()
            produced = int(episode["tick"] - r["base"]) if r["decoding"] else int(r["kept"])
            lag = 1 if first_token == "with-prefill" else 0
            cached = int(r["prompt"] - r["kept"]) + produced - lag if r["decoding"] else int(r["prefilled"])
            others = [k for k in state.resident[0, : before["residents"]]["request"] if k != r["request"]]
            assert overflow.evict(state, params, 0, index, keep) == cached
            assert episode["used"] == before["used"] - cached
            assert episode["dropped"] == before["dropped"] + cached
            assert episode["preemptions"] == before["preemptions"] + 1
            assert episode["waiting"] == before["waiting"] + 1
            assert state.request["kept"][0, r["request"]] == (produced if keep else 0)
            assert state.resident[0, : episode["residents"]]["request"].tolist() == others


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
def test_recompute_prefills_again_but_decodes_each_token_once(first_token: str) -> None:
    lanes = crowded(rules=("wc-fcfs",), overflow="recompute", first_token=first_token)
    while not lanes.buffers.ended[0]:
        lanes.step(HOLD)
    episode, requests = lanes.state.lane[0], lanes.state.request[0]
    assert episode["preemptions"] > 20
    assert episode["decoded"] == requests["output"].sum()
    assert episode["prefilled"] > requests["prompt"].sum()


@pytest.mark.parametrize("rule", ["alpha-clearing", "beta-clearing"])
def test_clearing_loses_the_output_which_is_decoded_again(rule: str) -> None:
    lanes = crowded(rules=(rule,), overflow="recompute", chunk=50)
    episode = lanes.state.lane[0]
    for _ in range(1000):
        lanes.step(HOLD)
        assert not lanes.state.request["kept"][0].any()
        assert episode["decoded"] >= audit.queue(lanes.simulation, lanes.state, 0)["work_done"]
    assert episode["preemptions"] > 20
    assert episode["decoded"] > audit.queue(lanes.simulation, lanes.state, 0)["work_done"]


def test_clearing_some_gets_everybody_served_where_clearing_all_repeats_itself() -> None:
    """Why beta-clearing is there: whoever clears everything admits the same requests again, and overflows again."""
    done = []
    for rule in ("alpha-clearing", "beta-clearing"):
        lanes = crowded(rules=(rule,), overflow="recompute", chunk=50)
        for _ in range(3000):
            lanes.step(HOLD)
        done.append(int(lanes.state.lane[0]["done"]))
    assert done[1] == 300 > 2 * done[0]


def test_pauses_lose_nothing() -> None:
    lanes = crowded(rules=("wc-fcfs",), overflow="pause")
    paused = 0
    while not lanes.buffers.ended[0]:
        paused += int(lanes.state.lane[0]["paused"])
        lanes.step(HOLD)
    episode, requests = lanes.state.lane[0], lanes.state.request[0]
    assert paused > 20 and episode["preemptions"] == 0 == episode["dropped"]
    assert episode["decoded"] == requests["output"].sum() and episode["prefilled"] == requests["prompt"].sum()


EVERY_RULE = (
    "wc-fcfs",
    "wc-skip",
    "vllm",
    "mc-sf",
    "sarathi",
    "orca",
    "vllm-prefill-only",
    "faster-transformer",
    "alpha-clearing",
    "beta-clearing",
)


def switch_at_random(rules: tuple[str, ...], overflow: str, seed: int, every: int = 1) -> int:
    """Change the rule before every so many batches; the cache must stay what its residents hold.

    Returns batches with an overflow.
    """
    rng = np.random.default_rng(seed)
    simulation = KVQueue(
        scenario="tiny",
        load=1.4,
        requests=200,
        action="rule",
        rules=rules,
        overflow=overflow,
        kv_capacity=400,
        budget=int(rng.integers(20, 200)),
    )
    lanes = Lanes(simulation, 1)
    lanes.reset(None, [seed])
    overflows = 0
    for batch in range(4000):
        if batch % every == 0:
            lanes.load_action(int(rng.integers(len(rules))))
        before = int(lanes.state.lane[0]["preemptions"])
        lanes.step(HOLD)
        counts = audit.queue(simulation, lanes.state, 0)
        assert counts["kv_used"] == counts["kv_resident"]
        assert counts["kv_planned"] <= counts["kv_capacity"]
        assert lanes.state.lane[0]["batch_used"] <= 400
        overflows += int(lanes.state.lane[0]["paused"] > 0 or lanes.state.lane[0]["preemptions"] > before)
        if lanes.buffers.ended[0]:
            assert counts["done"] == 200
            return overflows
    raise AssertionError(f"{counts['done']} of 200 requests done")


@pytest.mark.parametrize("seed", range(5))
def test_any_sequence_of_rules_keeps_account_under_recompute(seed: int) -> None:
    assert switch_at_random(EVERY_RULE, "recompute", seed) > 0


@pytest.mark.parametrize("seed", range(5))
def test_any_sequence_of_rules_that_pause_keeps_account(seed: int) -> None:
    assert switch_at_random(EVERY_RULE[:-2], "pause", seed) > 0


@pytest.mark.parametrize("rule", ["alpha-clearing", "beta-clearing"])
def test_clearing_takes_over_from_a_rule_that_pauses(rule: str) -> None:
    """For a while each time: filling the cache and clearing all of it in turns, batch by batch, would serve nobody."""
    for seed in range(20):
        assert switch_at_random(("wc-fcfs", rule), "pause", seed, every=30) > 0
