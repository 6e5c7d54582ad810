"""PipeSDTune: which confidence thresholds ask for a verdict, twenty tokens at a time.

The autotuner of "PipeSD: An Efficient Cloud-Edge Collaborative Pipeline Inference Framework with Speculative Decoding" (ICML
2026, arXiv 2605.13319), in the world of `llmgym.envs.pipesd.nav.env`, with uploads by the paper's plan.
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Box

from llmgym.core.checks import whole
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.layout import Layout
from llmgym.core.statistics import counted
from llmgym.envs.pipesd.nav.kernels import REWARD_S
from llmgym.envs.pipesd.scenarios import TUNING, Scenario
from llmgym.envs.pipesd.simulation import CloudEdge
from llmgym.envs.pipesd.tune.kernels import HEADLINE, KERNELS, Metrics, Observation

ENDLESS = 2**40
"""Tokens of the world, which has no end of its own here."""


class PipeSDTune(CloudEdge):
    """The simulation behind `llmgym/PipeSDTune-v0`; see `PipeSDTuneEnv` for the arguments.

    Attributes:
        step_tokens: tokens that each client makes in a step.
        steps: steps of an episode.
    """

    kernels = KERNELS
    metrics = Metrics
    headline_metrics = HEADLINE
    layout = Layout(head=Observation)
    view = "llmgym.envs.pipesd.tune.view"

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        step_tokens: int = 20,
        invalid_action: str = "penalize",
        **settings: Any,
    ) -> None:
        self.step_tokens = whole("step_tokens", step_tokens)
        super().__init__(
            scenario,
            settings,
            TUNING,
            invalid_action=invalid_action,
            tokens=ENDLESS,
            step_tokens=self.step_tokens,
        )
        self.steps = -(-self.scenario.tokens // self.step_tokens)
        self.params.config["steps"] = self.steps
        self.action_space = Box(0.0, 1.0, (2,), np.float64)

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode: minus the times per token of all steps, in units of 0.1 s."""
        return -counted(metrics["step_tpt_mean_ms"]) / (1000.0 * REWARD_S) * metrics["steps"]

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, and the tokens of a step, for reports."""
        return super().settings() | {"step_tokens": self.step_tokens}


class PipeSDTuneEnv(LaneEnv):
    """Which confidence thresholds ask for a verdict, twenty tokens at a time.

    ## Description
    The world of `PipeSDNavEnv`. A client asks for a verdict where the product of its draft's confidences is at most R_1, or
    the last of them at most R_2; uploads follow the plan of batches. You choose (R_1, R_2); then the rule runs until 20
    tokens were made. A step of 20 tokens is a noisy measurement (a standard deviation of a fifth): trying is dear, and so is
    holding on to a bad pair.

    ## Action Space
    `Box(0, 1, (2,))`: R_1 and R_2. Nothing is masked. 0 never fires; 1 always does.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["tpt"]` is the slice of a field, `layout.markdown()` prints the table. Estimates are
    those of client 0.

    ## Rewards
    Minus the time per token of the step, in units of 0.1 s. The return is minus their sum.

    ## Starting State
    As in `PipeSDNavEnv`; the fields of the last step are 0.

    ## Episode End
    Truncation after `tokens / step_tokens` steps. There is no termination.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/PipeSDTune-v0", scenario="s1", tokens=1000)
    ```

    Args:
        scenario: `s1` to `s4`, `s1-gsm8k`, `compressed`, `far`, `mobile`, `change`, `small`, or a `Scenario` (see
            `llmgym.envs.pipesd.scenarios`). Each of its settings can be given as an argument of its own, as in
            `PipeSDNavEnv`; `tokens` are those of an episode.
        step_tokens: tokens that each client makes in a step.
        invalid_action: `penalize` or `raise`; nothing is masked, so it makes no difference.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, source, link, bandwidth or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = PipeSDTune


PipeSDTuneVectorEnv = vector_env(PipeSDTuneEnv)
