"""`llmgym profiles` shows cost profiles, `llmgym profile` measures them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from llmgym import profiles
from llmgym.core.told import Told
from llmgym.errors import InvalidArgument
from llmgym.profiles.cost import prefill_attention_s, step_time_s
from llmgym.profiles.measure import Settings, measure
from llmgym.profiles.measure_host import measure_host


@dataclass(frozen=True)
class Profiles(Told):
    """Show a cost profile: where its numbers come from, and what a step costs."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Name of a profile or path of its folder; all of them if left out."""

    def run(self, console: Console) -> dict[str, Any]:
        if self.name is None:
            console.print("\n".join(profiles.names()))
            return {"profiles": profiles.names()}
        profile = profiles.load(self.name)
        cost = profile.step_cost()
        console.print(
            f"[bold]{profile.name}[/bold]: {profile.model}, {profile.gpu}, TP {profile.tensor_parallel}, {profile.dtype}"
        )
        console.print(f"method: {profile.provenance.method}, {profile.provenance.date}")
        for source in profile.provenance.sources:
            console.print(f"- {source.title} ({source.licence}), {source.url}: {source.used_for}")
        for note in profile.provenance.notes:
            console.print(f"- {note}")
        table = Table(title="step cost, ms")
        for title in ("decodes", "1,000 cached tokens each", "+ a 512-token chunk", "+ a 2,048-token chunk"):
            table.add_column(title, justify="right")
        steps = []
        for batch in (1, 8, 32, 128, 256):
            row = [step_time_s(cost, 0, 0.0, batch, 1000 * batch, batch, 1000 * batch)]
            for chunk in (512, 2048):
                attention = prefill_attention_s(cost, chunk, 0)
                kv = 1000 * batch
                row.append(step_time_s(cost, chunk, attention, batch, kv, batch + 1, kv + chunk))
            table.add_row(str(batch), *(f"{1e3 * time_s:.2f}" for time_s in row))
            names = ("step_s", "with_512_s", "with_2048_s")
            steps.append({"decodes": batch, **dict(zip(names, row, strict=True))})
        console.print(table)
        return {
            "name": profile.name,
            "model": profile.model,
            "gpu": profile.gpu,
            "tensor_parallel": profile.tensor_parallel,
            "dtype": profile.dtype,
            "provenance": asdict(profile.provenance),
            "cached_tokens_each": 1000,
            "steps": steps,
        }


@dataclass(frozen=True)
class Measure(Told):
    """Measure what a model costs on a device of this machine, and write a profile that every environment takes.

    With --kernels, measure single kernels of many systems instead (see docs/kernels.md). With --host NAME, measure how fast this
    machine's host drives its GPU, and write the profile of --host-from with that as an option NAME of its host laws.
    """

    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write; a run that was stopped goes on in it."""
    model: str = "llama-3.1-8b"
    """Shape to measure (weights are random)."""
    tensor_parallel: int = 1
    """Measure the shard of one of so many GPUs."""
    device: str = "cuda"
    """Torch device: cuda, cuda:1, cpu."""
    minutes: float = 8.0
    """Time to spend; more repetitions, not more points."""
    quick: bool = False
    """A few points of a toy shape: seconds, even on a CPU."""
    host_from: str = "h100/llama-3.1-8b"
    """Profile whose host time is taken over: kernels do not show it."""
    kernels: bool = False
    """Measure a kernel set instead of a model."""
    host: str | None = None
    """Measure the host instead of a model, and write it as an option of this name."""
    families: tuple[str, ...] = ()
    """With --kernels: which families; all if left out."""
    progress: bool = True
    """Show progress on stderr."""

    def run(self, console: Console) -> dict[str, Any]:
        if self.families and not self.kernels:
            raise InvalidArgument(f"families={self.families!r}: needs --kernels")
        settings = Settings(
            self.model, self.tensor_parallel, self.device, self.minutes, self.quick, self.host_from
        )
        if self.host is not None:
            return self._host(console, self.host, settings)
        columns = (
            TextColumn("{task.description:36}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=Console(stderr=True), disable=not self.progress)
        task = bar.add_task("")

        def told(done: int, total: int, what: str) -> None:
            if (
                not bar.live.is_started
            ):  # a mistake of the caller, told before the first case, is one line alone
                bar.start()
            bar.update(task, completed=done, total=total, description=what)

        try:
            if self.kernels:
                from llmgym.profiles.measure_kernels import measure_kernels

                measured = measure_kernels(
                    self.out,
                    device=self.device,
                    minutes=self.minutes,
                    families=self.families,
                    quick=self.quick,
                    progress=told,
                )
            else:
                profile = measure(settings, self.out, progress=told)
        finally:
            if bar.live.is_started:
                bar.stop()
        if self.kernels:
            table = Table(title=f"{self.out}: {measured.meta['device']}", title_justify="left")
            for name in ("op", "variants", "cases"):
                table.add_column(name)
            ops = {
                op: {"variants": len(variants), "cases": sum(row.op == op for row in measured.rows)}
                for op, variants in measured.ops().items()
            }
            for op, counts in ops.items():
                table.add_row(op, *map(str, counts.values()))
            console.print(table)
            console.print(
                f"{len(measured.meta['skipped'])} cases were skipped; why is told in {self.out / 'meta.json'}"
            )
            device, skipped = measured.meta["device"], len(measured.meta["skipped"])
            return {"device": device, "ops": ops, "skipped": skipped, "written": [self.out]}
        console.print(f"Written: {self.out} ({profile.name})")
        return Profiles(str(self.out)).run(console) | {"written": [self.out]}

    def _host(self, console: Console, name: str, settings: Settings) -> dict[str, Any]:
        if self.kernels:
            raise InvalidArgument(f"host={name!r}: give either --host or --kernels")
        profile = measure_host(name, settings, self.out)
        console.print(f"Written: {self.out}, option host={name!r}")
        console.print(profile.provenance.notes[-1], markup=False)
        return {"host": name, "note": profile.provenance.notes[-1], "written": [self.out]}
