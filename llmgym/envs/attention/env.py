"""AttentionBudget: one GPU prefills batches, each with the attention kernel and the feature budget that it is given.

Luna, Bouhsine and Choromanski, "SLAY", ICML 2026 (arXiv 2602.04915), give a kernel whose time grows with the length and not
with its square, at a small loss of the model. Which batch is worth that loss is the decision here.
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym.core.checks import choice
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.settings import settled
from llmgym.envs.attention.costs import checkpoints, measured_columns, tables, variants
from llmgym.envs.attention.kernels import KERNELS, draw_batches, weigh
from llmgym.envs.attention.law import crossover_tokens
from llmgym.envs.attention.prompts import mean_batch, quantiles
from llmgym.envs.attention.scenarios import REWARDS, SCENARIOS, Scenario
from llmgym.envs.attention.state import (
    ROW,
    WAITING_ROW,
    Batch,
    Config,
    Episode,
    Metrics,
    Observation,
    Params,
    State,
)
from llmgym.errors import InvalidArgument


class AttentionBudget(Simulation):
    """The simulation behind `llmgym/AttentionBudget-v0`; `AttentionBudgetEnv` lists the arguments.

    Attributes:
        menu: the kernels, in the order of their actions.
        splits: numbers of parts; action k x len(splits) + j serves the head with kernel k in splits[j] parts.
        defer: the action that looks at the next waiting batch instead.
        free_bytes: memory beside the checkpoints.
        mean_s: mean time of a batch at the least loss, seconds.
        mean_tokens: mean tokens of a batch.
        rate_rps: batches that arrive a second.
    """

    kernels = KERNELS
    metrics = Metrics
    view = "llmgym.envs.attention.view"
    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: it is what the episode was drawn from",
        "lane.checksum": "at the end of the episode",
        "batch.arrival_s": "on arrival",
        "batch.due_s": "on arrival",
        "batch.length": "on arrival",
        "batch.requests": "on arrival",
        "batch.limit": "on arrival",
        "batch.reference_s": "on arrival",
        "batch.burst": "never: that there is a burst is seen by the arrivals",
        "batch.noise": "when the batch is served",
    }

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        reward: str = "tokens",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "AttentionBudget", ("about",))
        even = REWARDS[choice("reward", reward, REWARDS)]
        _check(chosen)
        self.reward = reward
        self.menu = chosen.menu if chosen.menu is not None else variants(chosen.profile, chosen.layer)
        self.splits = chosen.splits
        self.defer = len(self.menu) * len(self.splits)
        self.free_bytes = 1e9 * (chosen.memory_gb - checkpoints(self.menu) * chosen.weights_gb)
        if self.free_bytes <= 0.0:
            raise InvalidArgument(
                f"memory_gb={chosen.memory_gb:g}: {checkpoints(self.menu)} checkpoints take "
                f"{checkpoints(self.menu) * chosen.weights_gb:g} GB"
            )
        self.scenario: Scenario = replace(chosen, menu=self.menu)
        self.action_space = Discrete(self.defer + 1)
        self.layout = Layout(
            [
                Field(
                    "queue",
                    chosen.window * len(WAITING_ROW),
                    -1.0,
                    1.0,
                    ", ".join(WAITING_ROW),
                    "a row for each of the first waiting batches, scaled as for the head: `waits` is 1 where there is one, "
                    "`head` for the head, `time` is what it would take without loss (x / (1 + x) in mean service times)",
                    rows=chosen.window,
                ),
                Field(
                    "action",
                    (self.defer + 1) * len(ROW),
                    -1.0,
                    1.0,
                    ", ".join(ROW),
                    "a row for each action: time (x / (1 + x) in mean service times), time left after it (likewise, signed), "
                    "loss and loss above the limit (x / (1 + x) in budgets), share of memory, 1 / parts, whether it is "
                    "allowed, whether it defers",
                    rows=self.defer + 1,
                    actions=(0,),
                ),
            ],
            Observation,
        )
        self.params = self._params(even)

    def _params(self, even: int) -> Params:
        chosen = self.scenario
        shared = {
            "even": even,
            "most": chosen.batch,
            "most_tokens": chosen.batch_tokens,
            "free_bytes": self.free_bytes,
            "soonest": chosen.deadline[0],
            "latest": chosen.deadline[1],
            "fixed": chosen.deadline_fixed,
            "invalid_cost": self.invalid_cost,
        }
        derived = (
            "mean_s",
            "mean_tokens",
            "mean_j",
            "calm_rps",
            "burst_rps",
            "calm_s",
            "burst_s",
        )
        limits, weights = (np.array(column, np.float64) for column in zip(*chosen.classes, strict=True))
        params = Params(
            Config.pack(chosen, **shared, **dict.fromkeys(derived, 0.0)),
            tables(chosen.profile, chosen.layer, self.menu, chosen.slope, chosen.rest),
            np.array(self.splits, np.int32),
            quantiles(chosen),
            limits,
            np.cumsum(weights) / weights.sum(),
        )
        mean_s, mean_tokens, mean_j, too_long = mean_batch(params, self.free_bytes)
        if too_long:
            raise InvalidArgument(
                f"menu={self.menu!r}: nothing can serve a batch of {too_long:,} tokens a sequence in "
                f"{self.free_bytes / 1e9:.3g} GB; give other kernels, more `splits`, or a smaller `longest`"
            )
        self.mean_s, self.mean_tokens, self.rate_rps = mean_s, mean_tokens, chosen.load / mean_s
        share, bursts = chosen.burst_share, chosen.burst > 1.0
        burst_rps = chosen.burst * self.rate_rps
        burst_s = chosen.burst_batches / burst_rps if bursts else 0.0
        measured = {
            "mean_s": mean_s,
            "mean_tokens": mean_tokens,
            "mean_j": mean_j,
            "burst_rps": burst_rps,
            "calm_rps": self.rate_rps * (1.0 - share * chosen.burst) / (1.0 - share)
            if bursts
            else self.rate_rps,
            "burst_s": burst_s,
            "calm_s": burst_s * (1.0 - share) / share,
        }
        return params._replace(config=Config.pack(chosen, **shared, **measured))

    def crossover(self, first: str, second: str) -> float:
        """The length from which on one kernel of the profile is faster than another, tokens; infinity if it never is.

        Args:
            first: the one that wins in the end.
            second: the other one.

        Raises:
            UnknownName: the profile has no such kernel of this layer.
        """
        one, other = (
            measured_columns(self.scenario.profile, name, self.scenario.layer)[:2] for name in (first, second)
        )
        common, i, j = np.intersect1d(one[0], other[0], return_indices=True)
        return crossover_tokens(common, one[1][i], other[1][j])

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        batches = self.scenario.batches
        return State(
            Episode.zeros(lanes), Batch.zeros(lanes, batches), np.zeros((lanes, batches), np.float32)
        )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Draw anew the batches that are still to arrive, and how long those take that have.

        Args:
            state: arrays of all lanes.
            lane: the lane that gets another future.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        episode, batch = state.lane[lane], state.batch[lane]
        arrived = int(episode["arrived"])
        other = self.world(key)
        episode["key"] = other.lane[0]["key"]
        phase = int(batch["burst"][arrived - 1])
        draw_batches(state, self.params, lane, arrived, float(episode["clock_s"]), phase)
        waits = batch["action"] < 0
        batch["noise"][waits] = other.batch[0]["noise"][waits]
        episode["checksum"] = weigh(state, lane)

    def expected_return(self, metrics: dict[str, float]) -> float:
        """Weight on time, less prices of what is late, above its class or above the budget, of energy, and penalties."""
        chosen = self.scenario
        return (
            metrics["on_time_relative"]
            - chosen.late_weight * metrics["late_relative"]
            - chosen.excess_weight * metrics["excess_relative"]
            - chosen.overspend_weight * metrics["overspent_budgets"]
            - chosen.energy_weight * metrics["energy_relative"]
            - metrics["penalty"]
        )

    def settings(self) -> dict[str, Any]:
        """The scenario with what follows from it, for reports."""
        return super().settings() | {
            "mean_s": self.mean_s,
            "mean_tokens": self.mean_tokens,
            "rate_rps": self.rate_rps,
            "free_gb": self.free_bytes / 1e9,
        }


def _check(scenario: Scenario) -> None:
    """Raise `InvalidArgument` where settings do not fit each other."""
    if scenario.burst * scenario.burst_share >= 1.0 and scenario.burst > 1.0:
        raise InvalidArgument(
            f"burst={scenario.burst:g}: with burst_share={scenario.burst_share:g} nothing would be left for other times; "
            f"allowed is less than {1.0 / scenario.burst_share:g}"
        )
    if scenario.long_tokens[1] > scenario.longest and scenario.long_tokens[0] >= scenario.longest:
        raise InvalidArgument(
            f"long_tokens={scenario.long_tokens!r}: all of them are cut to longest={scenario.longest}"
        )


class AttentionBudgetEnv(LaneEnv):
    """One GPU that prefills batches, each with the attention kernel and feature budget that it is given, within a budget of loss.

    ## Description
    Batches of prompts arrive at random, some in bursts: several sequences of one length, a deadline, and a quality class, which is
    the largest loss that its users accept. Several checkpoints of one model are resident, each trained for an attention kernel:
    softmax, exact; SLAY with several budgets of features, and other kernels, whose time grows with the length only, at a loss of
    the model. The GPU serves one batch after the other. When it is free and a batch waits, the agent says which kernel serves the
    head of the queue, or looks at the next batch. A ledger adds up tokens times loss; at the end its mean may not be above the
    budget.

    Times and memory of the kernels are measured ones of one layer (`profile`, `layer`), times the number of layers; the time of a
    batch deviates by the spread that was measured. The loss of a kernel is the published one of a small language model; budgets of
    SLAY differ by their measured error of approximation times `slope`, which is an assumption.

    ## Action Space
    `Discrete(kernels x splits + 1)`: action k x splits + j serves the head with kernel k, in `splits[j]` parts one after the other,
    which need less memory; the last action looks at the next batch that waits. Masked: kernels whose memory there is not or whose
    time was not measured at this length, more parts than sequences, and the last action where no further batch waits or is
    shown. After a batch is served, the oldest one is the head again. A masked action serves the head with the first action that is
    allowed, is counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an error.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["ledger.left"]` is the slice of a field, `layout.markdown()` prints the table. The
    block `action` has a row of eight entries for each action, `queue` one of eight for each of the first waiting batches.

    ## Rewards
    For each batch its weight if it is served before its deadline, minus `late_weight` times that if it is not, minus
    `excess_weight` times weight times loss above the limit of its class, minus `energy_weight` times its energy, relative. At the
    end, minus `overspend_weight` times the mean loss above the budget, in budgets. Weights are tokens over those of an episode of
    mean batches (`reward="tokens"`), or equal (`"batches"`).

    ## Starting State
    Time 0, at which the first batch arrives. Arrivals, lengths, classes, deadlines and deviations are drawn from the seed, whatever
    is decided.

    ## Episode End
    Termination when all `batches` are served.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/AttentionBudget-v0", scenario="h100", load=1.5)
    envs = gymnasium.make_vec("llmgym/AttentionBudget-v0", num_envs=256, scenario="small")
    ```

    Args:
        scenario: `paper`, `h100`, `h200`, `real`, `stress`, `small`, or a `Scenario` (see `llmgym.envs.attention.scenarios`). Each
            of its settings can be given as an argument of its own.
        reward: `tokens` or `batches`.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, kernel set, kernel, workload or setting that does not exist.
        InvalidArgument: a value out of range, or a menu that cannot serve the longest batch; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = AttentionBudget


AttentionBudgetVectorEnv = vector_env(AttentionBudgetEnv)
