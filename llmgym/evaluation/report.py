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

from llmgym.evaluation import page
from llmgym.evaluation.export import output_path
from llmgym.evaluation.plots import draw
from llmgym.evaluation.results import Results
from llmgym.evaluation.rollout import RETURN
from llmgym.version import __version__

LIBRARIES = ("gymnasium", "numpy", "numba", "scipy")


def write_report(comparison: Results, path: str | Path) -> Path:
    """Write the report of a comparison."""
    target = output_path(path, (".html", ".htm"))
    target.write_text(render(comparison, target.name), encoding="utf-8")
    return target


def render(comparison: Results, name: str) -> str:
    """The report as HTML text; `name` is the file the reproduction command writes."""
    metrics = (RETURN, *comparison.metric_names)
    tables = {metric: comparison.metric_table(metric) for metric in metrics}
    columns = len(next(iter(tables.values())).columns)
    pictures = [_picture(comparison, metric) for metric in (RETURN, *comparison.shown)]
    parts = [
        page.section("Result", page.sortable(comparison.table())),
        page.section(
            "One metric", page.switching(tables, (1, columns), "".join(pictures)), _reading(comparison)
        ),
        page.section("What was run", _facts(comparison)),
        page.section(
            "Reproduce it",
            f"<pre>{html.escape(reproduce(comparison, name))}</pre>",
            f"<p class='note'>The same versions give the digest of returns {digest(comparison)}.</p>",
        ),
    ]
    return page.page(f"{comparison.env_id}: policies compared", headline(comparison), parts)


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
    text = (
        "Mean and interquartile mean (IQM, mean of the middle half) with bootstrap percentile intervals, "
        "expanded for small samples. "
        f"Paired difference: policy minus {comparison.reference}, world by world. "
        "P(better): share of the worlds where the policy is better, ties half."
    )
    return f"<p class='note'>{html.escape(text)}</p>"


def _picture(comparison: Results, metric: str) -> str:
    data = io.BytesIO()
    draw(comparison, metric).savefig(data, format="png", dpi=110)
    text, name = (
        html.escape(words, quote=True)
        for words in (
            f"{metric} of {len(comparison.policies)} policies, with intervals and paired differences",
            metric,
        )
    )
    picture = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return f"<p data-metric='{name}'><img alt='{text}' src='{picture}'></p>"
