"""What an episode of a PPD cluster adds up to: its metrics and its reward.

TTFT, TPOT and E2E are of later turns, as in the paper; `ttft_first_mean_s` is of first turns.
"""

import math

from llmgym.core.jit import kernel
from llmgym.core.records import Record, metric
from llmgym.core.statistics import mean, quantile, ratio
from llmgym.envs.ppd.state import SLO, Config, Episode, Params, State
from llmgym.serving.requests import time_per_token

_LATER = "NaN where no later turn has completed"
_TOKENS = "NaN where no later turn with two tokens or more has completed"
_TIME = "NaN over no time"


class Metrics(Record):
    """The metrics of an episode."""

    conversations: float = metric("Conversations of the episode.")
    requests: float = metric("Requests, first turns when their conversation begins.")
    completed: float = metric("Requests that have completed.")
    timeouts: float = metric("Requests that have timed out.")
    later_turns: float = metric("Later turns that have come.")
    later_completed: float = metric("Later turns that have completed.")
    later_timeouts: float = metric("Later turns that have timed out.")
    success: float = metric("Share of the requests that completed; NaN where no turn has ended.", best="max")
    local_fraction: float = metric(
        "Share of the routed later turns that were prefilled where they decode; NaN where none was routed.",
        best="max",
    )
    ttft_mean_s: float = metric(f"Mean TTFT of later turns, seconds; {_LATER}.", best="min")
    ttft_p50_s: float = metric(f"Median TTFT of later turns, seconds; {_LATER}.")
    ttft_p99_s: float = metric(f"99 % quantile of the TTFT of later turns, seconds; {_LATER}.", best="min")
    ttft_first_mean_s: float = metric("Mean TTFT of first turns, seconds; NaN where none has completed.")
    tpot_mean_s: float = metric(f"Mean TPOT of later turns, seconds; {_TOKENS}.", best="min")
    tpot_p99_s: float = metric(f"99 % quantile of the TPOT of later turns, seconds; {_TOKENS}.")
    e2e_mean_s: float = metric(f"Mean time to the last token of later turns, seconds; {_LATER}.", best="min")
    e2e_p50_s: float = metric(f"Median time to the last token of later turns, seconds; {_LATER}.")
    e2e_p99_s: float = metric(
        f"99 % quantile of the time to the last token of later turns, seconds; {_LATER}."
    )
    slo_attainment: float = metric(
        "Share of all later turns of the episode within both objectives; NaN where it has none.", best="max"
    )
    goodput_rps: float = metric(f"Later turns within both objectives a second; {_TIME}.")
    throughput_rps: float = metric(f"Completed requests a second; {_TIME}.")
    output_tokens_per_s: float = metric(f"Tokens of completed answers a second; {_TIME}.")
    ttft_gain: float = metric(f"Mean share of the TTFT through P that later turns gained; {_LATER}.")
    tpot_loss: float = metric(f"Mean share of the TPOT through P that later turns lost; {_LATER}.")
    crowd_loss: float = metric(f"Mean share of TPOT that the neighbours of later turns lost; {_LATER}.")
    kv_moved_bytes: float = metric("Bytes of KV cache put on links.", best="min")
    prefilled_p_tokens: float = metric("Tokens prefilled on P.")
    prefilled_d_tokens: float = metric("Tokens prefilled where they decode.")
    p_utilization: float = metric(f"Share of time that P nodes work; {_TIME}, and without P nodes.")
    d_utilization: float = metric(f"Share of time that decoding nodes work; {_TIME}.")
    kv_peak: float = metric("Most of a decoding node's cache that was full at once, as a share.")
    evictions: float = metric("Conversations that caches have thrown out.")
    preemptions: float = metric("Sequences that lost their place in a batch.")
    invalid_actions: float = metric("Masked actions.")
    penalty: float = metric("Cost of masked actions.")
    duration_s: float = metric("Length of the episode, seconds.")
    world_checksum: float = metric("A number that tells one world from another.")


HEADLINE = {
    name: Metrics.headline()[name]
    for name in (
        "ttft_mean_s",
        "ttft_p99_s",
        "tpot_mean_s",
        "e2e_mean_s",
        "slo_attainment",
        "success",
        "kv_moved_bytes",
        "local_fraction",
    )
}
"""The metrics that tables and pictures begin with, in their order, each with the better direction."""


@kernel
def earned(config: Config, episode: Episode) -> float:
    """Reward of the episode so far."""
    if config.reward == SLO:
        return episode.met / max(episode.later, 1) - episode.penalty
    gain = config.w_ttft * episode.ttft_gain - config.w_tpot * (episode.tpot_loss + episode.crowd_loss)
    return gain - config.timeout_cost * episode.failed - episode.penalty


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the metrics, written.
    """
    _write_times(state, lane, out)
    episode = state.lane[lane]
    config = params.config[0]
    duration = episode.clock_s
    moved, p_busy, d_busy, peak = 0.0, 0.0, 0.0, 0
    for n in range(config.nodes):
        node = state.node[lane, n]
        moved += state.link[lane, n].sent_bytes
        # what is running has been booked to its end
        busy = node.busy_s - (node.at_s - episode.clock_s if node.at_s < math.inf else 0.0)
        if n < config.ps:
            p_busy += busy
        else:
            d_busy += busy
            peak = max(peak, node.kv_peak)
    out.conversations = episode.conversations
    out.requests, out.completed, out.timeouts = episode.requests, episode.done, episode.failed
    out.later_turns = episode.later_requests
    out.later_completed, out.later_timeouts = episode.later_done, episode.later_failed
    out.success = ratio(episode.done, episode.done + episode.failed)
    out.local_fraction = ratio(episode.local, episode.later_requests - (1 if episode.current >= 0 else 0))
    out.slo_attainment = ratio(episode.met, episode.later)
    out.goodput_rps = ratio(episode.met, duration)
    out.throughput_rps = ratio(episode.done, duration)
    out.output_tokens_per_s = ratio(episode.output_tokens, duration)
    out.ttft_gain = ratio(episode.ttft_gain, episode.later_done)
    out.tpot_loss = ratio(episode.tpot_loss, episode.later_done)
    out.crowd_loss = ratio(episode.crowd_loss, episode.later_done)
    out.kv_moved_bytes = moved
    out.prefilled_p_tokens, out.prefilled_d_tokens = episode.p_tokens, episode.d_tokens
    out.p_utilization = ratio(ratio(p_busy, duration), config.ps)
    out.d_utilization = ratio(d_busy, duration) / (config.nodes - config.ps)
    out.kv_peak = peak / config.kv_capacity
    out.evictions, out.preemptions = episode.evictions, episode.preemptions
    out.invalid_actions, out.penalty = episode.invalid, episode.penalty
    out.duration_s = duration
    out.world_checksum = episode.checksum


@kernel
def _write_times(state: State, lane: int, out: Metrics) -> None:
    """Write means and quantiles of the times of completed turns."""
    episode = state.lane[lane]
    ttft, e2e, tpot = state.scratch[lane, 0], state.scratch[lane, 1], state.scratch[lane, 2]
    count, several, first, first_s = 0, 0, 0, 0.0
    for c in range(episode.conversations):
        conversation = state.conversation[lane, c]
        opening = state.request[lane, c]
        if opening.e2e_s >= 0.0:
            first += 1
            first_s += opening.ttft_s
        for k in range(min(conversation.turn, conversation.turns) - 1):
            request = state.request[lane, conversation.later + k]
            ttft[count], e2e[count] = request.ttft_s, request.e2e_s
            count += 1
            each = time_per_token(request.ttft_s, request.e2e_s, request.output)
            if not math.isnan(each):
                tpot[several] = each
                several += 1
    out.ttft_mean_s = mean(ttft[:count])
    out.ttft_p50_s = quantile(ttft[:count], 0.5)
    out.ttft_p99_s = quantile(ttft[:count], 0.99)
    out.ttft_first_mean_s = ratio(first_s, first)
    out.tpot_mean_s = mean(tpot[:several])
    out.tpot_p99_s = quantile(tpot[:several], 0.99)
    out.e2e_mean_s = mean(e2e[:count])
    out.e2e_p50_s = quantile(e2e[:count], 0.5)
    out.e2e_p99_s = quantile(e2e[:count], 0.99)
