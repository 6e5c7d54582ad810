"""PPDRouting: where to prefill a later turn of a conversation, on a prefill node or where its cache already is.

The problem of Li, Liu, Xu, Zhang, Rabbani and Zhang, "Not All Prefills Are Equal: PPD Disaggregation for Multi-turn LLM Serving",
ICML 2026 (arXiv 2603.13358), with latencies fitted to the measurements that the authors published.
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.layout import Layout
from llmgym.envs.ppd.cells import CONTEXTS, TYPES
from llmgym.envs.ppd.cluster import FromTable, PPDCluster
from llmgym.envs.ppd.routing.kernels import KERNELS, Observation
from llmgym.envs.ppd.table import reference_of


class PPDRouting(PPDCluster):
    """The simulation behind `llmgym/PPDRouting-v0`; see `PPDRoutingEnv` for the arguments."""

    kernels = KERNELS
    layout = Layout(head=Observation)
    action_space: Discrete[Any] = Discrete(2)

    def from_table(self) -> FromTable:
        """References, where the reward takes them from the table; no routes and no weights."""
        reference = np.zeros((2, len(CONTEXTS), len(TYPES)))
        if self.scenario.reference == "table" and self.reward == "relative":
            reference = reference_of(self, PPDRouting)
        routes = np.ones((1, len(CONTEXTS), len(TYPES), len(self.scenario.rates)), np.int8)
        return FromTable(reference, routes, np.zeros(1))


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
      through P (see `reference`). The return is
      `later_completed (w_ttft ttft_gain - w_tpot tpot_loss) - timeout_cost timeouts - penalty`. With `shaped=True` each of
      these turns also pays `w_tpot` times the mean of `(TPOT - P0) / P0` so far over the others that decode in its batch when it
      completes (clipped at 5): `crowd_loss`, which adds to `tpot_loss` in the return. So a prefill that holds up a batch is
      charged while that batch runs, not only when its members complete.
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
            given as an argument of its own; they are in `docs/envs/ppd_routing.md` and in `llmgym settings PPDRouting`.
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


PPDRoutingVectorEnv = vector_env(PPDRoutingEnv)
