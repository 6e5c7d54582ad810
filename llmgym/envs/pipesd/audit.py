"""Lanes of PipeSDNav, PipeSDTune and PipeSDBatch recounted from their raw arrays, for tests."""

from typing import Any

import numpy as np

from llmgym.envs.pipesd.batch.env import PipeSDBatch
from llmgym.envs.pipesd.batch.kernels import State as Window
from llmgym.envs.pipesd.scenarios import link_of
from llmgym.envs.pipesd.simulation import CloudEdge
from llmgym.envs.pipesd.state import NO_GUESS, WAITING, State


def cloud(simulation: CloudEdge, state: State, lane: int) -> dict[str, float]:
    """Verdicts, tokens, and bytes on the uplinks, of one lane of PipeSDNav or PipeSDTune.

    Args:
        simulation: the simulation.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        Counts by the names that `llmgym.core.spec.EnvSpec.auditor` tells; work is drafted tokens.
    """
    episode, clients, links = state.lane[lane], state.client[lane], state.link[lane]
    megabyte = 1e6 * link_of(simulation.scenario).token_mb
    waiting = clients["phase"] == WAITING
    lines: Any = zip(state.line[lane], links, strict=True)
    on_links = sum(
        int(batch["tokens"])
        for line, link in lines
        for batch in np.take(line, np.arange(link["first"], link["first"] + link["count"]), mode="wrap")
    )
    guessed = (waiting & (clients["guess"] != NO_GUESS)).sum()
    return {
        "arrived": float(clients["requests"].sum()),
        "waiting": 0.0,
        "running": float(waiting.sum()),
        "done": float(clients["verdicts_all"].sum()),
        "rejected": 0.0,
        "clock_s": float(episode["clock_s"]),
        "energy_j": float(episode["energy_j"]),
        "bytes_sent": megabyte * float(links["queued"].sum()),
        "bytes_received": megabyte * float(links["carried"].sum()),
        "bytes_in_flight": megabyte * on_links,
        "work_asked": float(clients["drafted"].sum()),
        "work_done": float((clients["judged"] + clients["dropped"] + clients["guesses"]).sum() - guessed),
        "work_left": float((clients["block"] + clients["awaited"]).sum() + guessed),
    }


def window(simulation: PipeSDBatch, state: Window, lane: int) -> dict[str, float]:
    """Tokens of one lane of PipeSDBatch, by the batches that were sent.

    Args:
        simulation: the simulation.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        Counts by the names that `llmgym.core.spec.EnvSpec.auditor` tells; a request is a token.
    """
    episode = state.lane[lane]
    return {
        "clock_s": float(max(episode["clock_s"], episode["reached_s"])),
        "arrived": float(episode["tokens"]),
        "waiting": float(episode["tokens"] - episode["drafted"]),
        "running": float(episode["drafted"] - episode["sent"]),
        "done": float(state.sent[lane, : episode["batches"]]["tokens"].sum()),
        "rejected": 0.0,
    }
