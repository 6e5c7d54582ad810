"""PipeSDTune: which confidence thresholds ask for a verdict, twenty tokens at a time.

The autotuner of "PipeSD: An Efficient Cloud-Edge Collaborative Pipeline Inference Framework with Speculative Decoding" (ICML
2026, arXiv
2605.13319), in the world of `llmgym.envs.pipesd.nav.env`, with uploads by the paper's plan.
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box

from llmgym.core.checks import choice, whole
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.statistics import counted
from llmgym.envs.pipesd import draft_tokens
from llmgym.envs.pipesd import hidden as pipesd_hidden
from llmgym.envs.pipesd.nav.env import arrays, described, parameters, recount
from llmgym.envs.pipesd.nav.kernels import REWARD_S
from llmgym.envs.pipesd.scenarios import TUNING, Scenario, resolve_scenario
from llmgym.envs.pipesd.state import State
from llmgym.envs.pipesd.tune.kernels import KERNELS, TUNE_METRICS

ENDLESS = 2**40
"""Tokens of the world, which has no end of its own here."""


class PipeSDTune(Simulation):
    """The simulation behind `llmgym/PipeSDTune-v0`; see `PipeSDTuneEnv` for the arguments.

    Attributes:
        scenario: the settings.
        text: the source of tokens.
        steps: of an episode.
        step_tokens: of a step.
    """

    kernels = KERNELS
    metric_names = TUNE_METRICS
    headline_metrics = {  # noqa: RUF012
        "step_tpt_mean_ms": "min",
        "tpt_ms": "min",
        "nav_per_token": "min",
        "acceptance": "max",
        "ecs_j_per_100_tokens": "min",
        "threshold_moves": "min",
    }

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        step_tokens: int = 20,
        invalid_action: str = "penalize",
        **settings: Any,
    ) -> None:
        self.scenario = chosen = resolve_scenario(scenario, settings, "PipeSDTune", TUNING)
        self.step_tokens = whole("step_tokens", step_tokens)
        choice("invalid_action", invalid_action, ("penalize", "raise"))
        self.text = draft_tokens.load(chosen.text)
        self.steps = -(-chosen.tokens // step_tokens)
        self.layout = LAYOUT
        self.action_space: Box = Box(0.0, 1.0, (2,), np.float64)
        self.params = parameters(
            replace(chosen, tokens=ENDLESS), self.text, step_tokens=step_tokens, steps=self.steps
        )

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        return arrays(self.scenario, lanes)

    hidden: ClassVar[dict[str, str]] = pipesd_hidden.HIDDEN
    shown: ClassVar[frozenset[str]] = pipesd_hidden.SHOWN

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other verdicts, texts and times to come; see `Simulation.redraw`."""
        pipesd_hidden.redraw(self.params, state, lane, self.world(key), np.random.default_rng(key))

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount verdicts, tokens and bytes."""
        return recount(self.scenario, state, lane)

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode: minus the times per token of all steps, in units of 0.1 s."""
        return -counted(metrics["step_tpt_mean_ms"]) / (1000.0 * REWARD_S) * metrics["steps"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        from llmgym.envs.pipesd.view import picture, text

        episode = state.lane[lane]
        about = f"step {episode['steps']}/{self.steps}   R_1 {episode['sequence']:.3f}, R_2 {episode['token']:.3f}"
        about += f"   last step {1000 * episode['step_tpt_s']:.0f} ms per token"
        if mode == "rgb_array":
            return picture(self.scenario, state, lane, about)
        return about + "\n" + text(self.scenario, state, lane)

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports."""
        return described(self.scenario, self.text) | {"step_tokens": self.step_tokens}


LAYOUT = Layout(
    [
        Field("tpt", 1, 0, 4, "0.25 s", "time per token of the last step"),
        Field("acceptance", 1, 0, 1, "share", "accepted of the tokens judged in it"),
        Field("length", 1, 0, 4, "32 tokens", "mean draft judged in it"),
        Field("alpha", 1, 0, 4, "0.25 s", "estimate: to start an upload"),
        Field("beta", 1, 0, 4, "0.25 s", "estimate: of a token of it"),
        Field("gamma", 1, 0, 4, "0.25 s", "estimate: to draft a token"),
        Field("sequence", 1, 0, 1, "R_1", "threshold of the product in the last step"),
        Field("token", 1, 0, 1, "R_2", "threshold of a confidence in it"),
        Field("held", 1, 0, 4, "32 steps", "steps since the thresholds were changed"),
        Field("progress", 1, 0, 1, "episode", "steps so far"),
    ]
)


class PipeSDTuneEnv(LaneEnv):
    """Which confidence thresholds ask for a verdict, twenty tokens at a time.

    ## Description
    The world of `PipeSDNavEnv`. A client asks for a verdict where the product of its draft's confidences is at most R_1, or
    the last of them at most R_2;
    uploads follow the plan of batches. You choose (R_1, R_2); then the rule runs until 20 tokens were made. A step of 20
    tokens is a noisy
    measurement (a standard deviation of a fifth): trying is dear, and so is holding on to a bad pair.

    ## Action Space
    `Box(0, 1, (2,))`: R_1 and R_2. Nothing is masked. 0 never fires; 1 always does.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["tpt"]` is the slice of a field, `layout.markdown()` prints the table.
    Estimates are those of client 0.

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
            `llmgym.envs.pipesd.scenarios`). Each of
            its settings can be given as an argument of its own, as in `PipeSDNavEnv`; `tokens` are those of an episode.
        step_tokens: of a step, for each client.
        invalid_action: `penalize` or `raise`; nothing is masked, so it makes no difference.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, source, link, bandwidth or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = PipeSDTune


class PipeSDTuneVectorEnv(LaneVectorEnv):
    """Many lanes of `PipeSDTuneEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = PipeSDTune
