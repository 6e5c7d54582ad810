"""How fast the host of a machine drives its GPU: what `llmgym profile --host NAME` measures.

An engine on the same GPU is slower or faster with its host: between two steps, and in steps whose kernels it launches one by one
or between CUDA graphs. Three small measurements tell a host, none with an engine:

- `step_ms`: inputs to the device, greedy sampling, tokens back, by sequences (`host_step` of the kernel sets);
- `launch_ms`: the processor's time to launch one pass of a model kernel by kernel;
- `graph_ms`: the same with a graph for each layer and attention between them.

An engine's own Python is not in them, so they are not an engine's times. They are taken as ratios: an option of a profile's host
laws that was measured on an engine (`vllm-0.24-steps`) and keeps these three of its machine, its `speed`, is scaled to the machine
at hand. Without a `speed` to compare with, the times measured here are written as they are: less than an engine takes.
"""

import datetime
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.core.checks import number, output_folder
from llmgym.errors import InvalidArgument
from llmgym.profiles.bench import Device
from llmgym.profiles.laws import option
from llmgym.profiles.measure import Settings, _Bench
from llmgym.profiles.named import load
from llmgym.profiles.profile import Profile, Source

SEQUENCES = (1, 16, 64, 256)
GRAPH_TOKENS = 512
"""A step of more tokens is no CUDA graph, as in vLLM 0.24."""
TOKENS = 16
"""Tokens of the pass that is launched: few, so that the device is never what is waited for."""
FEWEST = 10
"""Repetitions, at least."""
ENGINE_OPTION = "vllm-0.24-steps"


@dataclass(frozen=True)
class Speed:
    """What was measured of a host, ms; medians.

    Attributes:
        step_ms: a step without model and scheduler, for each of `SEQUENCES`.
        launch_ms: to launch a pass of the model kernel by kernel.
        graph_ms: to launch it as a graph for each layer, with attention between them.
    """

    step_ms: tuple[float, ...]
    launch_ms: float
    graph_ms: float


def host_speed(settings: Settings) -> Speed:
    """Measure the host of this machine.

    Args:
        settings: model (its layers are launched), device, and minutes, which the three measurements share.

    Raises:
        InvalidArgument: the device is no CUDA device, or cannot be used.
        MissingExtra: torch is not installed.
    """
    if not Device(settings.device).cuda:
        raise InvalidArgument(
            f"device={settings.device!r}: the speed of a host is what it takes to launch kernels; expected a CUDA device"
        )
    return _speed(_Bench(settings), 60 * settings.minutes / (2 + len(SEQUENCES)))


def _speed(bench: _Bench, seconds: float) -> Speed:
    torch, device = bench.torch, bench.device
    (layers, layer), (_, head) = bench._dense(TOKENS)
    ((_, attend),) = bench._attention(1, TOKENS, TOKENS)
    for _ in range(3):
        layer()
        attend()
    graph = device.captured(layer) if bench.cuda else layer

    def one_pass(part: Callable[[], Any]) -> None:
        for _ in range(int(layers)):
            part()
            attend()
        head()

    def step(sequences: int) -> Callable[[], Any]:
        logits = device.random(sequences, bench.shape.vocab)
        lists = [7] * sequences, list(range(sequences)), [[3] * 64 for _ in range(sequences)]

        def run() -> Any:
            sent = [torch.tensor(x, dtype=torch.int32).to(device.device, non_blocking=True) for x in lists]
            return sent, logits.argmax(-1).tolist()

        return run

    wait = torch.cuda.synchronize if bench.cuda else _nothing
    return Speed(
        tuple(_median_ms(step(n), wait, seconds) for n in SEQUENCES),
        _median_ms(lambda: one_pass(layer), wait, seconds),
        _median_ms(lambda: one_pass(graph), wait, seconds),
    )


def _nothing() -> None:
    """A processor has nothing to wait for."""


def _median_ms(call: Callable[[], Any], wait: Callable[[], Any], seconds: float) -> float:
    """Median time in which the processor gets through a call; the device is empty before each."""
    for _ in range(3):
        call()
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < FEWEST or time.perf_counter() - start < seconds:
        wait()
        began = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - began))
    wait()
    return float(np.median(taken))


def scaled(laws: list[Mapping[str, Any]], speed: Speed, source: str) -> tuple[list[dict[str, Any]], str]:
    """The host laws of an engine on the machine whose speed was measured.

    Args:
        laws: `by_sequences`, `launch` and `floor` of the engine elsewhere; nothing is scaled unless `launch` holds the `speed` of
            that machine.
        speed: of this machine.
        source: where it was measured.

    Returns:
        The laws, and a note on how they came about.
    """
    by_name = {law["law"]: law for law in laws}
    before = by_name["launch"].get("speed")
    term = {"source": source, "count": 1}
    kept = {"above_tokens": by_name["launch"]["above_tokens"], "ahead": True, "speed": asdict(speed)}
    if before is None:
        return [
            {"law": "by_sequences", **term, "sequences": list(SEQUENCES), "knots_ms": list(speed.step_ms)},
            {"law": "launch", **term, "base_ms": speed.launch_ms, **kept},
            {"law": "floor", **term, "base_ms": speed.graph_ms},
        ], "as measured without an engine, whose own Python is not in it: less than an engine takes"
    step = np.mean(np.array(speed.step_ms) / np.array(before["step_ms"]))
    launch = speed.launch_ms / before["launch_ms"]
    graph = speed.graph_ms / before["graph_ms"]
    knots = by_name["by_sequences"]
    return [
        {
            "law": "by_sequences",
            **term,
            "sequences": list(knots["sequences"]),
            "knots_ms": [float(step * ms) for ms in knots["knots_ms"]],
        },
        {"law": "launch", **term, "base_ms": float(launch * by_name["launch"]["base_ms"]), **kept},
        {"law": "floor", **term, "base_ms": float(graph * by_name["floor"]["base_ms"])},
    ], (
        f"steps {step:.2f}, launches {launch:.2f} and graphs {graph:.2f} times those of the machine of option {ENGINE_OPTION!r}"
    )


def measure_host(name: str, settings: Settings, out: Path) -> Profile:
    """Measure the host, and write the profile `settings.host_from` with it as an option of its host laws.

    Args:
        name: of the option, such as the machine's.
        settings: profile to start from (`host_from`), device, model whose layers are launched, minutes.
        out: folder to write; may be that of an earlier call, whose options are kept if `settings.host_from` is that folder.

    Returns:
        The profile, with the option chosen.

    Raises:
        InvalidArgument: no CUDA device, a name that is taken or no name, a profile without host laws to scale, or a folder that
            cannot be written.
        MissingExtra: torch is not installed.
    """
    output_folder("out", out)
    number("minutes", settings.minutes)
    profile = load(settings.host_from)
    hosts = profile.laws.get("host", {})
    if ENGINE_OPTION not in hosts:
        raise InvalidArgument(
            f"host_from={settings.host_from!r}: it has no host option {ENGINE_OPTION!r} to scale; h100/llama-3.1-8b and "
            "h200/llama-3.1-8b have"
        )
    if not name or name in ("default", ENGINE_OPTION):
        raise InvalidArgument(
            f"host={name!r}: expected a name for the option, other than 'default' and {ENGINE_OPTION!r}"
        )
    speed = host_speed(settings)
    title = Device(settings.device).title
    today = datetime.date.today().isoformat()
    source = f"llmgym profile --host {name}, {title}, {today}"
    reference: Any = option(profile.laws, "host", ENGINE_OPTION, settings.host_from)
    laws, how = scaled(reference, speed, source)
    origin = profile.provenance
    changed = replace(
        profile,
        laws={**profile.laws, "host": {**hosts, name: laws}},
        provenance=replace(
            origin,
            sources=(
                *origin.sources,
                Source(source, "-", "MIT", used_for=f"option {name!r} of the host laws"),
            ),
            notes=(*origin.notes, f"Option host={name!r}: {how}. Measured on {today}."),
        ),
    )
    changed.save(out)
    return load(out, host=name)
