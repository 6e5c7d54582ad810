"""PipeSDBatch: when to upload the tokens of a window that is being drafted.

The upload half of "PipeSD: An Efficient Cloud-Edge Collaborative Pipeline Inference Framework with Speculative Decoding"
(ICML 2026, arXiv 2605.13319): N tokens, one every gamma seconds, over a link that takes alpha + beta k seconds for k tokens.
The paper's Algorithm 1 is optimal.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym.core.checks import choice
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Layout
from llmgym.core.settings import settled
from llmgym.envs.pipesd.batch.kernels import (
    HEADLINE,
    KERNELS,
    RELATIVE,
    SECONDS,
    Config,
    Episode,
    Metrics,
    Observation,
    Params,
    Sent,
    State,
)
from llmgym.envs.pipesd.batch.scenarios import SCENARIOS, Scenario

REWARDS = {"seconds": SECONDS, "relative": RELATIVE}


class PipeSDBatch(Simulation):
    """The simulation behind `llmgym/PipeSDBatch-v0`; see `PipeSDBatchEnv` for the arguments.

    Attributes:
        scenario: the settings.
        reward: what the return is measured in.
    """

    kernels = KERNELS
    metrics = Metrics
    headline_metrics = HEADLINE
    layout = Layout(head=Observation)
    view = "llmgym.envs.pipesd.batch.view"
    # the whole window is told when it begins: its length and the three speeds, of which the best plan follows
    hidden: ClassVar[Mapping[str, str]] = {}
    shown = frozenset(
        {
            "lane.tokens",
            "lane.alpha",
            "lane.beta",
            "lane.gamma",
            "lane.clock_s",
            "lane.reached_s",
            "lane.planned",
            "lane.best_s",
            "ends",
            "work",
        }
    )

    def __init__(
        self,
        *,
        scenario: str | Scenario = "random",
        reward: str = "seconds",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        self.scenario = settled(scenario, SCENARIOS, settings, "PipeSDBatch", ("about",))
        self.reward = choice("reward", reward, REWARDS)
        self.action_space = Discrete(2)
        config = Config.pack(self.scenario, reward=REWARDS[reward], invalid_cost=self.invalid_cost)
        self.params = Params(config)

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        most = self.scenario.tokens[1]
        return State(
            lane=Episode.zeros(lanes),
            ends=np.zeros((lanes, most + 2), np.int32),
            work=np.zeros((lanes, most + 2)),
            sent=Sent.zeros(lanes, most),
        )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Nothing: tokens come when they are said to come, and nothing else happens.

        Args:
            state: not used.
            lane: not used.
            key: not used.
        """

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode: minus T(B), in seconds or over that of the best plan, less penalties."""
        time = metrics["finish_s"] if self.reward == "seconds" else metrics["regret"] + 1.0
        return -time - metrics["penalty"]

    def settings(self) -> dict[str, Any]:
        """The scenario and what the return is measured in, for reports."""
        return super().settings() | {"reward": self.reward}


class PipeSDBatchEnv(LaneEnv):
    """When to upload the tokens of a window that is being drafted.

    ## Description
    N tokens are drafted, one every gamma seconds. A link carries one batch at a time, k tokens in alpha + beta k seconds.
    After each token you send all that is unsent, or hold it: few batches pay alpha seldom, many overlap with drafting. Sent
    while the link is busy, a batch starts when it is free. An episode is one window, with speeds of its own; the optimum is
    known (Algorithm 1 of PipeSD).

    ## Action Space
    `Discrete(2)`: 0 hold, 1 send all unsent tokens. After the last token 0 is masked; chosen all the same it sends, is counted in
    `invalid_actions` and costs `invalid_cost` (`invalid_action="raise"`: an error).

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["unsent"]` is the slice of a field, `layout.markdown()` prints the table.

    ## Rewards
    Minus the increase of the time at which everything drafted so far would be over: the later of the last token and the end of the
    last batch. The return is -T(B), in seconds (`reward="seconds"`, the default) or over that of the best plan (`"relative"`).

    ## Starting State
    The first token is drafted, nothing is sent.

    ## Episode End
    Termination after token N.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/PipeSDBatch-v0", tokens=(20, 20), gamma_s=(0.037, 0.037))
    ```

    Args:
        scenario: `random`, `s1` to `s4`, `small`, or a `Scenario`. Each of its settings can be given as an argument of its own:
            `tokens`, `alpha_s`, `beta_s`, `gamma_s`.
        reward: what the return is measured in: `seconds`, or `relative` to the best plan.
        invalid_action: what a masked action is: `penalize` (it sends, at a price) or `raise` (an error).
        invalid_cost: price of a masked action, at least 0.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, reward or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = PipeSDBatch


PipeSDBatchVectorEnv = vector_env(PipeSDBatchEnv)
