"""Pictures of AFDRatio: what each instance does in a step and who waits, and the episode so far."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.afd.ratio.scenarios import Scenario
from llmgym.envs.afd.ratio.state import MEANFIELD, Params, State
from llmgym.envs.afd.requests import laws_of

WIDTH, HEIGHT = 760, 480


WIDE = 16
"""With more attention instances than this not every bar has a name."""
SHOWN_EPOCHS = 200
"""Epochs that fit into the picture."""


def step_times(
    scenario: Scenario, params: Params, state: State, lane: int
) -> tuple[NDArray[np.float64], float, float, float]:
    """What each part of a step takes with the loads of now.

    Args:
        scenario: the settings.
        params: of all lanes.
        state: of all lanes.
        lane: which one.

    Returns:
        Attention time of each instance that holds requests (mean over its microbatches), float64 [instances], of the link, of the
        FFN, and the longest of them, cycles.
    """
    episode, config = state.lane[lane], params.config[0]
    alpha_a, beta_a, alpha_f, beta_f, alpha_c, beta_c = state.coefficients[lane]
    loads = state.table["load"][lane].reshape(int(config["batches"]), -1)
    taken = state.table["occupied"][lane].reshape(int(config["batches"]), -1)
    if config["mode"] == MEANFIELD:
        theta = params.law["theta"][_last_law(state, lane)]
        loads = np.full((1, int(episode["workers"])), scenario.batch * theta)
        taken = np.full(loads.shape, scenario.batch)
    present = taken.sum(axis=0) > 0
    times = alpha_a * loads.mean(axis=0)[present] + beta_a
    each = float(taken.mean(axis=0).sum()) / max(int(episode["ffn"]), 1)
    sent = each if config["aggregate"] else scenario.batch
    comm, ffn = float(alpha_c * sent + beta_c), float(alpha_f * each + beta_f)
    return times, comm, ffn, max(float(times.max(initial=0.0)), comm, ffn)


def _last_law(state: State, lane: int) -> int:
    return int(state.law[lane, max(int(state.lane["epoch"][lane]) - 1, 0)])


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """One line of state, and a bar for the slowest attention instance, the link and the FFN.

    Args:
        scenario: the settings.
        params: of all lanes.
        state: of all lanes.
        lane: which one.

    Returns:
        Lines of text without a line feed at the end.
    """
    episode = state.lane[lane]
    times, comm, ffn, longest = step_times(scenario, params, state, lane)
    rows = (("attention", float(times.max(initial=0.0))), ("link", comm), ("FFN", ffn))
    bars = [
        f"{name:9} [{('#' * round(40 * time / longest)).ljust(40, '.')}] {time:10.1f} cycles"
        for name, time in rows
    ]
    return "\n".join(
        [
            f"epoch {episode['epoch']:4d}/{scenario.epochs}   {episode['workers']}A-{episode['ffn']}F"
            f"   tau {episode['tau']:.1f} cycles   "
            f"{episode['relative'] / max(episode['epoch'], 1):.3f} of the best throughput",
            *bars,
        ]
    )


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """A step of each instance with what it waits, and ratio, throughput and idle shares so far: uint8 [480, 760, 3].

    Args:
        scenario: the settings.
        params: of all lanes.
        state: of all lanes.
        lane: which one.

    Returns:
        The picture, RGB, uint8 [height, width, 3].
    """
    episode = state.lane[lane]
    times, comm, ffn, longest = step_times(scenario, params, state, lane)
    figure = blank(WIDTH, HEIGHT)
    figure.subplots_adjust(left=0.09, right=0.98, top=0.88, bottom=0.09)
    step, ratio, share = figure.subplots(3, 1, gridspec_kw={"hspace": 0.55, "height_ratios": [1.4, 1, 1]})
    names = [f"A{i + 1}" for i in range(len(times))] + ["link", "FFN"]
    heights = np.concatenate([times, [comm, ffn]])
    working = min(int(episode["workers"]), len(times))
    colours = ["#0072B2"] * working + ["#56B4E9"] * (len(times) - working) + ["#E69F00", "#009E73"]
    step.bar(range(len(heights)), heights, color=colours)
    step.bar(
        range(len(heights)),
        longest - heights,
        bottom=heights,
        color="#DDDDDD",
        hatch="///",
        edgecolor="#BBBBBB",
    )
    if len(times) > WIDE:
        names[: len(times)] = [name if i % 5 == 0 else "" for i, name in enumerate(names[: len(times)])]
        names[-2:] = ["", "link, FFN"]
    step.set_xticks(range(len(heights)), names)
    step.set(ylabel="cycles", ylim=(0, max(1.08 * longest, 1e-9)))
    done = int(episode["epoch"])
    rows, epochs = state.history[lane, :done], np.arange(done)
    ratio.step(epochs, rows["ratio"], where="mid", color="#0072B2")
    ratio.set(ylabel="attention\nper FFN", ylim=(0, 1.05 * float(params.config["ratio_scale"][0])))
    share.plot(epochs, rows["relative"], color="#000000", label="throughput, relative")
    share.plot(epochs, rows["idle_attention"], color="#0072B2", label="attention idle")
    share.plot(epochs, rows["idle_ffn"], color="#009E73", label="FFN idle")
    share.set(ylabel="share", xlabel=f"epochs of {scenario.cycles:,} cycles", ylim=(0, 1.6))
    share.legend(fontsize=7, loc="upper right", ncols=3)
    law = laws_of("requests", scenario.requests)[_last_law(state, lane)]
    step.set_title(
        f"epoch {done}/{scenario.epochs}    {episode['workers']}A-{episode['ffn']}F    tau {episode['tau']:.1f} cycles    "
        f"{episode['completed']:,} requests done\n{law.name.partition(',prompt_law')[0]}    "
        "a step: attention (light blue: drains), link, FFN; hatched: waits",
        fontsize=9,
    )
    for axis in (ratio, share):
        axis.set_xlim(-0.5, min(scenario.epochs, SHOWN_EPOCHS) - 0.5 if scenario.epochs > 1 else 0.5)
    return pixels(figure, (step, ratio, share))
