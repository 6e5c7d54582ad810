"""Measuring a kernel set: what `llmgym profile --kernels` does with the cases of `llmgym.profiles.families`.

Every finished case is a line in `rows.csv` at once, so a run that is stopped goes on where it was.
"""

import csv
import datetime
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.core.checks import number, output_folder
from llmgym.errors import InvalidArgument, ProfileError, UnknownName
from llmgym.profiles import paper_families
from llmgym.profiles.bench import Case, Device
from llmgym.profiles.families import LARGEST_BYTES, QUICK, Families, Grid
from llmgym.profiles.kernels import COLUMNS, FORMAT, Kernels, Row, load_kernels, parse_row, write_rows

FAMILIES = (
    *(
        "dense",
        "attention",
        "paged",
        "afd",
        "moe",
        "memory",
        "diffusion",
        "segmented",
        "copies",
        "host",
        "linear",
    ),
    *("power", "sustained"),
)
"""All families in the order in which they are measured; long loads, which heat the device, come last."""


def measure_kernels(
    out: Path,
    *,
    device: str = "cuda",
    minutes: float = 8.0,
    families: Sequence[str] = (),
    quick: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Kernels:
    """Measure what is not in `out/rows.csv` yet, and write the kernel set into `out`.

    A case that fails (memory ends, a kernel is missing) is noted with its reason and left out, also by a later run in the same
    folder; delete its line in `rows.csv` to try again.

    Args:
        out: folder of the set.
        device: a torch device.
        minutes: time for all cases together, shared evenly; cases end earlier once they have enough repetitions.
        families: names; all of them if empty.
        quick: few small shapes: does it run.
        progress: called before every case with its number, the number of cases, and what it is.

    Returns:
        The kernel set, with what earlier runs in the folder have measured.

    Raises:
        InvalidArgument: the device cannot be used, `out` cannot be written to, or it holds measurements of another.
        UnknownName: no such family.
        MissingExtra: torch is not installed.
    """
    number("minutes", minutes)
    output_folder("out", out)
    bench = Device(device)
    common = Families(bench, QUICK if quick else Grid())
    known = common.known | paper_families.known(common)
    for name in families:
        if name not in known:
            raise UnknownName("family", name, known)
    cases = [case for name in (families or FAMILIES) for case in known[name]()]
    out.mkdir(parents=True, exist_ok=True)
    log = out / "rows.csv"
    about = f"# kernels on {bench.title}{', quick' if quick else ''}"
    done, skipped = _read_log(log, about)
    share = minutes * 60 / max(len(cases), 1) * 0.6
    with log.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            file.write(f"{about}\n")
        for at, case in enumerate(cases):
            key = (case.op, case.variant, case.shape)
            if key in done or key in skipped:
                continue
            shape = " ".join(f"{name}={value}" for name, value in case.shape)
            if progress:
                progress(at, len(cases), f"{case.op} {shape}")
            try:
                if case.needs_bytes > LARGEST_BYTES:
                    raise RuntimeError(f"needs about {case.needs_bytes / 2**30:.0f} GiB")
                row = _measure_case(bench, case, share, common.grid.seconds)
                done[key] = row
                writer.writerow(row.cells())
            except Exception as error:  # noted, and the others go on
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                skipped[key] = reason
                writer.writerow([case.op, case.variant, shape, "skipped", reason, "", "", ""])
            file.flush()
            os.fsync(file.fileno())
            if key in skipped and bench.cuda:
                _revive(bench, f"{case.op} {shape}")
    meta = {
        "format": FORMAT,
        "device": bench.title,
        "date": datetime.date.today().isoformat(),
        "method": "llmgym profile --kernels: medians of repetitions on random data, second-level cache flushed before each, "
        "replayed as CUDA graphs (host_step and power: launches as they come; layer_products: back to back, nothing flushed)",
        "versions": bench.versions(),
        "notes": [
            "host_step is not an engine's host time: the scheduler's own Python is not in it.",
            "peak_bytes is what a call allocates beyond its inputs, with its result.",
        ],
        "skipped": [
            {"op": op, "variant": variant, "shape": dict(shape), "reason": reason}
            for (op, variant, shape), reason in skipped.items()
        ],
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    write_rows(out / "kernels.csv", done.values())
    return load_kernels(out)


def _revive(bench: Device, what: str) -> None:
    """Give memory back after a failure. Raises `ProfileError` if the device cannot be used any more in this process."""
    try:
        bench.torch.cuda.empty_cache()
        bench.torch.cuda.synchronize()
    except RuntimeError as error:
        raise ProfileError(
            f"{what} took the device down: run the same command again, which leaves it out"
        ) from error


def _measure_case(bench: Device, case: Case, budget_s: float, power_s: float) -> Row:
    call = case.make()
    peak = -1
    if case.memory:
        call()
        peak = bench.peak_bytes(call)
    taken = (
        bench.time_sustained_us(call, power_s)
        if case.sustained
        else bench.time_us(call, budget_s, case.graph)
    )
    low, median, high = np.quantile(taken, [0.25, 0.5, 0.75])
    power = bench.power_w(call, power_s) if case.power else math.nan
    return Row(case.op, case.variant, case.shape, float(median), float(high - low), peak, power, len(taken))


def _read_log(path: Path, about: str) -> tuple[dict[Any, Row], dict[Any, str]]:
    """Measured and skipped cases of an earlier run; a line that was cut off is measured again."""
    done: dict[Any, Row] = {}
    skipped: dict[Any, str] = {}
    if not path.is_file():
        return done, skipped
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    lines = whole.decode().splitlines()
    if lines and lines[0] != about:
        raise InvalidArgument(f"{path} holds {lines[0][2:]!r}, not {about[2:]!r}: name another folder")
    for line, cells in enumerate(csv.reader(lines[1:]), start=2):
        named = dict(zip(COLUMNS, cells, strict=False))
        if named.get("latency_us") == "skipped":
            shape = tuple((n, int(v)) for n, _, v in (part.partition("=") for part in named["shape"].split()))
            skipped[named["op"], named["variant"], shape] = named["iqr_us"]
        else:
            row = parse_row(named, f"{path}, row {line}")
            done[row.key] = row
    return done, skipped
