"""The report: one HTML file with tables, pictures, versions and the command that makes it again."""

import base64
import hashlib
import html
import importlib.metadata
import io
import json
import platform
import shlex
from pathlib import Path
from typing import Any

from llmgym.evaluation.export import output_path
from llmgym.evaluation.plots import draw
from llmgym.evaluation.results import Results
from llmgym.evaluation.rollout import RETURN
from llmgym.evaluation.tables import ResultTable
from llmgym.version import __version__

LIBRARIES = ("gymnasium", "numpy", "numba", "scipy")

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 74rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.lead { color: #555; margin-top: 0; } .note { color: #555; font-size: .87rem; margin: .25rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; margin: .6rem 0; }
caption { text-align: left; color: #555; padding-bottom: .4rem; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e3e3; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #222; vertical-align: bottom; }
tbody tr:nth-child(odd) { background: #f6f6f6; }
.win { color: #005a8e; font-weight: 600; } .lose { color: #b34700; font-weight: 600; }
.tie { color: #6e6e6e; }
img { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .87rem; }
details { margin: .4rem 0; } summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
"""


def write_report(comparison: Results, path: str | Path) -> Path:
    """Write the report of a comparison."""
    target = output_path(path, (".html", ".htm"))
    target.write_text(render(comparison, target.name), encoding="utf-8")
    return target


def render(comparison: Results, name: str) -> str:
    """The report as HTML text; `name` is the file the reproduction command writes."""
    title = f"{comparison.env_id}: policies compared"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class='lead'>{html.escape(headline(comparison))}</p>",
        f"<h2>Result</h2>{_scrolled(comparison.table())}",
        *(_picture(comparison, metric) for metric in (RETURN, *comparison.shown)),
        "<h2>Every metric</h2>",
        f"<p class='note'>{html.escape(_reading(comparison))}</p>",
        *(_metric(comparison, metric) for metric in (RETURN, *comparison.metric_names)),
        "<h2>What was run</h2>",
        _facts(comparison),
        "<h2>Reproduce it</h2>",
        f"<pre>{html.escape(reproduce(comparison, name))}</pre>",
        f"<p class='note'>The same versions give the digest of returns {digest(comparison)}.</p>",
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def headline(comparison: Results) -> str:
    """Who beats the reference, in a sentence."""
    differences = comparison.differences().values()
    if not differences:
        return f"One policy, {comparison.episodes} episodes; nothing to compare it with."
    groups = {
        verdict: [d.policy for d in differences if d.verdict == verdict] for verdict in ("win", "tie", "lose")
    }
    words = {"win": "better than", "tie": "not told apart from", "lose": "worse than"}
    said = [
        f"{words[verdict]} {comparison.reference}: {', '.join(map(comparison.marked, policies))}"
        for verdict, policies in groups.items()
        if policies
    ]
    apart = [comparison.marked(d.policy) for d in differences if not d.same_world]
    if apart:
        said.append(f"in another world, so not compared: {', '.join(apart)}")
    if not said:
        said = [f"nobody can be compared with {comparison.reference}"]
    return f"By return over {comparison.episodes} paired episodes, {'; '.join(said)}."


def digest(comparison: Results) -> str:
    """Fingerprint of seeds and returns of all policies, to nine significant digits."""
    rows = sorted(
        f"{policy} {seed} {value:.9g}"
        for policy, table in comparison.tables.items()
        for seed, value in zip(table.seeds.tolist(), table.returns.tolist(), strict=True)
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def reproduce(comparison: Results, name: str) -> str:
    """The shell command that makes this report again; a script where policies were the caller's objects."""
    given = [table.policy for table in comparison.tables.values() if table.source is None]
    entries = {table.policy: table.source for table in comparison.tables.values()}
    if all(label == source for label, source in entries.items()):
        policies = repr(list(entries))
    else:
        objects = {
            label: f"policy_{given.index(label) + 1}" if source is None else repr(source)
            for label, source in entries.items()
        }
        policies = "{" + ", ".join(f"{label!r}: {text}" for label, text in objects.items()) + "}"
    settings: dict[str, Any] = {
        "episodes": comparison.episodes,
        "seed": int(comparison.seeds[0]),
        "confidence": comparison.confidence,
    }
    if comparison.shown != list(comparison.headline):
        settings["metrics"] = comparison.shown
    arguments = [
        repr(comparison.env_id),
        policies,
        *(f"{key}={value!r}" for key, value in {**settings, **comparison.env_kwargs}.items()),
    ]
    call = f"llmgym.compare({', '.join(arguments)}).report({name!r})"
    # Double quotes need no escaping inside the single quotes of a shell.
    call = call if '"' in call else call.replace("'", '"')
    if not given:
        return f"python -c {shlex.quote(f'import llmgym; {call}')}"
    lines = [
        f"policy_{i + 1} = ...  # the object that was given as {label!r}" for i, label in enumerate(given)
    ]
    return "\n".join(["import llmgym", *lines, call])


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that take part in the numbers."""
    return {
        "llmgym": __version__,
        "Python": platform.python_version(),
        **{library: importlib.metadata.version(library) for library in LIBRARIES},
    }


def _facts(comparison: Results) -> str:
    facts = [
        ("environment", comparison.env_id),
        ("arguments", _arguments(comparison.env_kwargs)),
        ("worlds", f"{comparison.episodes} episodes a policy, seeds {comparison.seed_range}"),
        ("date", comparison.date),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
    ]
    for policy in comparison.policies:
        table = comparison.tables[policy]
        added = {name: value for name, value in table.env_kwargs.items() if name not in comparison.env_kwargs}
        words = [
            table.kind,
            "privileged" if table.privileged else "",
            f"plays another world: {table.other_world}" if table.other_world is not None else "",
            f"adds {_arguments(added)}" if added else "",
        ]
        cut = int(table.truncated.sum())
        words.append(f"{table.decisions:,} decisions, {cut} of {comparison.episodes} episodes truncated")
        facts.append((comparison.marked(policy), "; ".join(word for word in words if word)))
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in facts)
    return f"<dl>{rows}</dl>"


def _arguments(kwargs: object) -> str:
    return json.dumps(kwargs, default=repr) if kwargs else "defaults"


def _reading(comparison: Results) -> str:
    return (
        "Mean and interquartile mean (IQM, mean of the middle half) with bootstrap percentile intervals, "
        "expanded for small samples. "
        f"Paired difference: policy minus {comparison.reference}, world by world. "
        "P(better): share of the worlds where the policy is better, ties half."
    )


def _metric(comparison: Results, metric: str) -> str:
    opened = " open" if metric == RETURN or metric in comparison.shown else ""
    table = _scrolled(comparison.metric_table(metric))
    return f"<details{opened}><summary>{html.escape(metric)}</summary>{table}</details>"


def _scrolled(table: ResultTable) -> str:
    return f"<div class='scroll'>{table.html()}</div>"


def _picture(comparison: Results, metric: str) -> str:
    data = io.BytesIO()
    draw(comparison, metric).savefig(data, format="png", dpi=110)
    text = html.escape(
        f"{metric} of {len(comparison.policies)} policies, with intervals and paired differences", quote=True
    )
    return (
        f"<p><img alt='{text}' src='data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}'></p>"
    )
