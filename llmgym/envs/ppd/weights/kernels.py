"""The compiled functions of PPDWeights: a weight is in force for an epoch. See `llmgym.envs.ppd.weights.env` for what they mean."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.envs.ppd.events import advance, begin_world, rate_rps
from llmgym.envs.ppd.metrics import earned, metrics_lane
from llmgym.envs.ppd.state import KINDS, OVERALL, Params, State

SCALARS = 18 + len(KINDS)


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw an episode; nobody has come yet."""
    begin_world(state, params, lane, key)
    me = state.lane[lane]
    me.epoch = 0
    me.weight = 0
    for i in range(params.weights.shape[0]):
        if params.weights[i] == 1.0:
            me.weight = i
    _remember(state, lane)


@kernel
def _remember(state: State, lane: int) -> None:
    """Note where the counts stand when an epoch begins."""
    me = state.lane[lane]
    me.before_done, me.before_asked, me.before_local, me.before_met = (
        me.later_done,
        me.later_asked,
        me.local,
        me.met,
    )
    me.before_ttft_missed, me.before_tpot_missed, me.before_failed = me.ttft_missed, me.tpot_missed, me.failed
    me.before_ttft_s, me.before_tpot_s = me.later_ttft_s, me.later_tpot_s


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Route by the table under a weight for one epoch."""
    me = state.lane[lane]
    number = params.number[0]
    start_s = me.clock_s
    _remember(state, lane)
    me.weight = int(action[0])
    me.epoch += 1
    reason = advance(state, params, lane, min(me.epoch * number.epoch_s, number.limit_s), me.weight)
    total = earned(number, me)
    reward = total - me.paid
    me.paid = total
    over = reason == OVERALL
    cut = not over and (me.epoch >= number.epochs or me.clock_s >= number.limit_s)
    return reward, over, cut, me.clock_s - start_s


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.ppd.weights.env`."""
    me = state.lane[lane]
    number = params.number[0]
    for k in range(out.shape[0]):
        out[k] = 0.0
    done = me.later_done - me.before_done
    failed = me.failed - me.before_failed
    asked = me.later_asked - me.before_asked
    ends = max(done, 1)
    out[0] = min(rate_rps(number, me) / 20.0, 4.0)
    out[1] = min(asked / number.epoch_s / 20.0, 4.0)
    out[2] = min(done / number.epoch_s / 20.0, 4.0)
    out[3] = (me.met - me.before_met) / ends
    out[4] = (me.ttft_missed - me.before_ttft_missed) / ends
    out[5] = (me.tpot_missed - me.before_tpot_missed) / ends
    out[6] = min((me.later_ttft_s - me.before_ttft_s) / ends / number.ttft_slo_s, 4.0)
    out[7] = min((me.later_tpot_s - me.before_tpot_s) / ends / number.tpot_slo_s, 4.0)
    out[8] = (me.local - me.before_local) / max(asked, 1)
    out[9] = min(failed / 10.0, 1.0)
    out[10] = min((me.next - me.gate) / 50.0, 4.0)
    backlog_s, prompts, decoding, used, steps_s, fullest, receives = 0.0, 0, 0, 0, 0.0, 0.0, 0
    for n in range(number.nodes):
        node = state.node[lane, n]
        if n < number.ps:
            backlog_s += node.backlog_s
            prompts += node.waiting + (1 if node.serving >= 0 else 0)
        else:
            decoding += node.decoding
            used += node.active
            fullest = max(fullest, node.active / number.kv_capacity)
            steps_s += node.mean_step_s
            receives += state.link[lane, n].in_flight
        out[18 + params.kind[n]] += np.float32(1.0 / number.nodes)
    ds = float(number.nodes - number.ps)
    out[11] = min(backlog_s / max(number.ps, 1) / 10.0, 4.0)
    out[12] = min(prompts / max(number.ps, 1) / 50.0, 4.0)
    out[13] = min(decoding / ds / 256.0, 1.0)
    out[14] = used / ds / number.kv_capacity
    out[15] = fullest
    out[16] = min(steps_s / ds / 0.05, 4.0)
    out[17] = min(receives / 8.0, 4.0)
    out[SCALARS + me.weight] = 1.0


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Every weight is allowed."""
    for k in range(out.shape[0]):
        out[k] = 1


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
