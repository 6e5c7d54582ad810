"""Host times of a serving engine from its steps: `python benchmarks/fit_host.py`.

A log has a row for each step whose tokens came back: when (s), how many, of prompts that ended with it, requests that run. An
engine that schedules asynchronously plans step n when the tokens of step n-2 are back, launches it, and only then looks at the
tokens of step n-1. So

- between two steps that only decode lies what such a step takes, on the device and between two steps;
- the launch of a step with a prompt lies between the tokens of the two steps before it, whatever the device does;
- where a step is launched kernel by kernel and has few tokens, the device waits for the host, and what is left of the step when it
  has been launched is what it and the step after it take, less one that decodes.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fidelity.kernels import columns, summed_step
from fidelity.runs import Floats, Run
from llmgym.errors import InvalidArgument
from llmgym.profiles import Profile

STEPS_OF_A_PROMPT = 5
"""Steps before the end of a prompt that may hold chunks of it: the longest is 8,192 tokens, a batch 2,048."""
SEQUENCES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 257)
"""Steps that decode are sorted by their number of sequences, from one of these to below the next."""
FEWEST = 10
"""Steps of a run in a class that count."""
GRAPH_TOKENS = 512
"""Tokens of the largest batch that vLLM 0.24 captures as a CUDA graph: two for each of 256 sequences, at most 512."""
BOUND_TOKENS = 800
"""Steps of up to so many tokens take the device less (21 ms on an H100) than their launches the host, where they are no graph."""
RECOMPUTED = 20
"""So many steps after a preemption a step may hold chunks that the log does not count as prompts."""


class Log(NamedTuple):
    """The steps of a run, in order: when their tokens came (s), and what the engine said; float64 [n] each.

    `taken_s` is since the step before, 0 for the first.
    """

    time_s: Floats
    running: Floats
    usage: Floats
    output: Floats
    prompt: Floats
    preempted: Floats
    taken_s: Floats


class Host(NamedTuple):
    """Host times of an engine, ms.

    Attributes:
        sequences: centres of the classes of steps that only decode, sequences.
        knots_ms: what such steps take beyond the device time of the profile.
        launch_ms: from the plan to the end of a step of more than `GRAPH_TOKENS` tokens that the device does not hold up.
        floor_ms: the same of a step with a prompt and no more tokens.
        steps: how many steps the three were taken from.
    """

    sequences: list[float]
    knots_ms: list[float]
    launch_ms: float
    floor_ms: float
    steps: tuple[int, int, int]

    def laws(self, source: str) -> list[dict[str, Any]]:
        """The laws of an option of a profile's host time."""
        term = {"source": source, "count": 1}
        return [
            {"law": "by_sequences", **term, "sequences": self.sequences, "knots_ms": self.knots_ms},
            {"law": "launch", **term, "base_ms": self.launch_ms, "above_tokens": GRAPH_TOKENS, "ahead": True},
            {"law": "floor", **term, "base_ms": self.floor_ms},
        ]


def read_log(path: Path) -> Log:
    """Read `<case>_steps.csv` of `benchmarks/engine_vllm.py`."""
    names = ("time_s", "running", "kv_usage", "output_tokens", "prompt_tokens", "preempted")
    found = columns(path, *names).T
    return Log(*found, np.diff(found[0], prepend=found[0][:1]))


def read_engine_log(path: Path, blocks: int) -> Log:
    """Read `<case>_engine_steps.csv` of `benchmarks/engine_vllm.py`, which knows every chunk of a prompt and what is recomputed.

    Args:
        path: of the file.
        blocks: of the cache that can be used.
    """
    names = ("done_s", "sequences", "chunks", "prefill_tokens", "blocks", "preempted")
    done_s, sequences, chunks, prefill, used, preempted = columns(path, *names).T
    output = sequences - chunks + (chunks > 0)
    taken_s = np.diff(done_s, prepend=done_s[:1])
    return Log(done_s, sequences, used / blocks, output, prefill, preempted, taken_s)


def log_of(folder: Path, run: Run) -> Log | None:
    """The better of the logs that there are of a run."""
    engine = folder / f"{run.name}_engine_steps.csv"
    if engine.is_file():
        return read_engine_log(engine, run.engine.kv_tokens // run.engine.block_tokens)
    steps = folder / f"{run.name}_steps.csv"
    return read_log(steps) if steps.is_file() else None


def decoding(log: Log) -> Any:
    """Which steps only decode, and follow a step of a busy engine: bool [n].

    Steps near the end of a prompt are left out: an engine notes a prompt when it ends, not with the chunks that it was computed
    in, and the time that the host takes to launch them shows in the step before.
    """
    near = log.prompt > 0
    for ahead in range(1, STEPS_OF_A_PROMPT + 1):
        near[:-ahead] |= log.prompt[ahead:] > 0
    alone = (log.output > 0) & (log.preempted == 0) & (log.taken_s > 0) & ~near
    alone[1:] &= (log.running[:-1] > 0) & (log.output[:-1] > 0) & ~near[:-1]
    alone[:1] = False
    return alone


def _decodes(logs: Sequence[tuple[Run, Log]], profile: Profile) -> tuple[list[float], list[float], int]:
    """Mean over the runs of the median, in each class, of what a step takes beyond the profile without host time, ms."""
    step = summed_step(profile)
    by_class: list[list[float]] = [[] for _ in SEQUENCES]
    count = 0
    for run, log in logs:
        alone = np.flatnonzero(decoding(log))
        beyond = np.array(
            [
                1e3
                * (log.taken_s[i] - step([], int(log.output[i]), int(log.usage[i] * run.engine.kv_tokens)))
                for i in alone
            ]
        )
        number = np.searchsorted(SEQUENCES, log.output[alone], side="right") - 1
        for k in range(len(SEQUENCES) - 1):
            if np.sum(number == k) >= FEWEST:
                by_class[k].append(float(np.median(beyond[number == k])))
                count += int(np.sum(number == k))
    centres = [(a + b - 1) / 2 for a, b in itertools.pairwise(SEQUENCES)]
    kept = [k for k, found in enumerate(by_class) if found]
    return [centres[k] for k in kept], [float(np.mean(by_class[k])) for k in kept], count


def _launches(log: Log, budget_tokens: int) -> list[tuple[float, float]]:
    """Tokens and launches, ms, of steps with a prompt that fits into a batch, between steps without one in a busy engine."""
    recent = np.cumsum(log.preempted)
    rows = []
    for i in range(RECOMPUTED, len(log.time_s) - 1):
        others = np.delete(log.prompt[i - 2 : i + 2], 2)
        busy = np.all(log.output[i - 3 : i] > 0) and recent[i + 1] == recent[i - RECOMPUTED]
        tokens = log.prompt[i] + log.output[i] - 1
        if log.prompt[i] > 0 and tokens <= budget_tokens and busy and not np.any(others > 0):
            rows.append((float(tokens), 1e3 * float(log.taken_s[i - 1])))
    return rows


def _rests(log: Log) -> list[float]:
    """What a step that the host holds up takes from its last launch to its end, ms.

    It is what this step and the one after it, which decodes, take, less what the decodes before took.
    """
    recent = np.cumsum(log.preempted)
    taken_ms = 1e3 * log.taken_s
    rows = []
    for i in range(RECOMPUTED, len(log.time_s) - 2):
        others = np.delete(log.prompt[i - STEPS_OF_A_PROMPT : i + 3], STEPS_OF_A_PROMPT)
        busy = np.all(log.output[i - 4 : i] > 0) and recent[i + 2] == recent[i - RECOMPUTED]
        tokens = log.prompt[i] + log.output[i] - 1
        if log.prompt[i] > 0 and GRAPH_TOKENS < tokens <= BOUND_TOKENS and busy and not np.any(others > 0):
            rows.append(float(taken_ms[i] + taken_ms[i + 1] - np.median(taken_ms[i - 5 : i - 2])))
    return rows


def fit(logs: Sequence[tuple[Run, Log]], profile: Profile) -> Host:
    """Host times from the steps of several runs of one engine; medians, nothing is fitted to what clients saw.

    Args:
        logs: runs and their steps.
        profile: what a step costs, without host time.

    Raises:
        InvalidArgument: the logs hold no steps of some kind.
    """
    sequences, knots_ms, decodes = _decodes(logs, profile)
    tokens, launch_ms = (
        np.array([row for run, log in logs for row in _launches(log, run.engine.budget_tokens)])
        .reshape(-1, 2)
        .T
    )
    rests_ms = [rest for _, log in logs for rest in _rests(log)]
    large, small = launch_ms[tokens > GRAPH_TOKENS], launch_ms[tokens <= GRAPH_TOKENS]
    if not (len(sequences) and len(large) and len(small) and rests_ms):
        raise InvalidArgument(
            f"logs: {decodes} steps that decode, {len(small)} with a prompt of up to {GRAPH_TOKENS} tokens, {len(large)} above and "
            f"{len(rests_ms)} that the host holds up; expected some of each"
        )
    rest_ms = float(np.median(rests_ms))
    return Host(
        sequences,
        [round(max(ms, 0.0), 3) for ms in knots_ms],
        round(float(np.median(large)) + rest_ms, 2),
        round(float(np.median(small)) + rest_ms, 2),
        (decodes, len(large), len(small)),
    )


class Clock(NamedTuple):
    """How a device's clock follows its load.

    Attributes:
        settle_ms: after so long under another load it has gone 1 - 1/e of the way.
        beyond_ms: what the device takes beyond the profile's parts in steps of more than `HEATING_TOKENS`.
        left_ms: root mean square of what is left, and of what is left without a clock that follows (always that of steady load).
        steps: how many steps it was fitted to.
    """

    settle_ms: float
    beyond_ms: float
    left_ms: tuple[float, float]
    steps: int


HEATING_TOKENS = 512
"""Products of more tokens take a device to its power limit."""
SETTLE_MS = np.geomspace(5.0, 500.0, 81)


def fit_clock(path: Path, steady: Profile, single: Profile) -> Clock:
    """Fit the clock to the device times of steps of 1,500 tokens and more, in which the device waits for no launch.

    Such a step takes what its parts take at the clock of steady load or of single calls, and in between as the device was busy
    with products before: w steady + (1 - w) single, where w goes towards 1 in steps of more than `HEATING_TOKENS` and towards 0 in
    others.

    Args:
        path: `<case>_engine_steps.csv`.
        steady: profile with products as under steady load, and no host time.
        single: the same with products as in single calls.

    Raises:
        InvalidArgument: fewer than ten such steps.
    """
    names = (
        "done_s",
        "tokens",
        "sequences",
        "prefill_tokens",
        "chunks",
        "chunk_cached",
        "decode_cached",
        "device_ms",
    )
    rows = columns(path, *names)
    done_s, tokens, device_ms = rows[:, 0], rows[:, 1], rows[:, -1]
    hot, cool = summed_step(steady), summed_step(single)
    # Of several chunks only their sums are known: one chunk, or several without cached tokens, cut into equal parts.
    chosen = np.flatnonzero(
        (tokens >= 1500) & ((rows[:, 4] == 1) | (rows[:, 5] == 0)) & np.isfinite(device_ms)
    )
    if len(chosen) < 10:
        raise InvalidArgument(
            f"path={str(path)!r}: {len(chosen)} steps of 1,500 tokens and more; expected 10 at least"
        )
    parts = []
    for i in chosen:
        _, _, sequences, prefill, chunks, chunk_cached, decode_cached, _ = rows[i]
        cut = [(int(prefill / chunks), int(chunk_cached))] * int(chunks)
        step = cut, int(sequences - chunks), int(decode_cached)
        parts.append((1e3 * hot(*step), 1e3 * cool(*step)))
    hot_ms, cool_ms = np.array(parts).T
    taken_s = 1e-3 * np.nan_to_num(device_ms)
    idle_s = np.maximum(np.diff(done_s, prepend=done_s[0]) - taken_s, 0.0)
    best = (np.inf, 0.0, 0.0)
    for settle_ms in SETTLE_MS:
        warmth, before = 0.0, np.zeros(len(rows))
        for i in range(len(rows)):
            warmth *= np.exp(-1e3 * idle_s[i] / settle_ms)
            before[i] = warmth
            load = float(tokens[i] > HEATING_TOKENS)
            warmth = load + (warmth - load) * np.exp(-1e3 * taken_s[i] / settle_ms)
        left = device_ms[chosen] - cool_ms - before[chosen] * (hot_ms - cool_ms)
        beyond_ms = float(np.median(left))
        best = min(best, (float(np.sqrt(np.mean((left - beyond_ms) ** 2))), float(settle_ms), beyond_ms))
    always = device_ms[chosen] - hot_ms
    without = float(np.sqrt(np.mean((always - np.median(always)) ** 2)))
    return Clock(best[1], best[2], (best[0], without), len(chosen))
