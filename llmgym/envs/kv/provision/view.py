"""Pictures of KVProvision: the load, the replicas and the queue over the episode so far."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.kv.provision.load import loads
from llmgym.envs.kv.provision.scenarios import Scenario
from llmgym.envs.kv.provision.state import Params, State

WIDTH, HEIGHT = 760, 480


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """One line of state, and a character for each replica: # on, + starting, - draining, . off.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        Lines of text without a line feed at the end.
    """
    episode = state.lane[lane]
    total = scenario.max_replicas
    on, starting, draining = (int(episode[name]) for name in ("on", "starting", "draining"))
    bar = "#" * on + "+" * starting + "-" * draining
    mu = params.config["kv_capacity"][0] / (episode["batch_s"] * episode["area"])
    return (
        f"epoch {episode['epoch']:4d}/{scenario.epochs}   arrivals {episode['rate']:8.2f} req/s (mean {episode['rate_ema']:.2f})   "
        f"one replica serves about {mu:.2f} req/s\n"
        f"replicas [{bar.ljust(total, '.')}] target {episode['target']}   cache used {episode['kv_mean']:.0%}   "
        f"{episode['waiting']:,.0f} waiting"
    )


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """Arrival rate, replicas by what they do, and waiting requests.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        uint8 [480, 760, 3].
    """
    episode = state.lane[lane]
    done = int(episode["epoch"])
    gpu_hours = params.config["gpus"][0] * episode["gpu_s"] / 3600
    rows = state.history[lane, : done + 1]
    edges = np.arange(done + 1)
    figure = blank(WIDTH, HEIGHT)
    rate, replicas, line = figure.subplots(
        3, 1, sharex=True, gridspec_kw={"hspace": 0.18, "height_ratios": [1, 1.2, 1]}
    )
    rate.plot(edges, rows[:, 0], color="#0072B2")
    rate.set(ylabel="arrivals\n(req/s)", ylim=(0, None))
    on, starting, draining = rows[:, 1], rows[:, 2], rows[:, 3]
    replicas.bar(edges, on, 1.0, color="#009E73", label="on")
    replicas.bar(edges, starting, 1.0, bottom=on, color="#F0E442", label="starting")
    replicas.bar(edges, draining, 1.0, bottom=on + starting, color="#BBBBBB", label="draining")
    work = loads(scenario, params, state, lane, done)
    replicas.plot(edges[1:], work, color="#D55E00", label="work that arrived")
    replicas.set(ylabel="replicas", ylim=(0, scenario.max_replicas + 0.5))
    replicas.legend(fontsize=7, loc="upper left", ncols=4)
    line.fill_between(edges, rows[:, 4], color="#CC79A7")
    line.set(
        ylabel="waiting\nrequests",
        xlabel=f"epochs of {scenario.epoch_s:g} s",
        xlim=(-0.5, scenario.epochs + 0.5),
    )
    line.set_ylim(0, max(10.0, 1.1 * float(rows[:, 4].max())))
    rate.set_title(
        f"epoch {done}/{scenario.epochs}    {episode['on']} on, {episode['starting']} starting, {episode['draining']} draining    "
        f"{episode['waiting']:,.0f} waiting    {gpu_hours:.2f} GPU-hours",
        fontsize=9,
    )
    return pixels(figure, (rate, replicas, line))
