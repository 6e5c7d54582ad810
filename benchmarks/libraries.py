"""The libraries of reinforcement learning with which the environments were tried, as a table.

    python benchmarks/libraries.py                              all that have no result yet
    python benchmarks/libraries.py --only rllib skrl --again    these anew
    python benchmarks/libraries.py --examples --minutes 5       no checks: whether the examples run, until the time is over

Each library gets a virtual environment of its own in `--venvs`, with its extra and `constraints.txt`; one that is there is taken
as it is. In it its example from `docs/libraries` runs, and `benchmarks/library_checks.py`: last observations, masks, and the return
after a small budget, on native lanes and on single environments in a loop. A result is a file in benchmarks/results/libraries/, so
that what was stopped goes on; benchmarks/results/libraries.md is the table of all of them. A library that cannot be installed is
told as that.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "libraries"


@dataclass(frozen=True)
class Library:
    """A library and how it is tried.

    Attributes:
        title: its name.
        extra: what to install of this package.
        packages: distributions whose versions are told.
        example: file in `docs/libraries`, without its ending; empty: there is none.
        checked: whether `library_checks.py` knows it.
        terminal: what is to be said of last observations beside yes or no.
        limits: what does not work, and why.
        venv: name of the virtual environment, where several share one.
        page: name of its page in `docs/libraries`, where it has another name.
    """

    title: str
    extra: str
    packages: tuple[str, ...]
    example: str
    checked: bool = True
    terminal: str = ""
    limits: str = ""
    venv: str = ""
    page: str = ""


LIBRARIES = {
    "sb3": Library(
        "stable-baselines3",
        "train",
        ("stable-baselines3",),
        "sb3",
        limits="no masks (PPO, DQN); takes no gymnasium vector environment, hence `SB3VecEnv`",
    ),
    "sb3_masks": Library(
        "sb3-contrib",
        "train",
        ("sb3-contrib",),
        "sb3_masks",
        limits="RecurrentPPO knows no masks; no algorithm has both",
        venv="sb3",
        page="sb3_contrib",
    ),
    "rllib": Library(
        "RLlib, new API stack",
        "rllib",
        ("ray",),
        "rllib_ppo",
        limits="needs gymnasium 1.2.2, and lanes in `NEXT_STEP`: it takes `SAME_STEP` in silence and misreads it; the "
        "module with masks is one of its examples, for PPO alone",
    ),
    "torchrl": Library(
        "TorchRL",
        "torchrl",
        ("torchrl", "tensordict"),
        "torchrl_ppo",
        limits="refuses `NEXT_STEP`; where observations are dicts `SAME_STEP` fails in its reader of last "
        "observations, on gymnasium's own vector environment too: use `DISABLED`. `GymEnv(id, num_envs=N)` makes "
        "single environments in processes. Its masks are bool",
    ),
    "tianshou": Library(
        "Tianshou",
        "tianshou",
        ("tianshou",),
        "tianshou_dqn",
        limits="takes no gymnasium vector environment, hence `TianshouVectorEnv`; observations with masks are "
        "objects, a Python object a lane; only the DQN family reads the mask; needs pandas < 3 and virtualenv < 21",
    ),
    "cleanrl": Library(
        "CleanRL style",
        "train",
        ("torch",),
        "cleanrl_style",
        limits="the published files want Python < 3.11 and gymnasium 0.29, and learn from reset rows under "
        "`NEXT_STEP`; the example leaves these out",
        venv="sb3",
    ),
    "skrl": Library(
        "skrl",
        "skrl",
        ("skrl",),
        "skrl_ppo",
        terminal="`SAME_STEP`: it never looks at `final_obs`",
        limits="no masks; in `NEXT_STEP` it has last observations but learns from reset rows; leave "
        "`time_limit_bootstrap` off; rendering of a trainer needs `headless`",
    ),
    "pettingzoo": Library(
        "PettingZoo",
        "pettingzoo",
        ("pettingzoo",),
        "pettingzoo_clients",
        checked=False,
        limits="PipeSDNav alone has several deciders (`PipeSDClients`); its own parallel test passes, see "
        "tests/libraries; no learner",
    ),
    "envpool": Library(
        "EnvPool style",
        "train",
        ("gymnasium",),
        "envpool_style",
        limits="no learner, any legal action; no `send` and `recv` apart: lanes step together. EnvPool itself takes "
        "environments in C++ alone",
        venv="sb3",
    ),
    "puffer": Library(
        "PufferLib",
        "",
        ("pufferlib",),
        "",
        checked=False,
        limits="3.0.0 is a source archive whose setup fetches raylib and box2d, and requires gymnasium <= 0.29.1 and "
        "numpy < 2; this package needs gymnasium >= 1.2.2. So no environment holds both, and there is no extra",
    ),
}

INTRODUCTION = """\
`python benchmarks/libraries.py`. The example of each library ([docs/libraries](../../docs/libraries/index.md)) in a virtual
environment of its own, and its learners on 8 lanes of KVQueue-v1 (`requests=20`, `max_episode_steps=400`) for a small budget:
mean return in 64 held-out worlds, mean and deviation over 3 seeds. *Loop*: the same learner on single environments one after the
other, in `SyncVectorEnv` or in what the library has in its place. Last observations are compared with those of a single
environment with the same seed and actions, in 8 episodes. The budget shows that both kinds of lanes teach the same; it is too
small to learn more than which actions are not masked: any legal action gets what the row "EnvPool style" says. Steps a second
include learning, which is most of the time; the row "EnvPool style" has no learner and shows what lanes alone cost. They were
measured while another process ran, so they are good for a rough ratio alone."""
COLUMNS = (
    "library",
    "version",
    "Python",
    "gymnasium",
    "example",
    "masks honoured",
    "last observations right",
    "steps",
    "return, native lanes",
    "return, loop",
    "steps/s, native / loop",
    "what does not work, and why",
)

LATE = "not done in"
"""How the message of a command begins that ran out of time."""


def shell(command: list[Any], seconds: float) -> tuple[bool, str]:
    """Run a command from the root, for so long at most: whether it succeeded, and the end of what it said."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "LLMGYM_QUIET": "1",
    }
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=max(seconds, 1.0),
        )
    except subprocess.TimeoutExpired:
        return False, f"{LATE} {seconds:.0f} s"
    return done.returncode == 0, (done.stdout if done.returncode == 0 else done.stdout + done.stderr)[-1500:]


def install(library: Library, folder: Path, seconds: float) -> tuple[Path, str]:
    """A virtual environment that has the library.

    Args:
        library: which.
        folder: where it is, or is made.
        seconds: for that.

    Returns:
        Its Python, and why it cannot be had; empty if it can.
    """
    python = folder / "bin" / "python"
    done = folder / "complete"
    if done.exists():
        return python, ""
    ends = time.monotonic() + seconds
    torch = next(
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    )
    pip = [python, "-m", "pip", "install", "-q", "--no-compile"]  # Python compiles what is imported
    wanted = f"{ROOT}[{library.extra}]"
    for command in (
        [sys.executable, "-m", "venv", folder],
        [*pip, "-U", "pip"],
        # torch first and alone, so that whatever build of this version the machine offers is the one that is used
        *([[*pip, torch]] if library.extra != "pettingzoo" else []),
        [*pip, "-c", ROOT / "constraints.txt", "-e", wanted],
    ):
        worked, said = shell(command, ends - time.monotonic())
        if not worked:
            return python, said.strip().splitlines()[-1] if said.strip() else "pip failed"
    done.touch()
    return python, ""


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions in an environment, of these packages, gymnasium, numpy and Python."""
    names = [*packages, "gymnasium", "numpy"]
    code = (
        "import json, platform; from importlib.metadata import version\n"
        f"print(json.dumps({{**{{name: version(name) for name in {names!r}}}, 'Python': platform.python_version()}}))"
    )
    worked, said = shell([python, "-c", code], 60)
    return json.loads(said) if worked else {}


def tried(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Install one library, run its example, and check it."""
    library = LIBRARIES[name]
    result: dict[str, Any] = {"name": name, "date": date.today().isoformat(), "machine": platform.machine()}
    if not library.extra:
        return result | {"installed": False, "example": False}
    python, why = install(library, arguments.venvs / (library.venv or name), 60 * arguments.minutes)
    if why:
        return result | {"installed": False, "example": False, "why": why}
    result |= {"installed": True, "versions": versions(python, library.packages)}
    worked, said = shell([python, f"docs/libraries/{library.example}.py"], 120 if arguments.examples else 300)
    result |= {"example": worked, "said": said.strip().splitlines()[-1:]}
    if worked and library.checked and not arguments.examples:
        out = RESULTS / f".{name}.json"
        checked, said = shell([python, "benchmarks/library_checks.py", name, "--out", out], 3_000)
        if not checked:
            return result | {"why": said[-400:]}
        result |= json.loads(out.read_text())
        out.unlink()
    return result


def spread(values: list[float]) -> str:
    """Mean and deviation over seeds."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def rows(name: str, result: dict[str, Any]) -> list[str]:
    """The rows of a library, one a learner."""
    library = LIBRARIES[name]
    found = result.get("versions", {})
    told = ", ".join(f"{package} {found[package]}" for package in library.packages if package in found) or "-"
    page = f"[{library.title}](../../docs/libraries/{library.page or name}.md)"
    base = [page, told, found.get("Python", "-"), found.get("gymnasium", "-")]
    limits = library.limits + (f"; here: {result['why']}" if "why" in result else "")
    example = "runs" if result["example"] else "fails" if result["installed"] else "cannot be installed"
    if "learners" not in result:
        return [f"| {' | '.join([*base, example, *6 * ['-'], limits])} |"]
    out = []
    for learner, measured in result["learners"].items():
        native, loop = measured["native"], measured["looped"]
        rates = [statistics.median(kind["steps_per_s"]) for kind in (native, loop)]
        last = ("yes" if result["terminal"] else "no") + (f"; {library.terminal}" if library.terminal else "")
        same = " (the same bits)" if native["returns"] == loop["returns"] else ""
        cells = [
            *base,
            f"{learner}: {example}",
            "yes" if measured["masked"] == 0.0 else f"no, {measured['masked']:.0%} masked",
            last,
            f"{measured['steps']:,}",
            spread(native["returns"]) + same,
            spread(loop["returns"]),
            f"{rates[0]:,.0f} / {rates[1]:,.0f} = {rates[0] / rates[1]:.2f}",
            limits,
        ]
        out.append(f"| {' | '.join(cells)} |")
    return out


def table() -> str:
    """The page of all results that are there."""
    results = {
        name: json.loads(path.read_text())
        for name in LIBRARIES
        if (path := RESULTS / f"{name}.json").exists()
    }
    lines = [
        "# Libraries",
        "",
        INTRODUCTION,
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
    ]
    for name, result in results.items():
        lines += rows(name, result)
    days = sorted({result["date"] for result in results.values()})
    lines += [
        "",
        f"Measured {days[0]} to {days[-1]}, one thread of a {platform.machine()} CPU." if days else "",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try libraries, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument(
        "--venvs", type=Path, default=ROOT / "runs" / "libraries", help="folder of virtual environments"
    )
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--examples", action="store_true", help="only run the examples; write no results")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="to install a library; with --examples, for all of them"
    )
    arguments = parser.parse_args()
    arguments.venvs = arguments.venvs.resolve()
    if arguments.examples:
        sys.exit(examples(arguments))
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        path = RESULTS / f"{name}.json"
        if path.exists() and not arguments.again:
            continue
        path.write_text(json.dumps(tried(name, arguments), indent=1) + "\n")
        (RESULTS.parent / "libraries.md").write_text(table())
    page = table()
    (RESULTS.parent / "libraries.md").write_text(page)
    print(page)


def examples(arguments: argparse.Namespace) -> int:
    """Run the examples; 1 if one fails in an environment that has its library. What cannot be had or done in time is told."""
    ends, failed = time.monotonic() + 60 * arguments.minutes, 0
    for name in arguments.only:
        if not LIBRARIES[name].extra:
            continue
        arguments.minutes = (ends - time.monotonic()) / 60
        if arguments.minutes <= 0:
            print(f"{name}: no time left", flush=True)
            continue
        result = tried(name, arguments)
        if not result["installed"]:
            print(f"{name}: cannot be had here: {result['why']}", flush=True)
        else:
            late = "".join(result["said"]).startswith(LATE)
            verdict = "runs" if result["example"] else "takes long here" if late else "FAILS"
            print(f"{name}: {verdict}: {result['said']}", flush=True)
            failed += verdict == "FAILS"
    return min(failed, 1)


if __name__ == "__main__":
    main()
