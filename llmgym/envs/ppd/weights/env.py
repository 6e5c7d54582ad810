"""PPDWeights: how much TPOT shall count in the table that routes later turns, while the load changes.

The operator's knob of Li et al., "Not All Prefills Are Equal: PPD Disaggregation for Multi-turn LLM Serving", ICML 2026 (arXiv
2603.13358, Eq. 1 and the weight sweep): the table rule routes every turn, and a policy sets the weight of TPOT.
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.layout import Layout
from llmgym.envs.ppd.cells import CONTEXTS, TYPES
from llmgym.envs.ppd.cluster import FromTable, PPDCluster
from llmgym.envs.ppd.routing.env import PPDRouting
from llmgym.envs.ppd.table import SloTable, reference_of, table_of
from llmgym.envs.ppd.weights.kernels import KERNELS, WEIGHTS, Observation


class PPDWeights(PPDCluster):
    """The simulation behind `llmgym/PPDWeights-v0`; see `PPDWeightsEnv` for the arguments.

    Attributes:
        table: the SLO table of the cluster.
    """

    kernels = KERNELS
    layout = Layout(head=Observation)
    action_space: Discrete[Any] = Discrete(len(WEIGHTS))
    table: SloTable

    def __init__(self, *, reward: str = "slo", **kwargs: Any) -> None:
        super().__init__(reward=reward, **kwargs)

    def from_table(self) -> FromTable:
        """The table under each weight."""
        self.table = table_of(self, PPDRouting)
        reference = np.zeros((2, len(CONTEXTS), len(TYPES)))
        if self.scenario.reference == "table":
            reference = reference_of(self, PPDRouting)
        routes = np.stack([self.table.routes(1.0, w) for w in WEIGHTS])
        return FromTable(reference, routes, np.array(WEIGHTS))


class PPDWeightsEnv(LaneEnv):
    """How much the time between tokens shall count, in the table that routes later turns of conversations.

    ## Description
    The cluster of `llmgym/PPDRouting-v0`: later turns are prefilled on a P node, or on the D node that holds their
    conversation. Here the paper's table decides: in the cell of a turn (context, kind of turn, request rate) it knows TTFT and
    TPOT of both routes, and a turn stays on D where
    `w_ttft (TTFT_P - TTFT_D) / TTFT_P - w_tpot (TPOT_D - TPOT_P) / TPOT_P > 0`. The agent sets w_tpot every epoch: with 0
    nearly everything stays, with 30 a turn stays only where decodes hardly feel it.

    ## Action Space
    `Discrete(8)`: w_tpot = 0, 0.5, 1, 2, 3, 6, 10 or 30. w_ttft is 1. Nothing is masked.

    ## Observation Space
    A flat float32 `Box` (`env.unwrapped.layout`): what completed in the last epoch and what it missed, the load, and the nodes.

    ## Rewards
    - `"slo"` (default): the later turns that met both objectives in the epoch, over all later turns of the episode. The return
      is `slo_attainment`.
    - `"relative"`: as in PPDRouting, with the `w_ttft` and `w_tpot` of the scenario.

    ## Starting State
    An empty cluster at time 0. Conversations, lengths, pauses and nodes are drawn from the seed, the same for every policy.

    ## Episode End
    1. Termination: all conversations are over (the last epoch is as long as there is something to do).
    2. Truncation: after `epochs` epochs or `limit_s` seconds.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/PPDWeights-v0", scenario="small", qps=6.0)
    envs = gymnasium.make_vec("llmgym/PPDWeights-v0", num_envs=64, scenario="small")
    ```
    The first time a cluster is used its table is measured, which takes some seconds; it is kept on disk.

    Args:
        scenario: `paper`, `real`, `stress`, `small`, or a `Scenario` (see `llmgym.envs.ppd.scenarios`); each of its settings can be
            given as an argument of its own; they are in `docs/envs/ppd_routing.md` and in `llmgym settings PPDWeights`.
        reward: `slo` or `relative`.
        shaped: with `relative`, as in PPDRouting.
        invalid_action: `penalize` or `raise`; there are no invalid actions.
        invalid_cost: not used.
        workload: conversations instead of the scenario's.
        profile: name or `Profile`, instead of the scenario's.
        latencies: `llmgym.envs.ppd.latency.Latencies`.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, workload, profile or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = PPDWeights


PPDWeightsVectorEnv = vector_env(PPDWeightsEnv)
