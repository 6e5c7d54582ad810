"""What an episode of a PPD cluster adds up to: its metrics and its reward."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.statistics import mean, quantile, ratio
from llmgym.envs.ppd.state import SLO, Params, State
from llmgym.serving.requests import time_per_token


@kernel
def earned(config: Any, episode: Any) -> float:
    """Reward of the episode so far."""
    if config.reward == SLO:
        return episode.met / max(episode.later, 1) - episode.penalty
    gain = config.w_ttft * episode.ttft_gain - config.w_tpot * (episode.tpot_loss + episode.crowd_loss)
    return gain - config.timeout_cost * episode.failed - episode.penalty


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics: `METRICS`; NaN where there is nothing to take them of, see there."""
    episode = state.lane[lane]
    config = params.config[0]
    duration = episode.clock_s
    ttft, e2e, tpot = state.scratch[lane, 0], state.scratch[lane, 1], state.scratch[lane, 2]
    count, spoken, first, first_s = 0, 0, 0, 0.0
    for c in range(episode.conversations):
        talk = state.conversation[lane, c]
        asked = state.request[lane, c]
        if asked.e2e_s >= 0.0:
            first += 1
            first_s += asked.ttft_s
        for k in range(min(talk.turn, talk.turns) - 1):
            asked = state.request[lane, talk.later + k]
            ttft[count], e2e[count] = asked.ttft_s, asked.e2e_s
            count += 1
            each = time_per_token(asked.ttft_s, asked.e2e_s, asked.output)
            if not math.isnan(each):
                tpot[spoken] = each
                spoken += 1
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
    out[0] = episode.conversations
    out[1] = episode.asked
    out[2] = episode.done
    out[3] = episode.failed
    out[4] = episode.later_asked
    out[5] = episode.later_done
    out[6] = episode.later_failed
    out[7] = ratio(episode.done, episode.done + episode.failed)
    out[8] = ratio(episode.local, episode.later_asked - (1 if episode.current >= 0 else 0))
    out[9] = mean(ttft[:count])
    out[10] = quantile(ttft[:count], 0.5)
    out[11] = quantile(ttft[:count], 0.99)
    out[12] = ratio(first_s, first)
    out[13] = mean(tpot[:spoken])
    out[14] = quantile(tpot[:spoken], 0.99)
    out[15] = mean(e2e[:count])
    out[16] = quantile(e2e[:count], 0.5)
    out[17] = quantile(e2e[:count], 0.99)
    out[18] = ratio(episode.met, episode.later)
    out[19] = ratio(episode.met, duration)
    out[20] = ratio(episode.done, duration)
    out[21] = ratio(episode.output_tokens, duration)
    out[22] = ratio(episode.ttft_gain, episode.later_done)
    out[23] = ratio(episode.tpot_loss, episode.later_done)
    out[24] = ratio(episode.crowd_loss, episode.later_done)
    out[25] = moved
    out[26] = episode.p_tokens
    out[27] = episode.d_tokens
    out[28] = ratio(ratio(p_busy, duration), config.ps)
    out[29] = ratio(d_busy, duration) / (config.nodes - config.ps)
    out[30] = peak / config.kv_capacity
    out[31] = episode.evictions
    out[32] = episode.preemptions
    out[33] = episode.invalid
    out[34] = episode.penalty
    out[35] = episode.clock_s
    out[36] = episode.checksum
