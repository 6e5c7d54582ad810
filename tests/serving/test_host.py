"""The cache in the host's memory: by hand, what must always hold, and where it is worth its copies."""

from dataclasses import dataclass, fields

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from llmgym import profiles
from llmgym.cli import main
from llmgym.errors import InvalidArgument
from llmgym.profiles.profile import Profile
from llmgym.serving import replay as module
from llmgym.serving.replay import replay
from llmgym.serving.rules import Rule
from llmgym.workloads import Rows

OUT_S, BACK_S = 0.01, 0.02
MEASURED = profiles.load("h100/llama-3.1-8b-measured")


@dataclass(frozen=True)
class Copying(Profile):
    """A profile whose copies take a round time a token."""

    def copy_s_per_token(self) -> tuple[float, float]:
        return OUT_S, BACK_S


def copying(profile):
    return Copying(**{part.name: getattr(profile, part.name) for part in fields(Profile)})


SECOND = copying(profiles.constant(1.0))
TWO = Rows([0.0, 0.0], [20, 20], [30, 20])
"""In four blocks: after 13 steps both hold 32 tokens, and the first needs a third block. The second comes back after the first,
which has its last token in step 30, with 33 tokens of which 32 have been computed, and has 7 to produce.
"""


def served(rows, profile=SECOND, **changes):
    shared = {"kv_capacity": 64, "scheduling": "sync", "log": True}
    found = replay(rows, profile, **(shared | changes))
    assert found.unfinished == 0
    return found


@pytest.mark.parametrize(("host_tokens", "copied"), [(0, 0), (31, 0), (32, 32), (1000, 32)])
def test_whoever_is_preempted_goes_to_the_host_and_back(host_tokens, copied):
    found = served(TWO, host_tokens=host_tokens)
    assert found.preemptions == 1 and (found.copied_out, found.copied_in) == (copied, copied)
    assert [step.preempted for step in found.steps].index((1,)) == 13
    assert found.steps[30].run == ((1, 1 if copied else 33),)
    np.testing.assert_allclose(found.last_s, [30 + copied * OUT_S, 37 + copied * (OUT_S + BACK_S)], rtol=1e-6)
    # the copies are in the steps that they are decided in
    begins = np.array([step.time_s for step in found.steps])
    np.testing.assert_allclose(begins[14] - begins[13], 1 + copied * OUT_S)
    np.testing.assert_allclose(begins[31] - begins[30], 1 + copied * BACK_S)


def test_half_a_prompt_is_kept_too():
    """The second has computed 16 of 40 tokens when the first needs a block more."""
    rows = Rows([0.0, 0.0], [15, 40], [4, 1])
    shared = {"kv_capacity": 48, "budget": 31, "rule": Rule("own", check="first-chunk")}
    for host_tokens, runs in ((0, [16, 31, 9]), (16, [16, 24])):
        found = served(rows, host_tokens=host_tokens, **shared)
        assert found.preemptions == 1
        assert [n for step in found.steps for number, n in step.run if number == 1] == runs


@pytest.mark.parametrize(("host_tokens", "copied"), [(0, 0), (19, 0), (20, 20)])
def test_whoever_is_paused_is_swapped_or_preempted(host_tokens, copied):
    """40 tokens hold both until step 11; the second comes back when the first is done, in step 21, with 20 tokens in the cache."""
    rows = Rows([0.0, 0.0], [10, 10], [20, 20])
    found = served(rows, kv_capacity=40, block=1, overflow="pause", host_tokens=host_tokens)
    assert found.preemptions == (host_tokens == 19)
    assert (found.copied_out, found.copied_in) == (copied, copied)
    assert found.steps[20].run == ((1, 21 if host_tokens == 19 else 1),)
    np.testing.assert_allclose(found.last_s, [20 + copied * OUT_S, 29 + copied * (OUT_S + BACK_S)], rtol=1e-6)


def test_copies_are_worth_it_where_computing_is_dearer():
    """By hand: 32 tokens that are not computed save 32 c, and cost 32 (0.01 + 0.02) s."""
    for c, sooner in ((0.05, True), (0.02, False)):
        law = copying(profiles.linear(1.0, 0.0, c))
        computed, copied = (served(TWO, law, host_tokens=tokens).last_s[1] for tokens in (0, 32))
        np.testing.assert_allclose(computed - copied, 32 * c - 32 * (OUT_S + BACK_S), atol=1e-5)
        assert (copied < computed) == sooner


def overloaded(seed=1, n=120):
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(0.02, n))
    return Rows(arrival, rng.integers(1, 900, n), rng.integers(1, 400, n))


def test_on_an_h100_copies_beat_computing_again():
    shared = {"kv_capacity": 8_000, "log": False, "scheduling": "async"}
    again, copied = (served(overloaded(), MEASURED, host_tokens=tokens, **shared) for tokens in (0, 100_000))
    assert again.preemptions > 10 and copied.copied_out > 10_000 and copied.copied_out == copied.copied_in
    assert (copied.last_s - copied.arrival_s).mean() < (again.last_s - again.arrival_s).mean()


def audit(state, params, seen):
    """Recount what is on the host and in the cache."""
    limit = int(params.config["host_tokens"][0])
    block = int(params.config["block"][0])
    for rank in range(len(state.lane)):
        lane, requests = state.lane[rank], state.request[rank]
        line = state.queue[rank, 0]
        waiting = line[2 + line[0] : 2 + line[1]]
        hosted = requests["hosted"].astype(int)
        assert hosted.sum() == hosted[waiting].sum()
        assert np.all(hosted[waiting] < (requests["prompt"] + requests["kept"])[waiting])
        assert lane["hosted"] == (-(-hosted // block) * block).sum()
        assert lane["hosted"] + lane["swapped"] <= limit
        lost = lane["copied_out"] - lane["copied_in"] - lane["hosted"] - lane["swapped"]
        assert lost == 0 if seen["overflow"] == "recompute" else lost >= 0
        residents = state.resident[rank, : lane["residents"]]
        first, stored = (int(params.config[name][0]) for name in ("first", "first_stored"))
        own = residents["prompt"] - residents["kept"] + lane["tick"] - residents["base"] - (first - stored)
        kv = np.where(residents["decoding"] == 1, own, residents["prefilled"])
        blocks, paused = -(-kv // block) * block, residents["paused"]
        assert lane["used"] == blocks[paused == 0].sum() and lane["swapped"] == kv[paused != 0].sum()
        assert set(paused.tolist()) <= {0, 1}
        assert lane["used"] + lane["growth"] <= params.config["kv_capacity"][0]
        seen["most"] = max(seen["most"], int(lane["hosted"] + lane["swapped"]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    overflow=st.sampled_from(["recompute", "pause"]),
    host_tokens=st.sampled_from([1, 160, 700, 10**6]),
    scheduling=st.sampled_from(["sync", "async", "async-held"]),
    first_token=st.sampled_from(["next-batch", "with-prefill", "stored"]),
    victim=st.sampled_from(["youngest", "oldest", "largest", "least-computed"]),
    order=st.sampled_from(
        [("arrival", "whole-prompt"), ("shortest-output", "future"), ("smallest-area", "first-chunk")]
    ),
    ranks=st.integers(1, 2),
)
def test_nothing_is_lost_on_the_host(
    seed, overflow, host_tokens, scheduling, first_token, victim, order, ranks
):
    rng = np.random.default_rng(seed)
    n = 25
    output = rng.integers(1, 120, n)
    rows = Rows(np.cumsum(rng.exponential(1.0, n)), rng.integers(1, 200, n), output, output)
    held = {"overflow": overflow, "scheduling": scheduling, "block": 16}
    if overflow == "pause":
        held = {"overflow": overflow, "block": 1, "scheduling": scheduling.removesuffix("-held")}
        victim = "youngest"
    rule = Rule("own", order=order[0], check=order[1], victim=victim)
    seen = {"most": 0, "overflow": overflow}
    plain = module.plan_step

    def watched(state, params, loop):
        status = plain(state, params, loop)
        audit(state, params, seen)
        return status

    module.plan_step = watched
    try:
        found = replay(
            rows,
            SECOND,
            kv_capacity=480,
            budget=64,
            seats=8,
            rule=rule,
            ranks=ranks,
            host_tokens=host_tokens,
            first_token=first_token,
            log=True,
            **held,
        )
    finally:
        module.plan_step = plain
    assert found.unfinished == 0 and seen["most"] <= host_tokens
    assert (found.last_s > found.arrival_s).all() and found.kv_peak <= 1.0
    assert (found.copied_out == 0) == (seen["most"] == 0)
    assert found.copied_in <= found.copied_out
    if host_tokens == 10**6 and first_token == "with-prefill":
        # nothing is computed twice: each token of prompts and outputs but the last ones runs once
        ran = sum(tokens for step in found.steps for _, tokens in step.run)
        assert ran == (rows.prompt_tokens + rows.output_tokens - 1).sum()


def test_a_profile_tells_what_its_copies_take():
    """The largest copy between an H100 and pinned memory was one of 2**30 bytes in some 19.5 ms: 55 GB/s."""
    for name in ("h100/llama-3.1-8b", "h100/llama-3.1-8b-measured", "h200/llama-3.1-8b"):
        assert profiles.load(name).copy_s_per_token() == pytest.approx((131_072 / 55e9,) * 2, rel=0.03)
    one, four = (profiles.load(f"h100/{name}") for name in ("llama-3.1-8b", "llama-2-70b-tp4"))
    share = four.kv_bytes_per_token / 4 / one.kv_bytes_per_token
    assert four.copy_s_per_token() == pytest.approx(tuple(share * x for x in one.copy_s_per_token()))


@pytest.mark.parametrize(
    ("profile", "changes", "said"),
    [
        (profiles.constant(1.0), {}, "profile 'constant' does not say how many bytes a cached token takes"),
        (profiles.load("a100/llama-3.1-8b"), {}, "profile 'a100/llama-3.1-8b': no copies .* gpu='a100'"),
        (MEASURED, {"prefix_caching": True}, "host_tokens=64: copies of cached prefixes are not modelled"),
        (MEASURED, {"host_tokens": -1}, "host_tokens=-1: expected a whole number from 0"),
        (MEASURED, {"host_tokens": 0.5}, "host_tokens=0.5"),
    ],
)
def test_copies_that_are_not_modelled_are_told(profile, changes, said):
    rows = Rows([0.0], [8], [2], session=[0])
    with pytest.raises(InvalidArgument, match=said):
        replay(rows, profile, **({"kv_capacity": 96, "host_tokens": 64} | changes))


def test_the_command_copies_to_the_host(tmp_path, capsys):
    path = tmp_path / "two.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,20,30\n0,20,20\n")
    shared = ["replay", str(path), "--kv-capacity", "64", "--scheduling", "sync"]
    assert main([*shared, "--host-tokens", "64"]) == 0
    assert "1 preemptions, 32 tokens copied to the host and 32 back" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(shared) == 0
    assert "copied" not in capsys.readouterr().out
    assert main([*shared, "--host-tokens", "64", "--profile", "a100/llama-3.1-8b"]) == 2
    assert "no copies between the GPU and the host" in capsys.readouterr().err
