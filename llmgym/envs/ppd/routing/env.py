"""PPDRouting: where to prefill a later turn of a conversation, on a prefill node or where its cache already is.

The problem of Li, Liu, Xu, Zhang, Rabbani and Zhang, "Not All Prefills Are Equal: PPD Disaggregation for Multi-turn LLM Serving",
ICML 2026 (arXiv 2603.13358), with latencies fitted to the measurements that the authors published.
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.layout import Field, Layout
from llmgym.envs.ppd.cells import CONTEXTS, TYPES
from llmgym.envs.ppd.cluster import PPDCluster
from llmgym.envs.ppd.routing.kernels import FIELDS, KERNELS
from llmgym.envs.ppd.scenarios import Scenario
from llmgym.envs.ppd.state import KINDS
from llmgym.envs.ppd.table import reference_of


class PPDRouting(PPDCluster):
    """The simulation behind `llmgym/PPDRouting-v0`; see `PPDRoutingEnv` for the arguments."""

    kernels = KERNELS

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layout = _layout()
        self.action_space: Discrete[Any] = Discrete(2)

    def table_part(
        self, chosen: Scenario
    ) -> tuple[NDArray[np.float64], NDArray[np.int8], NDArray[np.float64]]:
        """References, where the reward takes them from the table; no routes and no weights."""
        reference = np.zeros((2, len(CONTEXTS), len(TYPES)))
        if chosen.reference == "table" and self.reward == "relative":
            reference = reference_of(self, PPDRouting, chosen)
        routes = np.ones((1, len(CONTEXTS), len(TYPES), len(chosen.rates)), np.int8)
        return reference, routes, np.zeros(1)


def _layout() -> Layout:
    logs = "log"
    layout = Layout(
        [
            Field("turn", 1, 0, 1, "20", "number of the turn that waits for its route, from 0"),
            Field(
                "prompt",
                1,
                0,
                1,
                logs,
                "new tokens m; log(1 + tokens) over that of `longest`, as all logs here",
            ),
            Field("answer", 1, 0, 1, logs, "tokens of the answer to expect"),
            Field("context", 1, 0, 1, logs, "tokens n of earlier prompts and answers"),
            Field("d.tokens", 1, 0, 1, logs, "tokens that D would have to prefill"),
            Field("p.tokens", 1, 0, 1, logs, "tokens that P would have to prefill; 0 where there is no P"),
            Field("p.backlog", 1, 0, 1, "10 s", "work of those at this P, as reckoned from their tokens"),
            Field("p.queue", 1, 0, 1, "50", "requests at this P"),
            Field("p.blocked", 1, 0, 1, "-", "1: P waits for room in the receive buffer of a D"),
            Field("d.batch", 1, 0, 1, "256", "sequences that decode on this D"),
            Field("d.active", 1, 0, 1, "capacity", "tokens in its cache of sequences in the batch"),
            Field("d.idle", 1, 0, 1, "capacity", "tokens in its cache of conversations that may come back"),
            Field("d.prefill", 1, 0, 4, "4096", "tokens waiting to be prefilled on it"),
            Field("d.receives", 1, 0, 4, "8", "transfers on their way to it, or in its buffer"),
            Field("d.step", 1, 0, 4, "50 ms", "moving average of the duration of its steps that have ended"),
            Field("d.resident", 1, 0, 1, "-", "1: its cache still holds this conversation"),
            Field("rate", 1, 0, 4, "20", "requests a second, as the table is read by"),
            Field("w.ttft", 1, 0, 4, "10", "weight of TTFT"),
            Field("w.tpot", 1, 0, 4, "10", "weight of TPOT"),
            Field("link.busy", 1, 0, 4, "s", "time that D will spend on these transfers"),
            Field("d.queue", 1, 0, 1, "50", "requests that wait for a place in its batch"),
            Field("d.number", 1, 0, 1, "share", "which decoding node it is: 0 the first, 1 the last"),
            Field("d.context", 1, 0, 1, "capacity", "tokens that its decodes read in a step"),
            Field("nodes", len(KINDS), 0, 1, "share", "share of P, D, pD and R among the nodes"),
        ]
    )
    assert layout.size == FIELDS
    return layout


class PPDRoutingEnv(LaneEnv):
    """Where to prefill a later turn of a conversation: on a prefill node, or where its cache already is.

    ## Description
    A cluster prefills on P nodes and decodes on D nodes; when P is done, the KV cache moves to D. The first turn of a
    conversation takes that way. When the user answers, D still holds the cache of all that was said, so it could append the few
    new tokens itself, and nothing would have to move; but a prefill on D holds up everybody who decodes there. Through
    P, on the other hand, takes a hand-over (65 ms more without any queue), and the transfer holds D up as well.

    The agent routes every later turn. A conversation stays with its P and its D.

    ## Action Space
    `Discrete(2)`: 0 through P, 1 on D. On pD and R nodes only 1 is allowed: 0 is masked, runs as 1, is counted in
    `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an error. If D has thrown the conversation out,
    1 is allowed and prefills all of it.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["p.backlog"]` is the slice of a field, `layout.markdown()` prints the table. It
    holds what a router can know: lengths so far, the expected answer (as good as `information` says), both caches, queues.

    ## Rewards
    - `"relative"` (default): for each later turn, when it completes, `w_ttft (T0 - TTFT) / T0 - w_tpot (TPOT - P0) / P0`, each
      ratio clipped to [-5, 1], and `-timeout_cost` for each request that times out. T0 and P0 are those of the same turn
      through P (see `reference`). The return is `later_completed (w_ttft ttft_gain - w_tpot tpot_loss) - timeout_cost
      timeouts - penalty`.
      With `shaped=True` each of these turns also pays `w_tpot` times the mean of `(TPOT - P0) / P0` so far over the others that
      decode in its batch when it completes (clipped at 5): `crowd_loss`, which adds to `tpot_loss` in the return. So a prefill
      that holds up a batch is charged while that batch runs, not only when its members complete.
    - `"slo"`: `slo_attainment`: the share of all later turns of the episode that met both objectives, less penalties.

    ## Starting State
    An empty cluster; conversations, lengths, pauses and nodes are drawn from the seed, the same for every policy. The clock has
    run to the first later turn.

    ## Episode End
    1. Termination: all conversations are over.
    2. Truncation: after `limit_s` seconds.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/PPDRouting-v0", scenario="paper", allocation="2P_2D", qps=8.0)
    envs = gymnasium.make_vec("llmgym/PPDRouting-v0", num_envs=256, scenario="small")
    ```

    Args:
        scenario: `paper`, `real`, `stress`, `small`, or a `Scenario` (see `llmgym.envs.ppd.scenarios`). Each of its settings can be
            given as an argument of its own: `allocation`, `gpus`, `qps`, `conversations`, `window_s`, `limit_s`, `max_turns`,
            `max_inflight`, `timeout_s`, `longest`, `kv_capacity`, `link_gb_per_s`, `buffer_gb`, `chunk`, `seats`, `answer_kv_hit`,
            `interference`, `placement`, `information`, `noise_scale`, `rate`, `rates`, `bypass`, `reference`, `w_ttft`, `w_tpot`,
            `timeout_cost`, `ttft_slo_s`, `tpot_slo_s`.
        reward: `relative` or `slo`.
        shaped: also charge a turn, when it completes, for how slowly those decode that are in the batch with it (see Rewards).
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        workload: conversations instead of the scenario's: a name of `llmgym.envs.ppd.conversations.names()`, or `Conversations`.
        profile: name or `Profile` that says what steps and prefills cost, instead of the scenario's.
        latencies: `llmgym.envs.ppd.latency.Latencies`: hand-over, delays and receives; and steps where there is no profile.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, workload, profile or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = PPDRouting


class PPDRoutingVectorEnv(LaneVectorEnv):
    """Many lanes of `PPDRoutingEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = PPDRouting
