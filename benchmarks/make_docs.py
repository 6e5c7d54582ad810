"""Write the parts of the documentation that come out of the code: observation tables, scenario tables, pictures.

python benchmarks/make_docs.py
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import gymnasium

import llmgym
from benchmarks import pictures, site_tables
from llmgym import baselines
from llmgym.core import settings
from llmgym.envs import ENVIRONMENTS
from llmgym.envs.afd.law import optimal_ratio
from llmgym.envs.afd.ratio.scenarios import SCENARIOS as RATIO
from llmgym.envs.afd.refill.scenarios import SCENARIOS as REFILL
from llmgym.envs.attention.scenarios import SCENARIOS as ATTENTION
from llmgym.envs.distill.scenarios import SCENARIOS as DISTILL
from llmgym.envs.forage.scenarios import SCENARIOS as FORAGE
from llmgym.envs.kv.queue.scenarios import SCENARIOS
from llmgym.envs.kv.queue_v1.scenarios import SCENARIOS as QUEUE_V1
from llmgym.envs.memory.pipe.scenarios import SCENARIOS as PIPE
from llmgym.envs.memory.place.scenarios import SCENARIOS as PLACE
from llmgym.envs.memory.place.view import short_time
from llmgym.envs.oserve.scenarios import SCENARIOS as OSERVE
from llmgym.envs.pipesd.batch.scenarios import SCENARIOS as BATCH
from llmgym.envs.pipesd.scenarios import SCENARIOS as PIPESD
from llmgym.envs.pipesd.scenarios import TUNING
from llmgym.envs.pipesd.scenarios import Scenario as Speculation
from llmgym.envs.ppd.scenarios import SCENARIOS as PPD
from llmgym.envs.segmented.scenarios import SCENARIOS as SEGMENTED
from llmgym.envs.unmask.scenarios import SCENARIOS as UNMASK
from llmgym.envs.unmask.schedule import calls_of

DOCS = Path(__file__).parent.parent / "docs"
MOST_RULES = 8
"""Baselines that the table of environments names."""
PAPERS = {
    "oserve": ("OServe", "envs/oserve.md"),
    "ppd": ("PPD", "envs/ppd_routing.md"),
    "pipesd": ("PipeSD", "envs/pipesd_nav.md"),
    "afd": ("Attention/FFN ratios", "envs/afd_ratio.md"),
    "memory": ("Memory pipeline", "envs/mem_pipe.md"),
    "kv": ("KV-cache queue", "envs/kv_queue.md"),
    "dus": ("Dilated unmasking", "envs/unmask.md"),
    "scout": ("SCOUT", "envs/forage.md"),
    "slay": ("SLAY", "envs/attention_budget.md"),
    "segmented": ("Segmented execution", "envs/segmented_prefill.md"),
    "distill": ("Distillation energy", "envs/distill_programme.md"),
}
"""By the first part of a deviation's key: name for people, and the page that cites the paper."""


def fill(page: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- end -->` in a page."""
    old = page.read_text()
    new = re.sub(
        rf"(<!-- {mark} -->\n).*?(<!-- end -->)", lambda m: m[1] + text + "\n" + m[2], old, flags=re.S
    )
    if mark not in old:
        raise SystemExit(f"{page}: no mark {mark!r}")
    page.write_text(new)


def deviations(of: str) -> str:
    """The rows of `docs/deviations.csv` on numbers of a "paper", or of another "simulation" of one."""
    lines = ["| paper | where | what | there | here | why |", "|---|---|---|---|---|---|"]
    before = ""
    with (DOCS / "deviations.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, strict=True):
            if row["of"] != of:
                continue
            name, page = PAPERS[row["key"].partition("/")[0]]
            unit = "" if row["unit"] in ("-", "ratio", "r") else f" {row['unit']}"
            why = "as above" if row["why"] == before else row["why"]
            lines.append(
                f"| [{name}]({page}) | {row['where']} | {row['quantity']} | {row['reference']}{unit} "
                f"| {row['ours']}{unit} | {why} |"
            )
            before = row["why"]
    return "\n".join(lines)


def settings_tables() -> None:
    """The settings of every environment of this package that has scenarios, where its page has a place for them."""
    for spec in ENVIRONMENTS:
        known = spec.scenarios_by_name()
        page = DOCS.parent / spec.docs
        if known and "<!-- settings -->" in page.read_text():
            fill(page, "settings", settings.markdown(type(next(iter(known.values())))))


def queue_scenarios(env_id: str = "llmgym/KVQueue-v0", known: Iterable[str] = SCENARIOS) -> str:
    """The scenarios of KVQueue with what the closed forms say about them."""
    rows = [
        "| scenario | what | M, tokens | rate, req/s | predicted capacity, req/s | binds |",
        "|---|---|---|---|---|---|",
    ]
    for name in known:
        simulation = gymnasium.make(env_id, scenario=name).unwrapped.simulation
        found = simulation.predicted
        rows.append(
            f"| `{name}` | {simulation.scenario.about} | {simulation.scenario.kv_capacity:,} | {simulation.scenario.rate_rps:.2f} "
            f"| {found.rate_rps:.2f} | {found.binding} |"
        )
    return "\n".join(rows)


def ratio_scenarios() -> str:
    """The scenarios of AFDRatio with the ratios that the mean field calls best."""
    rows = [
        "| name | what | B | r* of the mean field, of each law | fidelity | epochs x cycles |",
        "|---|---|---|---|---|---|",
    ]
    for name, scenario in RATIO.items():
        simulation = gymnasium.make("llmgym/AFDRatio-v0", scenario=name).unwrapped.simulation
        best = [
            optimal_ratio(simulation.coefficients, scenario.batch, law.theta).ratio for law in simulation.laws
        ]
        fidelity = scenario.fidelity + (f", {scenario.batches}" if scenario.fidelity == "pipeline" else "")
        length = f"{scenario.epochs} x {scenario.cycles:,}"
        if scenario.stop:
            length = f"{scenario.epochs}, until {scenario.stop:,} requests an instance"
        rows.append(
            f"| `{name}` | {scenario.about} | {scenario.batch} | {', '.join(f'{r:.1f}' for r in best)} | {fidelity} | {length} |"
        )
    return "\n".join(rows)


def refill_scenarios() -> str:
    """The scenarios of AFDRefill."""
    rows = [
        "| name | what | r x B | window | cycles | told of steps |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| `{name}` | {s.about} | {s.ratio} x {s.batch} | {s.window} | {s.cycles:,} | {s.information} |"
        for name, s in REFILL.items()
    ]
    return "\n".join(rows)


def routing_scenarios() -> str:
    """The scenarios of PPDRouting and PPDWeights."""
    rows = [
        "| name | what | nodes | costs | conversations | cache, tokens | link, GB/s | w_tpot |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in PPD:
        simulation = gymnasium.make(
            "llmgym/PPDRouting-v0", scenario=name, reference="idle"
        ).unwrapped.simulation
        chosen = simulation.scenario
        load = f"{chosen.conversations} of `{chosen.workload}`, {chosen.qps:g} a second"
        load += "" if chosen.max_inflight is None else f", {chosen.max_inflight} at once"
        rows.append(
            f"| `{name}` | {chosen.about} | {chosen.allocation} | {chosen.profile or 'measured'} | {load} | {chosen.kv_capacity:,} "
            f"| {'-' if chosen.link_gb_per_s is None else f'{chosen.link_gb_per_s:g}'} | {chosen.w_tpot:g} |"
        )
    return "\n".join(rows)


def speculation_scenarios(known: dict[str, Speculation] = PIPESD) -> str:
    """The scenarios of PipeSDNav, or of PipeSDTune."""
    rows = [
        "| name | what | text | link | bandwidth | gamma, ms | clients | tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| `{name}` | {s.about} | {s.text} | {s.link} "
        f"| {s.bandwidth if isinstance(s.bandwidth, str) else f'{s.bandwidth:g} Mbps'} "
        f"| {1000 * s.gamma_s:g} | {s.clients} | {s.tokens:,} |"
        for name, s in known.items()
    ]
    return "\n".join(rows)


def window_scenarios() -> str:
    """The scenarios of PipeSDBatch."""

    def span(limits: tuple[float, float], scale: float) -> str:
        low, high = (f"{scale * limit:g}" for limit in limits)
        return low if low == high else f"{low} to {high}"

    rows = ["| name | what | N | alpha, ms | beta, ms | gamma, ms |", "|---|---|---|---|---|---|"]
    for name, s in BATCH.items():
        speeds = " | ".join(span(limits, 1000.0) for limits in (s.alpha_s, s.beta_s, s.gamma_s))
        rows.append(f"| `{name}` | {s.about} | {span(s.tokens, 1)} | {speeds} |")
    return "\n".join(rows)


def shapes_table() -> str:
    """The scenarios of OServe with the deployments that there are to choose from."""
    rows = [
        "| name | what | GPUs | deployments, candidates (what they lose) | static plan | epochs |",
        "|---|---|---|---|---|---|",
    ]
    for name, scenario in OSERVE.items():
        simulation = gymnasium.make("llmgym/OServe-v0", scenario=name).unwrapped.simulation
        static = simulation.name_of(simulation.deployments[simulation.static])
        rows.append(
            f"| `{name}` | {scenario.about} | {scenario.gpus} | {len(simulation.deployments):,}, {len(simulation.menu)} "
            f"({100 * simulation.menu_loss:.1f} %) | {static} | {scenario.epochs} of {scenario.epoch_s:g} s |"
        )
    return "\n".join(rows)


def place_scenarios() -> str:
    """The scenarios of MemPlace."""
    rows = [
        "| name | what | devices | workloads | link | error of times | weight of energy | requests |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| `{name}` | {s.about} | {s.hardware} | {len(s.mix)} | {s.link[0]:g} to {s.link[1]:g} | {s.noise:g} "
        f"| {s.energy_weight:g} | {s.requests} |"
        for name, s in PLACE.items()
    ]
    return "\n".join(rows)


def pipe_scenarios() -> str:
    """The scenarios of MemPipe."""
    rows = [
        "| name | what | devices | load | mean request on the GPU | fused | wait | link | weight of energy | requests |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, s in PIPE.items():
        mean = short_time(gymnasium.make("llmgym/MemPipe-v0", scenario=name).unwrapped.simulation.mean_s)
        rows.append(
            f"| `{name}` | {s.about} | {s.hardware} | {s.load:g} | {mean} | {'yes' if s.fused else 'no'} "
            f"| {'yes' if s.wait else 'no'} | {s.link:g} | {s.energy_weight:g} | {s.requests} |"
        )
    return "\n".join(rows)


def attention_scenarios() -> str:
    """The scenarios of AttentionBudget."""
    rows = [
        "| name | what | kernels | actions | mean batch without loss | load | budget, nat | free memory, GB | batches |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, s in ATTENTION.items():
        simulation = gymnasium.make("llmgym/AttentionBudget-v0", scenario=name).unwrapped.simulation
        rows.append(
            f"| `{name}` | {s.about} | {len(simulation.menu)} | {simulation.defer + 1} | {simulation.mean_tokens:,.0f} tokens, "
            f"{short_time(simulation.mean_s)} | {s.load:g} | {s.budget:g} | {simulation.free_bytes / 1e9:.3g} | {s.batches} |"
        )
    return "\n".join(rows)


def unmask_scenarios() -> str:
    """The scenarios of Unmask."""
    rows = [
        "| name | what | tokens | block | calls of DUS | lambda, calls a nat | a call | interleaved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in UNMASK.items():
        call_s = gymnasium.make("llmgym/Unmask-v0", scenario=name).unwrapped.simulation.call_s.mean()
        price = f"{s.lambda_low:g}" + (f" to {s.lambda_high:g}" if s.lambda_high > s.lambda_low else "")
        rows.append(
            f"| `{name}` | {s.about} | {s.tokens} | {s.block} | {calls_of(s.tokens, s.block)} | {price} "
            f"| {short_time(call_s)} | {', '.join(map(str, s.interleave))} |"
        )
    return "\n".join(rows)


def forage_scenarios() -> str:
    """The scenarios of Forage."""
    rows = [
        "| name | what | document, tokens | facts | duplicates, contradictions | price of 1,000 tokens | of a second |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in FORAGE:
        s = gymnasium.make("llmgym/Forage-v0", scenario=name).unwrapped.simulation.scenario
        low, high = s.price
        price = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        most = max(k + 1 for k, share in enumerate(s.facts) if share > 0)
        rows.append(
            f"| `{name}` | {s.about} | {s.chunks * s.chunk_tokens:,} | 1 to {most} | {s.duplicates:g}, {s.contradictions:g} "
            f"| {price} | {s.second_price:g} |"
        )
    return "\n".join(rows)


def segmented_scenarios() -> str:
    """The scenarios of SegmentedPrefill."""
    rows = [
        "| name | what | model | card | modes | trained for | load | mean prefill | limit on later tokens | requests |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, s in SEGMENTED.items():
        mean = short_time(
            gymnasium.make("llmgym/SegmentedPrefill-v0", scenario=name).unwrapped.simulation.unit_s
        )
        later = "-" if s.tpot_limit_s is None else short_time(s.tpot_limit_s)
        rows.append(
            f"| `{name}` | {s.about} | {s.model} | {s.device} | {len(s.modes)} | {len(s.trained)} | {s.load:g} | {mean} | {later} "
            f"| {s.requests} |"
        )
    return "\n".join(rows)


def distill_scenarios() -> str:
    """The scenarios of DistillProgramme."""
    rows = [
        "| name | what | GPUs | students known, then a day, for days | days | budget, kWh | price of a kWh, a kg | caps, W |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| `{name}` | {s.about} | {s.gpus} | {s.known}, {s.per_day:g}, {s.orders_days:g} | {s.horizon_days:g} "
        f"| {s.budget_kwh:g}{', hard' if s.hard else ''} | {s.energy_weight:g}, {s.carbon_weight:g} "
        f"| {', '.join(f'{cap:g}' for cap in s.caps)} |"
        for name, s in DISTILL.items()
    ]
    return "\n".join(rows)


def environments() -> str:
    """The table of environments: id, decision, paper and rules of each, out of its `EnvSpec`."""
    rows = ["| id | decision | from | baselines |", "|---|---|---|---|"]
    for one in ENVIRONMENTS:
        paper = re.sub(r"arXiv ([\d.]+)", r"[arXiv \1](https://arxiv.org/abs/\1)", one.source)
        names = baselines.names(one.id)
        rules = ", ".join(f"`{name}`" for name in names[:MOST_RULES])
        if len(names) > MOST_RULES:
            rules += f" and {len(names) - MOST_RULES} more"
        rows.append(f"| [`{one.id}`]({one.docs}) | {one.decision} | {paper} | {rules} |")
    return "\n".join(rows)


def main() -> None:
    """Write everything."""
    fill(DOCS.parent / "README.md", "environments", environments())
    settings_tables()
    for env_id in llmgym.env_ids():
        env = gymnasium.make(env_id).unwrapped
        page = DOCS.parent / llmgym.spec(env_id).docs
        if page.exists() and "<!-- observation -->" in page.read_text():
            fill(page, "observation", env.layout.markdown())
    for name, table in (
        ("forage", forage_scenarios),
        ("kv_queue", queue_scenarios),
        ("kv_queue_v1", lambda: queue_scenarios("llmgym/KVQueue-v1", QUEUE_V1)),
        ("afd_ratio", ratio_scenarios),
        ("afd_refill", refill_scenarios),
        ("attention_budget", attention_scenarios),
        ("distill_programme", distill_scenarios),
        ("mem_pipe", pipe_scenarios),
        ("mem_place", place_scenarios),
        ("oserve", shapes_table),
        ("pipesd_nav", speculation_scenarios),
        ("pipesd_batch", window_scenarios),
        ("pipesd_tune", lambda: speculation_scenarios(TUNING)),
        ("ppd_routing", routing_scenarios),
        ("unmask", unmask_scenarios),
        ("segmented_prefill", segmented_scenarios),
    ):
        fill(DOCS / "envs" / f"{name}.md", "scenarios", table())
    for of in ("paper", "simulation"):
        fill(DOCS / "deviations.md", of, deviations(of))
    fill(DOCS / "gallery.md", "gallery", site_tables.gallery())
    fill(DOCS / "rules.md", "rules", site_tables.rules())
    fill(DOCS / "api" / "environments.md", "classes", site_tables.classes())
    for spec in ENVIRONMENTS:
        if table := site_tables.numbers(spec):
            fill(DOCS.parent / spec.docs, "numbers", table)
    pictures.main([])


if __name__ == "__main__":
    main()
