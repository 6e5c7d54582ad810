"""Steps a second of the native vector environments, beside gymnasium's own vector environment over the same single one.

    python benchmarks/throughput.py --out benchmarks/results/throughput.md
    python benchmarks/throughput.py --part every --out benchmarks/results/throughput.md      one part; the file keeps the other
    python benchmarks/throughput.py --device cuda --out results      lanes on a GPU beside one CPU core: `benchmarks/gpu.py`

The part `every` has a row for each registered environment, the part `queue` says of KVQueue what bounds it, and the part `events`
where a step goes in environments whose step is many events.

Every figure is taken in turns with its reference in one run (best of several turns), so that a drift of the machine's speed falls
on both. One thread. What is timed: the whole `step` call with its default copies, on random legal actions; episodes that end reset
themselves within the time.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numba
import numpy as np

import llmgym
from llmgym.core.checks import number, output_folder, whole
from llmgym.core.lanes import observing
from llmgym.core.memory import bytes_of_a_lane
from llmgym.errors import InvalidArgument, LlmgymError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.events import events, legal_action, smallest_scenario, told_simulated

ENV_ID = "llmgym/KVQueue-v0"
QUEUE = f"# Throughput of {ENV_ID}"
EVERY = "# Throughput of every environment, one thread"


def where() -> str:
    """Day, machine and versions."""
    return (
        f"{date.today()}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("gymnasium", "numpy", "numba"))
        + f", llmgym {llmgym.__version__}"
    )


def best(turns: int, *jobs: Callable[[], float]) -> list[float]:
    """The highest rate of each job over several turns, the jobs taking turns."""
    rates = [[job() for job in jobs] for _ in range(turns)]
    return [max(column) for column in zip(*rates, strict=True)]


def vector_rate(envs: Any, actions: list[Any], seconds: float) -> Callable[[], float]:
    """Steps a second, over all lanes, of a vector environment."""
    envs.reset(seed=0)
    for action in actions[:8]:
        envs.step(action)

    def job() -> float:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for action in actions[:16]:
                envs.step(action)
            steps += 16
        return steps * envs.num_envs / (time.perf_counter() - start)

    return job


def legal_rate(envs: Any, seconds: float) -> Callable[[], float]:
    """Steps a second, over all lanes, on random legal actions; drawing them is left out of the time."""
    rng = np.random.default_rng(0)
    _, infos = envs.reset(seed=0)

    def job() -> float:
        nonlocal infos
        steps, spent, start = 0, 0.0, time.perf_counter()
        while time.perf_counter() - start < seconds or steps < 8:
            action = legal_action(envs.single_action_space, infos.get("action_mask"), envs.num_envs, rng)
            began = time.perf_counter()
            _, _, _, _, infos = envs.step(action)
            spent += time.perf_counter() - began
            steps += 1
        return steps * envs.num_envs / spent

    job()
    return job


def compile_s(env_id: str, kwargs: dict[str, Any]) -> float:
    """CPU seconds that compiling an environment takes on a machine where nothing is kept: a first process less a second one."""
    script = (
        "import gymnasium, json, llmgym, sys; "
        "envs = gymnasium.make_vec(sys.argv[1], 2, **json.loads(sys.argv[2])); "
        "envs.reset(seed=0); envs.step(envs.action_space.sample())"
    )
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            begin = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-c", script, env_id, json.dumps(kwargs)],
                check=True,
                env={**os.environ, "LLMGYM_CACHE_DIR": folder, "LLMGYM_QUIET": "1"},
            )
            end = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)
    return spent[0] - spent[1]


def row(env_id: str, turns: int, seconds: float) -> str:
    """A line of the table of all environments.

    Args:
        env_id: the environment.
        turns: how often each rate is taken.
        seconds: length of a turn.
    """
    kwargs = smallest_scenario(env_id)
    vectors = [gymnasium.make_vec(env_id, lanes, **kwargs) for lanes in (1, 64, 1024)]
    sync = gymnasium.make_vec(env_id, 64, vectorization_mode="sync", **kwargs)
    one, few, many, beside = best(turns, *[legal_rate(envs, seconds) for envs in (*vectors, sync)])
    size = bytes_of_a_lane(sync.envs[0].unwrapped.simulation)
    return (
        f"| {env_id} | {kwargs.get('scenario', 'default')} | {one:,.0f} | {few:,.0f} | {many:,.0f} "
        f"| {told_simulated(env_id, kwargs)} | {beside:,.0f} "
        f"| {few / beside:.1f} | {many / beside:.1f} | {size:,} | {compile_s(env_id, kwargs):.0f} |"
    )


def every_environment(turns: int, seconds: float, processes: int) -> list[str]:
    """A table with a row for each registered environment, so many of them at a time."""
    lines = [
        EVERY,
        "",
        where(),
        "",
        "| environment | scenario | 1 lane, steps/s | 64 lanes | 1,024 lanes | a step simulates | SyncVectorEnv of 64 "
        "| ratio of 64 lanes | of 1,024 | bytes a lane | compiled in, CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for line in pool.map(row, llmgym.env_ids(), itertools.repeat(turns), itertools.repeat(seconds)):
            lines.append(line)
            print(line, flush=True)
    lines += [
        "",
        f"Environments measured at a time: {processes}. Random legal actions. Where a step is long (an epoch of many events) the",
        "compiled simulation takes all the time, and the ratio falls towards one: there is little around it to save. Kernels are",
        "compiled once on a machine, and kept.",
    ]
    return lines


def single_rate(env: Any, seconds: float) -> Callable[[], float]:
    """Steps a second of a single environment as `gymnasium.make` gives it."""
    env.reset(seed=0)

    def job() -> float:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(200):
                _, _, terminated, truncated, _ = env.step(1)
                if terminated or truncated:
                    env.reset()
            steps += 200
        return steps / (time.perf_counter() - start)

    return job


def random_actions(n: int, lanes: int, count: int = 16) -> list[Any]:
    """Small admissions, most of them legal."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, n, lanes) for _ in range(count)]


def engine_rates(scenario: str, lanes: int, **kwargs: Any) -> tuple[float, float, float]:
    """Batches and requests a second of whole episodes under first come, first served, and batches a request."""
    envs = gymnasium.make_vec(ENV_ID, lanes, scenario=scenario, action="rule", rules=("wc-fcfs",), **kwargs)
    requests = lanes * envs.unwrapped.simulation.scenario.requests
    best_s, batches = np.inf, 0
    envs.reset(seed=0)
    envs.unwrapped.lanes.run()
    for seed in range(1, 6):
        start = time.perf_counter()
        envs.reset(seed=seed)
        steps = envs.unwrapped.lanes.run()
        if time.perf_counter() - start < best_s:
            best_s, batches = time.perf_counter() - start, steps
    return batches / best_s, requests / best_s, batches / requests


def every_lane(kernel: Any) -> Any:
    """A compiled loop that calls nothing but one kernel `(state, params, lane, row)`, for all lanes."""

    @numba.njit(nogil=True, error_model="numpy", _nrt=False)
    def loop(state: Any, params: Any, out: Any) -> None:
        for lane in range(out.shape[0]):
            kernel(state, params, lane, out[lane])

    return loop


def parts(lanes: int) -> tuple[float, ...]:
    """Where a step goes, ns a lane: whole step, compiled loop, observations, masks; and running requests of a lane."""
    envs: Any = gymnasium.make_vec(ENV_ID, lanes, scenario="tiny").unwrapped
    envs.reset(seed=0)
    actions = random_actions(3, lanes)
    for action in actions * 4:
        envs.step(action)
    inner, params = envs.lanes, envs.simulation.params
    observe, mask = every_lane(observing(envs.simulation)), every_lane(envs.simulation.kernels.mask_lane)
    found = []
    for job in (
        lambda: envs.step(actions[0]),
        lambda: inner.step(0),
        lambda: observe(inner.state, params, inner.buffers.obs),
        lambda: mask(inner.state, params, inner.buffers.mask),
    ):
        job()
        shortest = np.inf
        for _ in range(24):
            start = time.perf_counter()
            job()
            shortest = min(shortest, time.perf_counter() - start)
        found.append(1e9 * shortest / lanes)
    return (*found, float(inner.state.lane["residents"].mean()))


def queue(scenario: str, turns: int, seconds: float) -> list[str]:
    """Tables about KVQueue: lanes, whole episodes, and where a step goes."""
    kwargs = {"scenario": scenario}
    lines = [
        f"{QUEUE}, scenario {scenario}, one thread",
        "",
        where(),
        "",
        "| lanes | native vector, steps/s | SyncVectorEnv, steps/s | ratio | bytes a lane |",
        "|---|---|---|---|---|",
    ]
    for lanes in (1, 64, 1024, 8192):
        envs = gymnasium.make_vec(ENV_ID, lanes, **kwargs)
        sync = gymnasium.make_vec(ENV_ID, min(lanes, 256), vectorization_mode="sync", **kwargs)
        native, reference = best(
            turns,
            vector_rate(envs, random_actions(3, lanes), seconds),
            vector_rate(sync, random_actions(3, sync.num_envs), seconds),
        )
        size = bytes_of_a_lane(envs.unwrapped.simulation)
        lines.append(
            f"| {lanes:,} | {native:,.0f} | {reference:,.0f} | {native / reference:.1f} | {size:,} |"
        )
        print(lines[-1], flush=True)
    lines.append("")
    lines.append("SyncVectorEnv runs at most 256 copies (its rate does not depend on their number).")
    ours, cartpole = best(
        turns,
        single_rate(gymnasium.make(ENV_ID, **kwargs), seconds),
        single_rate(gymnasium.make("CartPole-v1"), seconds),
    )
    lines.append(
        f"Single environment by `gymnasium.make`: {1e6 / ours:.2f} us a step; CartPole-v1: {1e6 / cartpole:.2f} us."
    )
    simple = gymnasium.make_vec("CartPole-v1", 64, vectorization_mode="sync")
    envs = gymnasium.make_vec(ENV_ID, 1024, **kwargs)
    native, reference = best(
        turns,
        vector_rate(envs, random_actions(3, 1024), seconds),
        vector_rate(simple, random_actions(2, 64), seconds),
    )
    lines.append(
        f"The ratio falls as the single environment gets faster: beside SyncVectorEnv over CartPole-v1 ({reference:,.0f} steps/s) "
        f"1,024 lanes ({native:,.0f}) are {native / reference:.1f} times as fast."
    )
    lines += [
        "",
        "| whole episodes, FCFS | batches/s | requests/s | batches a request |",
        "|---|---|---|---|",
    ]
    for scenario, more in (
        ("azure-conv", {"rate_rps": 6.0, "requests": 2000, "budget": 512, "chunk": 512}),
        ("azure-conv-tight", {"rate_rps": 6.0, "requests": 2000, "budget": 512, "chunk": 512}),
        ("paper-1:1", {"requests": 2000}),
        ("tiny", {"requests": 2000}),
    ):
        batches, requests, ratio = engine_rates(scenario, 32, **more)
        lines.append(f"| {scenario} {more} | {batches:,.0f} | {requests:,.0f} | {ratio:.1f} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        "What bounds it: a step in its parts, ns a lane, 64 steps into an episode. With 16 lanes all stays in the caches, so",
        "the compiled loop there is arithmetic, mostly over the running requests; what it takes longer with more lanes is memory;",
        "step less loop is Python, and copies of what is returned.",
        "",
        "| lanes | running requests | step | compiled loop | of it observations | of it masks |",
        "|---|---|---|---|---|---|",
    ]
    for lanes in (16, 1024, 8192):
        *times, running = parts(lanes)
        lines.append(f"| {lanes:,} | {running:.0f} | " + " | ".join(f"{t:,.0f}" for t in times) + " |")
    return lines


def merged(old: str, parts: list[list[str]]) -> str:
    """A file in which each of these parts takes the place of the one that has its heading, or comes at the end."""
    sections = [section for section in ("\n" + old).split("\n# ") if section.strip()]
    kept = {section.split(",")[0].split("\n")[0]: "# " + section.strip() for section in sections}
    for lines in parts:
        heading = lines[0].removeprefix("# ").split(",")[0]
        kept[heading] = "\n".join(lines)
    return "\n\n".join(kept.values()) + "\n"


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("all", "queue", "every", "events"), default="all")
    parser.add_argument("--scenario", default="tiny", help="of KVQueue")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--processes", type=int, default=1, help="environments measured at a time; leave most cores idle"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="Markdown file to write; of a GPU a folder")
    args = parser.parse_args()
    if args.device == "cuda":
        command = [sys.executable, Path(__file__).with_name("gpu.py"), "--out", args.out or Path("runs/gpu")]
        sys.exit(subprocess.run(list(map(str, command))).returncode)
    try:
        number("seconds", args.seconds)
        whole("turns", args.turns)
        whole("processes", args.processes)
        gymnasium.make(ENV_ID, scenario=args.scenario).close()
        if args.out:
            output_folder("out", args.out.parent)
            if args.out.is_dir():
                raise InvalidArgument(f"out={str(args.out)!r}: expected a file, this is a folder")
    except LlmgymError as error:
        parser.exit(2, f"throughput.py: {error}\n")
    parts = []
    if args.part in ("all", "queue"):
        parts.append(queue(args.scenario, args.turns, args.seconds))
    if args.part in ("all", "every"):
        parts.append(every_environment(args.turns, args.seconds, args.processes))
    if args.part in ("all", "events"):
        parts.append(events(args.turns, where()))
    print(merged("", parts))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(merged(args.out.read_text() if args.out.exists() else "", parts))


if __name__ == "__main__":
    assert llmgym.env_ids()
    main()
