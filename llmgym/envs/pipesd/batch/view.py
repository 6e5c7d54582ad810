"""Pictures of PipeSDBatch: drafted tokens, batches sent, and the best plan, against time.

`text` and `picture` are what `llmgym.core.lanes.Simulation.view` asks for, with its arguments.
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.pipesd.batch.kernels import Params, State
from llmgym.envs.pipesd.batch.scenarios import Scenario

WIDTH, HEIGHT = 760, 300
Span = tuple[int, float, float]
"""Tokens, start and end of a batch, seconds."""


def _sent(state: State, lane: int) -> list[Span]:
    """The batches that were sent."""
    return [tuple(row) for row in state.sent[lane, : state.lane[lane]["batches"]].tolist()]


def _best(state: State, lane: int) -> list[Span]:
    """The batches of the best plan."""
    episode, spans, done, sent = state.lane[lane], [], 0.0, 0
    for end in state.ends[lane, : episode["planned"]].tolist():
        start = max(done, float(episode["gamma"]) * end)
        done = start + float(episode["alpha"]) + float(episode["beta"]) * (end - sent)
        spans.append((end - sent, start, done))
        sent = end
    return spans


def _speeds(state: State, lane: int) -> str:
    episode = state.lane[lane]
    alpha, beta, gamma = (1000 * float(episode[name]) for name in ("alpha", "beta", "gamma"))
    return f"alpha {alpha:.0f}, beta {beta:.0f}, gamma {gamma:.0f} ms"


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """The window, what was sent, and the best plan, in three lines.

    Args:
        scenario: the settings.
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: number of the lane that is shown.

    Returns:
        Lines of text without a line feed at the end.
    """
    episode = state.lane[lane]
    sizes, best = ([tokens for tokens, _, _ in spans] for spans in (_sent(state, lane), _best(state, lane)))
    return (
        f"N {episode['tokens']}   {_speeds(state, lane)}\n"
        f"{episode['drafted']} drafted, {episode['sent']} sent as {sizes}, link free at {episode['free_s']:.3f} s\n"
        f"best plan {best}: {episode['best_s']:.3f} s"
    )


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """Drafted tokens, batches sent, and the best plan, against time: uint8 [300, 760, 3].

    Args:
        scenario: the settings.
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: number of the lane that is shown.

    Returns:
        The picture, RGB, uint8 [height, width, 3].
    """
    episode = state.lane[lane]
    figure = blank(WIDTH, HEIGHT)
    axis = figure.add_axes((0.09, 0.17, 0.88, 0.68))
    bar = {"height": 0.7, "edgecolor": "white", "linewidth": 0.6}
    gamma = float(episode["gamma"])
    for i in range(int(episode["drafted"])):
        axis.barh(0, gamma, left=i * gamma, color="#0072B2" if i < episode["sent"] else "#56B4E9", **bar)
    for place, spans, colour in ((1, _sent(state, lane), "#E69F00"), (2, _best(state, lane), "#009E73")):
        for tokens, start, end in spans:
            axis.barh(place, end - start, left=start, color=colour, **bar)
            axis.text((start + end) / 2, place, tokens, color="white", fontsize=8, ha="center", va="center")
    axis.axvline(float(episode["clock_s"]), color="black", linewidth=1, linestyle=":")
    axis.set_yticks(range(3), ["edge", "link", "best plan"])
    longest = max(float(episode["best_s"]), float(episode["reached_s"]), float(episode["clock_s"]))
    axis.set(ylim=(2.6, -0.6), xlim=(0, 1.05 * longest), xlabel="s")
    axis.set_title(
        f"N {episode['tokens']}    {_speeds(state, lane)} a token    "
        f"sent {episode['sent']}, held {episode['drafted'] - episode['sent']} (light)    best {episode['best_s']:.3f} s",
        fontsize=9,
    )
    return pixels(figure, (axis,))
