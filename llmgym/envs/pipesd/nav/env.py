"""PipeSDNav: keep drafting, upload, or have the draft verified, token by token.

From "PipeSD: An Efficient Cloud-Edge Collaborative Pipeline Inference Framework with Speculative Decoding" (ICML 2026, arXiv
2605.13319): a small model on an edge device drafts, a large one in the cloud verifies, and a slow uplink lies between them.
"""

from typing import Any

from gymnasium.spaces import Discrete

from llmgym.core.checks import number
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.layout import Layout
from llmgym.envs.pipesd.nav.kernels import HEADLINE, KERNELS, REWARD_S, Observation
from llmgym.envs.pipesd.scenarios import SCENARIOS, Scenario
from llmgym.envs.pipesd.simulation import CloudEdge
from llmgym.envs.pipesd.state import Metrics


class PipeSDNav(CloudEdge):
    """The simulation behind `llmgym/PipeSDNav-v0`; see `PipeSDNavEnv` for the arguments.

    Attributes:
        energy_weight: price of a joule in units of reward.
    """

    kernels = KERNELS
    metrics = Metrics
    headline_metrics = HEADLINE
    layout = Layout(head=Observation)

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        energy_weight: float = 0.0,
        invalid_action: str = "penalize",
        invalid_cost: float = 0.1,
        **settings: Any,
    ) -> None:
        self.energy_weight = number("energy_weight", energy_weight, zero=True)
        super().__init__(
            scenario,
            settings,
            SCENARIOS,
            invalid_action=invalid_action,
            invalid_cost=invalid_cost,
            energy_weight=self.energy_weight,
        )
        self.action_space = Discrete(3)

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode: minus the clients' mean time in units of 0.1 s, less weighed energy and penalties."""
        energy = self.energy_weight * metrics["energy_j"] / self.scenario.clients
        return -metrics["client_mean_s"] / REWARD_S - energy - metrics["penalty"]

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, and the price of a joule, for reports."""
        return super().settings() | {"energy_weight": self.energy_weight}


class PipeSDNavEnv(LaneEnv):
    """Keep drafting, upload, or have the draft verified, token by token.

    ## Description
    A client drafts a token every `gamma` seconds. Drafted tokens reach the cloud over an uplink that carries one batch at a
    time, k tokens in alpha + k beta seconds. A request for a verdict makes the target model check all tokens of the draft at
    once: the longest right prefix is accepted, and one token of its own comes with it. After every drafted token you decide:
    go on, upload what is unsent, or upload it and ask.

    While it waits, the client drafts on: first a guess of the target's own token (nothing to decide on), then tokens after
    it. If all was accepted and the guess was right, the waiting tokens are *promoted*: they are the beginning of the next
    draft, and those uploaded stay uploaded. Otherwise they are dropped; batches in line are withdrawn, and one that is on the
    link goes through for nothing.

    Several clients share a cloud that verifies first come, first served; each has an uplink and a text of its own. A step
    belongs to the client whose token comes next.

    ## Action Space
    `Discrete(3)`: 0 go on, 1 upload what is unsent, 2 upload it and ask for a verdict. While waiting, 2 means: draft no more,
    and ask as soon as these tokens are promoted. Masked: 0 and 1 where the draft has `max_draft` tokens or could be all that
    is missing. Such an action asks, is counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes
    it an error.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["product"]` is the slice of a field, `layout.markdown()` prints the table.
    Everything is of the client whose turn it is, and nothing is there that an edge could not know: what is accepted shows at
    verdicts only, uploads are timed when they are through.

    ## Rewards
    Minus the time that passes in units of 0.1 s, times the share of clients that are not done, less `energy_weight` times the
    joules of the cloud, for each client. So the return is minus the mean time of a client from the first token on, less
    weighed energy and penalties.

    ## Starting State
    Nothing is uploaded; each client has been timed on eight probes. The first token of the first client is there. Texts and
    bandwidths are drawn from the seed: position n of a text is the same for every policy.

    ## Episode End
    Termination when every client has made `tokens` tokens.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/PipeSDNav-v0", scenario="far", tokens=500)
    envs = gymnasium.make_vec("llmgym/PipeSDNav-v0", num_envs=256, scenario="small")
    ```

    Args:
        scenario: `s1` to `s4`, the same with `-gsm8k`, `compressed`, `far`, `mobile`, `shared`, `small`, `small-far`,
            `small-paper`, or a `Scenario` (see `llmgym.envs.pipesd.scenarios`). Each of its settings can be given as an
            argument of its own: `text`, `link`, `bandwidth`, `bandwidth_scale`, `gamma_s`, `gamma_wait_s`, `gamma_jitter`,
            `downlink_s`, `clients`, `proactive`, `tokens`, `count`, `max_draft`, `change_at`, `change_gamma`, `change_rate`.
        energy_weight: price of a joule in units of reward, at least 0.
        invalid_action: what a masked action is: `penalize` (it asks, at a price) or `raise` (an error).
        invalid_cost: price of a masked action, at least 0.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, source, link, bandwidth or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = PipeSDNav


PipeSDNavVectorEnv = vector_env(PipeSDNavEnv)
