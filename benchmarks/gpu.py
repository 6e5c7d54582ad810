"""Steps a second of lanes on a GPU beside one CPU core of the same machine, after a check that both play the same episodes.

    python benchmarks/gpu.py --out results                          every environment, 16,384, 65,536 and 131,072 lanes
    python benchmarks/gpu.py --out results --only KVQueue PPD       those whose names contain one of these

Each environment has a process of its own. All of them compile at the same time; when all have, one after the other has the GPU,
and the processor too. What is not done after `--limit` is ended. `results.json` has everything, `results.md` the tables; both grow
while there is more.

What is timed: whole `step` calls, copies left out (`copy=False`), between two events of the GPU; random legal actions are drawn
between steps and not counted. Episodes that end begin anew within the time.
"""

import argparse
import contextlib
import fcntl
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

import llmgym
from llmgym.core.device import LIST_THREADS, MOST_THREADS
from llmgym.core.threads import TURNS
from llmgym.errors import InvalidArgument

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.throughput import legal_action, legal_rate, where

GO = "go"
"""Name of a file that is there once all have compiled."""
LANES = (16384, 65536, 131072)
BIG_BYTES = 2**20
"""A lane of more than this has few copies on the CPU: a step of it takes milliseconds."""
BANDWIDTH = {"NVIDIA H200": 4.8e12, "NVIDIA H100 80GB HBM3": 3.35e12}
"""Of the memory of the card, bytes a second, as its maker says."""
CALLS = {"begin": LIST_THREADS, "step": MOST_THREADS, "finish": LIST_THREADS}
"""The calls of a step, with their threads at most."""
MORE = (
    ("llmgym/KVQueue-v0", {"scenario": "azure-conv-tight"}),
    ("llmgym/KVQueue-v0", {"scenario": "tiny-overload"}),
)


def cases(only: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Environments with arguments: each with its default scenario, and some more."""
    every = [(env_id, {}) for env_id in llmgym.env_ids()] + list(MORE)
    return [case for case in every if not only or any(part in case[0] for part in only)]


def difference(
    env_id: str, kwargs: dict[str, Any], lanes: int, seconds: float, exact: bool
) -> dict[str, Any]:
    """Play the same actions on both sides; where and how much they differ.

    Args:
        env_id: the environment.
        kwargs: its arguments.
        lanes: how many.
        seconds: the comparison ends after so long, or after 300 steps.
        exact: as for `gymnasium.make_vec`.

    Returns:
        Steps compared, lanes that differed anywhere, the first step at which one did, and the largest differences of rewards and
        observations in lanes whose flags and masks have been the same so far.
    """
    here: Any = gymnasium.make_vec(env_id, lanes, **kwargs)
    there: Any = gymnasium.make_vec(env_id, lanes, device="cuda", exact=exact, arrays="numpy", **kwargs)
    obs, infos = here.reset(seed=1000)
    obs_there, infos_there = there.reset(seed=1000)
    rng = np.random.default_rng(0)
    same = np.ones(lanes, np.bool_)  # flags and masks have been the same so far
    equal = np.ones(lanes, np.bool_)  # every bit has
    first, worst_obs, worst_reward, worst_metric, ended, step = -1, 0.0, 0.0, 0.0, 0, 0
    started = time.perf_counter()
    while step < 300 and (time.perf_counter() - started < seconds or step < 5):
        worst_obs = max(worst_obs, float(np.abs(obs - obs_there)[same].max(initial=0)))
        equal &= (obs == obs_there).all(axis=1) & (infos["action_mask"] == infos_there["action_mask"]).all(
            axis=1
        )
        same &= (infos["action_mask"] == infos_there["action_mask"]).all(axis=1)
        action = legal_action(here.single_action_space, infos["action_mask"], lanes, rng)
        obs, reward, done, cut, infos = here.step(action)
        obs_there, reward_there, done_there, cut_there, infos_there = there.step(action)
        same &= (done == done_there) & (cut == cut_there)
        equal &= same & (reward == reward_there)
        worst_reward = max(worst_reward, float(np.abs(reward - reward_there)[same].max(initial=0)))
        over = same & (done | cut)
        ended += int(over.sum())
        if over.any():
            for name in here.unwrapped.simulation.metric_names:
                a, b = infos["metrics"][name][over], infos_there["metrics"][name][over]
                with np.errstate(invalid="ignore"):
                    off = np.abs(a - b) / np.maximum(np.abs(a), 1e-9)
                off[np.isnan(a) & np.isnan(b)] = 0.0
                worst_metric = max(worst_metric, float(np.nan_to_num(off, nan=np.inf).max(initial=0)))
        if first < 0 and not equal.all():
            first = step
        step += 1
    here.close(), there.close()
    return {
        "lanes": lanes,
        "steps": step,
        "episodes": ended,
        "lanes_not_equal": int((~equal).sum()),
        "lanes_apart": int((~same).sum()),
        "first_step": first,
        "reward": worst_reward,
        "obs": worst_obs,
        "metrics_relative": worst_metric,
    }


def chooser(space: Any, device: Any) -> Any:
    """A function that draws random legal actions on a device from masks."""
    import torch

    if isinstance(space, Box):
        low, high = (
            torch.as_tensor(side, device=device, dtype=torch.float64) for side in (space.low, space.high)
        )
        return lambda mask: low + (high - low) * torch.rand(len(mask), *low.shape, device=device)
    if isinstance(space, Discrete):
        return lambda mask: (torch.rand(mask.shape, device=device) * mask).argmax(dim=1)
    sizes = np.asarray(space.nvec).reshape(-1).tolist()

    def parts(mask: Any) -> Any:
        weights = torch.rand(mask.shape, device=device) * mask
        return torch.stack([part.argmax(dim=1) for part in weights.split(sizes, dim=1)], dim=1)

    return parts


def rate(env_id: str, kwargs: dict[str, Any], lanes: int, seconds: float) -> dict[str, Any]:
    """Steps a second of so many lanes, and where the time of a step goes; or why they do not fit."""
    import torch

    torch.cuda.empty_cache()
    try:
        envs: Any = gymnasium.make_vec(env_id, lanes, device="cuda", copy=False, **kwargs).unwrapped
    except InvalidArgument as error:
        return {"lanes": lanes, "error": str(error)}
    choose = chooser(envs.single_action_space, envs.device)
    began = time.perf_counter()
    _, infos = envs.reset(seed=0)
    torch.cuda.synchronize()
    reset_s = time.perf_counter() - began
    started, warm = time.perf_counter(), 0
    while warm < 400 and (time.perf_counter() - started < seconds or warm < 3):
        infos = envs.step(choose(infos["action_mask"]))[4]
        torch.cuda.synchronize()
        warm += 1
    pairs = []
    started, wall = time.perf_counter(), 0.0
    while len(pairs) < 200 and (wall < seconds or len(pairs) < 3):
        action = choose(infos["action_mask"])
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        infos = envs.step(action)[4]
        after.record()
        pairs.append((before, after))
        if len(pairs) % 16 == 0 or wall > 0.1:
            torch.cuda.synchronize()
        wall = time.perf_counter() - started
    torch.cuda.synchronize()
    times = np.array([before.elapsed_time(after) for before, after in pairs]) / 1e3
    split: dict[str, list[float]] = {name: [] for name in CALLS}
    inner = envs.lanes
    for _ in range(min(len(pairs), 50)):
        inner.load_actions(choose(infos["action_mask"]))
        for name in split:
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            inner._call(name, CALLS[name], envs._mode, inner._turn)
            after.record()
            torch.cuda.synchronize()
            split[name].append(before.elapsed_time(after))
        inner._turn = (inner._turn + 1) % TURNS
    ended = float((envs.lanes.buffers.terminated | envs.lanes.buffers.truncated).float().mean())
    found = {
        "lanes": lanes,
        "steps_per_s": lanes * len(times) / times.sum(),
        "best_steps_per_s": lanes / np.median(times),
        "step_ms": 1e3 * float(times.mean()),
        "warm_steps": warm,
        "timed_steps": len(times),
        "reset_s": reset_s,
        "ended_share": ended,
        "calls_ms": [float(np.mean(values)) for values in split.values()],
    }
    envs.close()
    return found


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """The GPU for this process."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def one(
    env_id: str,
    kwargs: dict[str, Any],
    lanes: list[int],
    capability: tuple[int, int],
    lock: Path,
    brief: bool,
) -> Iterator[dict[str, Any]]:
    """Everything about one environment, told again whenever there is more of it."""
    from benchmarks.gpu_code import compiled

    found: dict[str, Any] = {"env": env_id, "kwargs": kwargs}
    for exact in (False, True):
        codes, found["bytes"], seconds = compiled(env_id, capability, exact, **kwargs)
        found["exact" if exact else "fast"] = {
            "compile_s": seconds,
            **{name: [code.registers, code.stack_bytes, code.spill_bytes] for name, code in codes.items()},
        }
    big = found["bytes"] > BIG_BYTES
    envs = gymnasium.make_vec(env_id, 16 if big else 1024, **kwargs)
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    simulation: Any = envs.unwrapped.simulation  # type: ignore[attr-defined]
    # an action, flags, reward, time and counts, the row of observations and the mask
    found["io_bytes"] = 8 * simulation.action_size + 40 + 4 * simulation.layout.size + simulation.mask_size
    yield found
    while not lock.with_name(GO).exists():  # a process that compiles would slow down those that measure
        time.sleep(0.2)
    with alone(lock):
        found["cached_s"] = compiled(env_id, capability, False, **kwargs)[2]
        for exact in (True,) if brief else (True, False):
            found["difference_exact" if exact else "difference"] = difference(
                env_id, kwargs, 16 if big else 256, 1.0 if brief else 2.0, exact
            )
        yield found
        found["cpu_steps_per_s"] = legal_rate(envs, 1.0)()
        found["rates"] = []
        for number in [min(LANES)] if brief and big else lanes:
            found["rates"].append(rate(env_id, kwargs, number, 0.5 if brief else 0.8))
            yield found


def table(results: list[dict[str, Any]], card: str) -> str:
    """All results as Markdown."""
    peak = BANDWIDTH.get(card, float("nan"))
    rates = [
        "| environment | bytes a lane | lanes | million steps/s | a step, ms | its calls: begin, step, finish, ms "
        "| one CPU core, million steps/s | times | rows read and written, bytes a step | share of the bandwidth |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    equal = [
        "| environment | exact | lanes | steps | episodes | lanes with another bit | lanes with another flag | first at step "
        "| largest difference: reward | observation | metric, relative |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    code = [
        "| environment | registers: begin, step, finish | stack, spilt, bytes | exact: registers | compiled in, s | from disk, s |",
        "|---|---|---|---|---|---|",
    ]
    for found in results:
        name = " ".join([found["env"], *map(str, found["kwargs"].values())])
        if "failed" in found:
            rates.append(f"| {name} | failed: {found['failed'][-160:]} | | | | | | | | |")
        for r in found.get("rates", []):
            start = f"| {name} | {found['bytes']:,} | {r['lanes']:,}"
            if "error" in r:
                rates.append(f"{start} | {r['error']} | | | | | | |")
                continue
            cpu, rate = found["cpu_steps_per_s"], r["steps_per_s"]
            calls = ", ".join(f"{ms:.3f}" for ms in r["calls_ms"])
            rates.append(
                f"{start} | {rate / 1e6:.4g} | {r['step_ms']:.3f} | {calls} | {cpu / 1e6:.3g} | {rate / cpu:,.0f} "
                f"| {found['io_bytes']:,} | {rate * found['io_bytes'] / peak:.1%} |"
            )
        for which, word in (("difference_exact", "yes"), ("difference", "no")):
            if (d := found.get(which)) is not None:
                equal.append(
                    f"| {name} | {word} | {d['lanes']} | {d['steps']} | {d['episodes']} | {d['lanes_not_equal']} "
                    f"| {d['lanes_apart']} | {d['first_step']} | {d['reward']:.2g} | {d['obs']:.2g} | {d['metrics_relative']:.2g} |"
                )
        if "exact" in found:
            fast, exact = ([found[kind][call] for call in CALLS] for kind in ("fast", "exact"))
            code.append(
                f"| {name} | {', '.join(str(p[0]) for p in fast)} | {max(p[1] for p in fast)}, {max(p[2] for p in fast)} "
                f"| {', '.join(str(p[0]) for p in exact)} | {found['fast']['compile_s']:.1f} "
                f"| {found.get('cached_s', float('nan')):.2f} |"
            )
    return "\n".join([*rates, "", *equal, "", *code]) + "\n"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and results.md")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of environments")
    parser.add_argument("--lanes", default=",".join(map(str, LANES)))
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds until a process is ended")
    parser.add_argument("--brief", action="store_true", help="a shorter look, in exact arithmetic alone")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    lanes = [int(number) for number in args.lanes.split(",")]
    if args.case:
        case = json.loads(args.case)
        capability, lock = tuple(case["capability"]), Path(case["lock"])
        for found in one(case["env"], case["kwargs"], lanes, capability, lock, args.brief):
            args.out.write_text(json.dumps(found))
        return
    import torch

    args.out.mkdir(parents=True, exist_ok=True)
    card, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    everything = cases(args.only)
    with tempfile.TemporaryDirectory() as folder:
        jobs, deadline = [], time.monotonic() + args.limit
        for i, (env_id, kwargs) in enumerate(everything):
            told = {"env": env_id, "kwargs": kwargs, "capability": capability, "lock": f"{folder}/lock"}
            out, log = Path(folder) / f"{i}.json", Path(folder) / f"{i}.log"
            command = [
                sys.executable,
                __file__,
                "--out",
                out,
                "--lanes",
                args.lanes,
                "--case",
                json.dumps(told),
                *(["--brief"] if args.brief else []),
            ]
            with open(log, "w") as file:
                process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file)
            jobs.append((process, out, log, told))
        waiting = list(jobs)
        while waiting:
            time.sleep(1.0)
            late = time.monotonic() > deadline
            if all(out.exists() or process.poll() is not None for process, out, *_ in jobs):
                (Path(folder) / GO).touch()
            for job in list(waiting):
                if late:
                    job[0].kill()
                if job[0].poll() is not None or late:
                    waiting.remove(job)
                    print(
                        f"{time.monotonic() - deadline + args.limit:.0f} s: {job[3]['env']} {job[3]['kwargs']} rc={job[0].wait()}",
                        flush=True,
                    )
            results = []
            for process, out, log, told in jobs:
                try:
                    found = json.loads(out.read_text())
                except (OSError, ValueError):
                    found = {"env": told["env"], "kwargs": told["kwargs"]}
                if process.poll() not in (None, 0):
                    found["failed"] = log.read_text()[-1500:].replace("|", "/").replace("\n", " ")
                results.append(found)
            (args.out / "results.json").write_text(
                json.dumps({"card": card, "where": where(), "results": results})
            )
            (args.out / "results.md").write_text(f"{where()}, {card}\n\n{table(results, card)}")
    print((args.out / "results.md").read_text())
    sys.exit(sum(process.returncode != 0 for process, *_ in jobs))


if __name__ == "__main__":
    main()
