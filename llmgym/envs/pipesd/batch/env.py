"""PipeSDBatch: when to upload the tokens of a window that is being drafted.

The upload half of "PipeSD: An Efficient Cloud-Edge Collaborative Pipeline Inference Framework with Speculative Decoding" (ICML
2026, arXiv
2605.13319): N tokens, one every gamma seconds, over a link that takes alpha + beta k seconds for k tokens. The paper's
    Algorithm 1 is optimal.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.core.checks import choice, number, whole
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.settings import settled
from llmgym.envs.pipesd.batch.kernels import (
    KERNELS,
    LANE,
    METRICS,
    NUMBER,
    RELATIVE,
    SECONDS,
    Params,
    State,
)
from llmgym.errors import InvalidArgument

REWARDS = {"seconds": SECONDS, "relative": RELATIVE}


@dataclass(frozen=True)
class Scenario:
    """Settings of PipeSDBatch; every one of them is also an argument of the environment.

    Attributes:
        about: one line.
        tokens: smallest and largest N; all in between are equally likely.
        alpha_s: least and most seconds to start an upload, uniform.
        beta_s: the same for each token of it.
        gamma_s: the same to draft a token.
    """

    about: str
    tokens: tuple[int, int] = (1, 30)
    alpha_s: tuple[float, float] = (0.0, 0.2)
    beta_s: tuple[float, float] = (0.0001, 0.2)
    gamma_s: tuple[float, float] = (0.005, 0.2)


SCENARIOS: dict[str, Scenario] = {
    "random": Scenario("any window of up to 30 tokens, any speeds up to 0.2 s"),
    "s1": Scenario(
        "the paper's scenario 1: a laptop at 20 Mbps", (1, 20), (0.05, 0.05), (0.116, 0.116), (0.037, 0.037)
    ),
    "s2": Scenario("scenario 2: a phone", (1, 20), (0.05, 0.05), (0.116, 0.116), (0.0755, 0.0755)),
    "s3": Scenario("scenario 3: a small device", (1, 20), (0.05, 0.05), (0.116, 0.116), (0.157, 0.157)),
    "s4": Scenario(
        "scenario 4: a laptop at 10 to 80 Mbps", (1, 20), (0.05, 0.05), (0.029, 0.232), (0.037, 0.037)
    ),
    "small": Scenario("up to 12 tokens, any speeds: to train on in minutes", (2, 12)),
}


def resolve_scenario(scenario: str | Scenario, settings: dict[str, Any]) -> Scenario:
    """The scenario with the arguments put in, checked.

    Raises:
        UnknownName: a scenario or a setting that does not exist.
        InvalidArgument: a range that is none, or out of range.
    """
    chosen: Scenario = settled(scenario, SCENARIOS, settings, "PipeSDBatch", ("about",))
    for name in ("tokens", "alpha_s", "beta_s", "gamma_s"):
        limits = getattr(chosen, name)
        if not isinstance(limits, (tuple, list)) or len(limits) != 2:
            raise InvalidArgument(f"{name}={limits!r}: expected two numbers, the least and the most")
        for limit in limits:
            if name == "tokens":
                whole(name, limit, 1, 512)
            else:
                number(name, limit, zero=name == "alpha_s")
        if limits[0] > limits[1]:
            raise InvalidArgument(f"{name}={limits!r}: the least is above the most")
    return chosen


class PipeSDBatch(Simulation):
    """The simulation behind `llmgym/PipeSDBatch-v0`; see `PipeSDBatchEnv` for the arguments.

    Attributes:
        scenario: the settings.
    """

    kernels = KERNELS
    metric_names = METRICS
    headline_metrics = {"regret": "min", "finish_s": "min", "batches": "min"}  # noqa: RUF012

    def __init__(
        self,
        *,
        scenario: str | Scenario = "random",
        reward: str = "seconds",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.1,
        **settings: Any,
    ) -> None:
        self.scenario = chosen = resolve_scenario(scenario, settings)
        choice("reward", reward, REWARDS)
        choice("invalid_action", invalid_action, ("penalize", "raise"))
        number("invalid_cost", invalid_cost, zero=True)
        self.reward, self.raise_on_masked = reward, invalid_action == "raise"
        self.layout, self.action_space = LAYOUT, Discrete(2)
        record = np.zeros(1, NUMBER)
        record["reward"], record["invalid_cost"] = REWARDS[reward], invalid_cost
        record["least"], record["most"] = chosen.tokens
        for name in ("alpha", "beta", "gamma"):
            record[name] = getattr(chosen, f"{name}_s")
        self.params = Params(record)

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        most = self.scenario.tokens[1]
        return State(
            lane=np.zeros(lanes, LANE),
            ends=np.zeros((lanes, most + 2), np.int32),
            work=np.zeros((lanes, most + 2)),
            history=np.zeros((lanes, most, 3)),
        )

    # the whole window is told when it begins: its length and the three speeds, of which the best plan follows
    hidden: ClassVar[dict[str, str]] = {}
    shown: ClassVar[frozenset[str]] = frozenset(
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

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Nothing: tokens come when they are said to come, and nothing else happens."""

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount tokens from the batches that were sent."""
        episode = state.lane[lane]
        sent = float(state.history[lane, : episode["batches"], 0].sum())
        return {
            "clock_s": float(max(episode["clock_s"], episode["reached_s"])),
            "arrived": float(episode["tokens"]),
            "waiting": float(episode["tokens"] - episode["drafted"]),
            "running": float(episode["drafted"] - episode["sent"]),
            "done": sent,
            "rejected": 0.0,
        }

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode: minus T(B), in seconds or over that of the best plan, less penalties."""
        time = metrics["finish_s"] if self.reward == "seconds" else metrics["regret"] + 1.0
        return -time - metrics["penalty"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        return picture(state, lane) if mode == "rgb_array" else text(state, lane)

    def settings(self) -> dict[str, Any]:
        """The scenario, for reports."""
        return asdict(self.scenario) | {"reward": self.reward}


LAYOUT = Layout(
    [
        Field("drafted", 1, 0, 1, "N", "tokens of the window that are there"),
        Field("unsent", 1, 0, 1, "N", "of these, held back"),
        Field("tokens", 1, 0, 4, "32 tokens", "N"),
        Field("unsent.tokens", 1, 0, 4, "32 tokens", "tokens held back"),
        Field("left.tokens", 1, 0, 4, "32 tokens", "tokens still to be drafted"),
        Field("link", 1, 0, 4, "8 (alpha + beta + gamma)", "until the link is free"),
        Field("link.drafts", 1, 0, 4, "log / 4", "log(1 + the same in tokens that can be drafted meanwhile)"),
        Field("alpha", 1, 0, 1, "alpha + beta + gamma", "to start an upload"),
        Field("beta", 1, 0, 1, "alpha + beta + gamma", "of a token of it"),
        Field("gamma", 1, 0, 1, "alpha + beta + gamma", "to draft a token"),
    ]
)


def _best_batches(state: State, lane: int) -> list[tuple[int, float, float]]:
    """Tokens, start and end of each batch of the best plan."""
    episode, rows, done, sent = state.lane[lane], [], 0.0, 0
    for end in state.ends[lane, : episode["planned"]].tolist():
        start = max(done, float(episode["gamma"]) * end)
        done = start + float(episode["alpha"]) + float(episode["beta"]) * (end - sent)
        rows.append((end - sent, start, done))
        sent = end
    return rows


def text(state: State, lane: int) -> str:
    """The window, what was sent, and the best plan."""
    episode = state.lane[lane]
    sizes = [int(row[0]) for row in state.history[lane, : episode["batches"]]]
    return (
        f"N {episode['tokens']}   alpha {1000 * episode['alpha']:.0f}, "
        f"beta {1000 * episode['beta']:.0f}, gamma {1000 * episode['gamma']:.0f} ms\n"
        f"{episode['drafted']} drafted, {episode['sent']} sent as {sizes}, link free at {episode['free_s']:.3f} s\n"
        f"best plan {[n for n, _, _ in _best_batches(state, lane)]}: {episode['best_s']:.3f} s"
    )


def picture(state: State, lane: int) -> NDArray[np.uint8]:
    """uint8 [300, 760, 3]: drafted tokens, batches sent, and the best plan, against time."""
    episode = state.lane[lane]
    figure = blank(760, 300)
    axis = figure.add_axes((0.09, 0.17, 0.88, 0.68))
    gamma = float(episode["gamma"])
    for i in range(int(episode["drafted"])):
        colour = "#0072B2" if i < episode["sent"] else "#56B4E9"
        axis.barh(0, gamma, left=i * gamma, height=0.7, color=colour, edgecolor="white", linewidth=0.6)
    mine = [tuple(row) for row in state.history[lane, : episode["batches"]].tolist()]
    for place, rows, colour in ((1, mine, "#E69F00"), (2, _best_batches(state, lane), "#009E73")):
        for tokens, start, end in rows:
            axis.barh(
                place, end - start, left=start, height=0.7, color=colour, edgecolor="white", linewidth=0.6
            )
            axis.text(
                (start + end) / 2, place, int(tokens), color="white", fontsize=8, ha="center", va="center"
            )
    axis.axvline(float(episode["clock_s"]), color="black", linewidth=1, linestyle=":")
    axis.set_yticks(range(3), ["edge", "link", "best plan"])
    longest = max(float(episode["best_s"]), float(episode["reached_s"]), float(episode["clock_s"]))
    axis.set(ylim=(2.6, -0.6), xlim=(0, 1.05 * longest), xlabel="s")
    axis.set_title(
        f"N {episode['tokens']}    alpha {1000 * episode['alpha']:.0f}, "
        f"beta {1000 * episode['beta']:.0f}, gamma {1000 * gamma:.0f} ms a token    "
        f"sent {episode['sent']}, held {episode['drafted'] - episode['sent']} (light)    best {episode['best_s']:.3f} s",
        fontsize=9,
    )
    return pixels(figure, (axis,))


class PipeSDBatchEnv(LaneEnv):
    """When to upload the tokens of a window that is being drafted.

    ## Description
    N tokens are drafted, one every gamma seconds. A link carries one batch at a time, k tokens in alpha + beta k seconds.
    After each token you send all that is
    unsent, or hold it: few batches pay alpha seldom, many overlap with drafting. Sent while the link is busy, a batch starts
    when it is free.
    An episode is one window, with speeds of its own; the optimum is known (Algorithm 1 of PipeSD).

    ## Action Space
    `Discrete(2)`: 0 hold, 1 send all unsent tokens. After the last token 0 is masked; chosen all the same it sends, is counted in
    `invalid_actions` and costs `invalid_cost` (`invalid_action="raise"`: an error).

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["unsent"]` is the slice of a field, `layout.markdown()` prints the table.

    ## Rewards
    Minus the increase of the time at which everything drafted so far would be over: the later of the last token and the end of
    the last batch.
    The return is -T(B), in seconds (`reward="seconds"`, the default) or over that of the best plan (`"relative"`).

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
        reward: `seconds` or `relative`.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, reward or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = PipeSDBatch


class PipeSDBatchVectorEnv(LaneVectorEnv):
    """Many lanes of `PipeSDBatchEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = PipeSDBatch
