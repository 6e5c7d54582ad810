"""Pictures of OServe: the cluster with its replicas, queues and caches, where each type of requests goes, and who waits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.oserve.scenarios import Scenario
from llmgym.envs.oserve.shapes import Shape, deployment_name
from llmgym.envs.oserve.state import NOW, Params, State

WIDTH, HEIGHT = 940, 600
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999", "#000000")


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """Two lines of state, then one for each replica: # cache in use, = requests that wait (ten each).

    Args:
        scenario: the settings.
        params: numbers and tables that all lanes share.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        Lines of text without a line feed at the end.
    """
    episode = state.lane[lane]
    forecast = ", ".join(f"{rate:.2f}" for rate in state.forecast[lane])
    lines = [
        f"epoch {episode['epoch']:4d}/{scenario.epochs}   {episode['done']} done, {episode['running']} running, "
        f"{episode['waiting']} waiting   P99 {episode['p99_s']:.1f} s   {episode['switches']} switches",
        f"forecast [{forecast}] req/s   headroom {episode['headroom']:.2f}   {_deployment(params, state, lane)}",
    ]
    now_s = episode["epoch"] * scenario.epoch_s
    shapes = _shapes(params)
    for _, slot in _replicas(state, lane):
        full = round(20 * slot["kv"] / params.capacity[slot["shape"]])
        stops = f"   serves in {slot['ready_s'] - now_s:.0f} s" if slot["ready_s"] > now_s else ""
        lines.append(
            f"GPU {slot['gpu']:2d}-{slot['gpu'] + slot['gpus'] - 1:2d} {shapes[slot['shape']]!s:8s} "
            f"[{('#' * full).ljust(20, '.')}] {slot['running']:3d} run {'=' * min(-(-int(slot['waiting']) // 10), 40)} "
            f"{slot['waiting']} wait{stops}"
        )
    return "\n".join(lines)


def _shapes(params: Params) -> list[Shape]:
    return [Shape(tp, pp) for tp, pp in params.parallel.tolist()]


def _deployment(params: Params, state: State, lane: int) -> str:
    """The deployment of a lane in words."""
    return deployment_name(_shapes(params), state.replicas[lane, NOW].tolist())


def _replicas(state: State, lane: int) -> list[tuple[int, Any]]:
    """The replicas in order of their GPUs, each with its place."""
    replicas = [(k, slot) for k, slot in enumerate(state.slot[lane]) if slot["shape"] >= 0]
    return sorted(replicas, key=lambda pair: int(pair[1]["gpu"]))


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """uint8 [600, 940, 3]: types and their shares on the left, replicas on the right, the episode so far below.

    Args:
        scenario: the settings.
        params: numbers and tables that all lanes share.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        The picture, RGB, uint8 [height, width, 3].
    """
    episode = state.lane[lane]
    figure = blank(WIDTH, HEIGHT)
    figure.subplots_adjust(left=0.07, right=0.95, top=0.91, bottom=0.085)
    grid = figure.add_gridspec(2, 2, height_ratios=[2.3, 1], hspace=0.16, wspace=0.16)
    cluster = figure.add_subplot(grid[0, :])
    rates, delays = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    cluster.set(xlim=(0, 10), ylim=(0, 1))
    cluster.axis("off")
    _draw_cluster(cluster, scenario, params, state, lane)
    _draw_episode(rates, delays, scenario, params, state, lane)
    figure.suptitle(
        f"minute {episode['epoch'] * scenario.epoch_s / 60:.1f}    {scenario.model}: "
        f"{_deployment(params, state, lane)}    {episode['done']:,} done, {episode['running']} running, "
        f"{episode['waiting']:,} waiting    {episode['switches']} switches",
        fontsize=10,
    )
    return pixels(figure, (rates, delays))


def _draw_cluster(axis: Any, scenario: Scenario, params: Params, state: State, lane: int) -> None:
    """Draw types with their rates and queues on the left, replicas on the right, lines as wide as their share between."""
    from matplotlib.patches import Rectangle

    episode = state.lane[lane]
    now_s = episode["epoch"] * scenario.epoch_s
    slots = _replicas(state, lane)
    shapes = _shapes(params)
    gpus = scenario.gpus
    top = 0.97
    middles: dict[int, float] = {}
    for k, slot in slots:
        # as high as its GPUs are many
        height = 0.93 * slot["gpus"] / gpus
        bottom = top - 0.93 * (slot["gpu"] + slot["gpus"]) / gpus
        middles[k] = middle = bottom + height / 2
        stops = slot["ready_s"] > now_s
        box = Rectangle(
            (4.6, bottom + 0.006),
            5.35,
            height - 0.012,
            facecolor="#F3D6D0" if stops else "#FAFAFA",
            edgecolor="#444444",
            hatch="//" if stops else None,
        )
        axis.add_patch(box)
        shape = shapes[slot["shape"]]
        label = f"{shape}\nGPU {slot['gpu']}-{slot['gpu'] + slot['gpus'] - 1}"
        axis.text(4.68, middle, label, fontsize=8, va="center")
        bar = min(0.3 * height, 0.06)
        full = slot["kv"] / params.capacity[slot["shape"]]
        axis.add_patch(Rectangle((5.75, middle - bar / 2), 1.6, bar, color="#E4E4E4", linewidth=0))
        axis.add_patch(
            Rectangle((5.75, middle - bar / 2), 1.6 * float(full), bar, color="#0072B2", linewidth=0)
        )
        busy = "stopped" if stops else f"load {slot['load']:.2f}"
        axis.text(
            5.75,
            middle + bar / 2 + 0.004,
            f"cache {full:.0%}, {slot['running']} run, {busy}",
            fontsize=7,
            va="bottom",
        )
        waiting = int(slot["waiting"])
        for n in range(min(-(-waiting // 10), 24)):
            axis.add_patch(
                Rectangle((7.95 + 0.07 * n, middle - bar / 2), 0.045, bar, color="#D55E00", linewidth=0)
            )
        if waiting:
            axis.text(7.95, middle + bar / 2 + 0.004, f"{waiting} wait (a mark: 10)", fontsize=7, va="bottom")
    row = 1 if episode["stopping"] else 0
    types = params.type_lengths.tolist()
    for j, (prompt, output) in enumerate(types):
        y = top - 0.93 * (j + 0.5) / len(types)
        colour = COLOURS[j % len(COLOURS)]
        axis.text(0.0, y + 0.035, f"{prompt} in, {output} out", fontsize=9, color=colour, va="center")
        axis.text(
            0.0,
            y - 0.03,
            f"{state.forecast[lane, j]:.2f} req/s expected, {state.waits[lane, j]} wait",
            fontsize=7,
            va="center",
        )
        if scenario.dispatch in ("flow", "blind"):
            for k, _ in slots:
                share = float(state.share[lane, row, j, k])
                if share > 0.005:
                    offset = 0.012 * (j - (len(types) - 1) / 2)
                    axis.plot(
                        (2.2, 4.55),
                        (y, middles[k] + offset),
                        color=colour,
                        linewidth=0.5 + 6 * share,
                        alpha=0.75,
                    )


def _draw_episode(
    rates: Any, delays: Any, scenario: Scenario, params: Params, state: State, lane: int
) -> None:
    """Draw arrivals by type, P99 and waiting requests of each epoch; switches as dotted lines."""
    episode = state.lane[lane]
    done = int(episode["epoch"])
    minutes = scenario.epoch_s / 60.0
    counts = state.counts[lane, :done].astype(np.float64) / scenario.epoch_s
    times = (np.arange(done) + 0.5) * minutes
    for j, (prompt, output) in enumerate(params.type_lengths.tolist()):
        rates.plot(
            times,
            counts[:, j],
            color=COLOURS[j % len(COLOURS)],
            linewidth=1.3,
            label=f"{prompt}/{output}",
        )
    rates.set(ylabel="arrivals, req/s", ylim=(0, None))
    past: Any = state.history[lane, :done]
    delays.plot(times, past["p99_s"], color="#000000", linewidth=1.3)
    delays.set(ylabel="P99 of the epoch, s (black)", ylim=(0, None))
    line = delays.twinx()
    line.fill_between(times, past["waiting"], color="#D55E00", alpha=0.35, linewidth=0)
    line.set_ylim(0, max(20.0, 1.1 * float(past["waiting"].max(initial=0.0))))
    line.tick_params(labelsize=7)
    line.set_ylabel("waiting", fontsize=8)
    for axis in (rates, delays):
        axis.set_xlim(0, scenario.epochs * minutes)
        axis.set_xlabel("minutes (dotted: switches)")
        for epoch in np.flatnonzero(past["switched"]):
            axis.axvline(epoch * minutes, color="#666666", linewidth=0.8, linestyle=":")
