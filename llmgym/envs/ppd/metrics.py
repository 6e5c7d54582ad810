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
def earned(number: Any, me: Any) -> float:
    """Reward of the episode so far."""
    if number.reward == SLO:
        return me.met / max(me.later, 1) - me.penalty
    gain = number.w_ttft * me.ttft_gain - number.w_tpot * (me.tpot_loss + me.crowd_loss)
    return gain - number.timeout_cost * me.failed - me.penalty


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: NDArray[np.float64]) -> None:
    """Write the episode's metrics: `METRICS`; NaN where there is nothing to take them of, see there."""
    me = state.lane[lane]
    number = params.number[0]
    duration = me.clock_s
    ttft, e2e, tpot = state.scratch[lane, 0], state.scratch[lane, 1], state.scratch[lane, 2]
    count, spoken, first, first_s = 0, 0, 0, 0.0
    for c in range(me.conversations):
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
    for n in range(number.nodes):
        node = state.node[lane, n]
        moved += state.link[lane, n].sent_bytes
        # what is running has been booked to its end
        busy = node.busy_s - (node.at_s - me.clock_s if node.at_s < math.inf else 0.0)
        if n < number.ps:
            p_busy += busy
        else:
            d_busy += busy
            peak = max(peak, node.kv_peak)
    out[0] = me.conversations
    out[1] = me.asked
    out[2] = me.done
    out[3] = me.failed
    out[4] = me.later_asked
    out[5] = me.later_done
    out[6] = me.later_failed
    out[7] = ratio(me.done, me.done + me.failed)
    out[8] = ratio(me.local, me.later_asked - (1 if me.current >= 0 else 0))
    out[9] = mean(ttft[:count])
    out[10] = quantile(ttft[:count], 0.5)
    out[11] = quantile(ttft[:count], 0.99)
    out[12] = ratio(first_s, first)
    out[13] = mean(tpot[:spoken])
    out[14] = quantile(tpot[:spoken], 0.99)
    out[15] = mean(e2e[:count])
    out[16] = quantile(e2e[:count], 0.5)
    out[17] = quantile(e2e[:count], 0.99)
    out[18] = ratio(me.met, me.later)
    out[19] = ratio(me.met, duration)
    out[20] = ratio(me.done, duration)
    out[21] = ratio(me.output_tokens, duration)
    out[22] = ratio(me.ttft_gain, me.later_done)
    out[23] = ratio(me.tpot_loss, me.later_done)
    out[24] = ratio(me.crowd_loss, me.later_done)
    out[25] = moved
    out[26] = me.p_tokens
    out[27] = me.d_tokens
    out[28] = ratio(ratio(p_busy, duration), number.ps)
    out[29] = ratio(d_busy, duration) / (number.nodes - number.ps)
    out[30] = peak / number.kv_capacity
    out[31] = me.evictions
    out[32] = me.preemptions
    out[33] = me.invalid
    out[34] = me.penalty
    out[35] = me.clock_s
    out[36] = me.checksum
