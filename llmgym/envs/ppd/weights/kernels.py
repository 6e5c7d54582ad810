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
    episode = state.lane[lane]
    episode.epoch = 0
    episode.weight = 0
    for i in range(params.weights.shape[0]):
        if params.weights[i] == 1.0:
            episode.weight = i
    _remember(state, lane)


@kernel
def _remember(state: State, lane: int) -> None:
    """Note where the counts stand when an epoch begins."""
    episode = state.lane[lane]
    episode.before_done, episode.before_asked, episode.before_local, episode.before_met = (
        episode.later_done,
        episode.later_asked,
        episode.local,
        episode.met,
    )
    episode.before_ttft_missed, episode.before_tpot_missed, episode.before_failed = (
        episode.ttft_missed,
        episode.tpot_missed,
        episode.failed,
    )
    episode.before_ttft_s, episode.before_tpot_s = episode.later_ttft_s, episode.later_tpot_s


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Route by the table under a weight for one epoch."""
    episode = state.lane[lane]
    config = params.config[0]
    start_s = episode.clock_s
    _remember(state, lane)
    episode.weight = int(action[0])
    episode.epoch += 1
    reason = advance(state, params, lane, min(episode.epoch * config.epoch_s, config.limit_s), episode.weight)
    total = earned(config, episode)
    reward = total - episode.paid
    episode.paid = total
    over = reason == OVERALL
    cut = not over and (episode.epoch >= config.epochs or episode.clock_s >= config.limit_s)
    return reward, over, cut, episode.clock_s - start_s


@kernel
def observe_lane(state: State, params: Params, lane: int, out: NDArray[np.float32]) -> None:
    """Write the observation: see `layout` in `llmgym.envs.ppd.weights.env`."""
    episode = state.lane[lane]
    config = params.config[0]
    for k in range(out.shape[0]):
        out[k] = 0.0
    done = episode.later_done - episode.before_done
    failed = episode.failed - episode.before_failed
    asked = episode.later_asked - episode.before_asked
    ends = max(done, 1)
    out[0] = min(rate_rps(config, episode) / 20.0, 4.0)
    out[1] = min(asked / config.epoch_s / 20.0, 4.0)
    out[2] = min(done / config.epoch_s / 20.0, 4.0)
    out[3] = (episode.met - episode.before_met) / ends
    out[4] = (episode.ttft_missed - episode.before_ttft_missed) / ends
    out[5] = (episode.tpot_missed - episode.before_tpot_missed) / ends
    out[6] = min((episode.later_ttft_s - episode.before_ttft_s) / ends / config.ttft_slo_s, 4.0)
    out[7] = min((episode.later_tpot_s - episode.before_tpot_s) / ends / config.tpot_slo_s, 4.0)
    out[8] = (episode.local - episode.before_local) / max(asked, 1)
    out[9] = min(failed / 10.0, 1.0)
    out[10] = min((episode.next - episode.gate) / 50.0, 4.0)
    backlog_s, prompts, decoding, used, steps_s, fullest, receives = 0.0, 0, 0, 0, 0.0, 0.0, 0
    for n in range(config.nodes):
        node = state.node[lane, n]
        if n < config.ps:
            backlog_s += node.backlog_s
            prompts += node.waiting + (1 if node.serving >= 0 else 0)
        else:
            decoding += node.decoding
            used += node.active
            fullest = max(fullest, node.active / config.kv_capacity)
            steps_s += node.mean_step_s
            receives += state.link[lane, n].in_flight
        out[18 + params.kind[n]] += np.float32(1.0 / config.nodes)
    ds = float(config.nodes - config.ps)
    out[11] = min(backlog_s / max(config.ps, 1) / 10.0, 4.0)
    out[12] = min(prompts / max(config.ps, 1) / 50.0, 4.0)
    out[13] = min(decoding / ds / 256.0, 1.0)
    out[14] = used / ds / config.kv_capacity
    out[15] = fullest
    out[16] = min(steps_s / ds / 0.05, 4.0)
    out[17] = min(receives / 8.0, 4.0)
    out[SCALARS + episode.weight] = 1.0


@kernel
def mask_lane(state: State, params: Params, lane: int, out: NDArray[np.int8]) -> None:
    """Every weight is allowed."""
    for k in range(out.shape[0]):
        out[k] = 1


KERNELS = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)
