"""Every block of code of the README and of the docs runs, up to the work where that takes minutes; tables are fresh."""

import importlib
import inspect
import json
import random
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

import llmgym
from llmgym import baselines, cli, profiles, train
from llmgym.envs import ENVIRONMENTS
from llmgym.errors import LlmgymError
from llmgym.testing.new import new
from tests.profiles.test_llmservingsim import QWEN3_32B, write_tables

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.M)
PROGRAMS = ("llmgym", "python", "pip", "pytest")
MAY_BE_MISSING = ("runs/", "run.json", "room.json", "benchmarks/")
"""What a command before it would have made, by hours of training or measuring, begins so, and what only a checkout has: where it is
missing, the arguments of the command are read, and no more."""
MEASURES = ("profile", "throughput", "compile")
NEEDS_MORE = ("tune",)
"""Commands that only measure or compile: their arguments are read, and no more."""


class Reached(Exception):
    """A command has come to the work that takes long: all that it was told is right."""


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language; those of Python run one after the other in one namespace, as a reader would type them."""
    return [
        re.sub(rf"^{indent}", "", text, flags=re.M)
        for indent, found, text in FENCE.findall(page.read_text())
        if found == language
    ]


def commands(page: Path) -> list[str]:
    """The command lines of a page, without comments."""
    lines: list[str] = []
    for text in blocks(page, ""):
        joined = text.replace("\\\n", " ")
        for line in joined.splitlines():
            line = re.split(r"  +# |   +(?=\w.* \w)", line)[0]
            parts = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", part.strip()) for part in line.split(" && ")]
            lines += [part for part in parts if part.split(" ")[0] in PROGRAMS]
    return lines


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages take for granted."""
    rows = [
        "arrival_s,prompt_tokens,output_tokens",
        *(f"{0.5 * i},{200 + 7 * i},{20 + i}" for i in range(60)),
    ]
    for name in ("run.csv", "trace.csv", "mine.csv"):
        (tmp_path / name).write_text("\n".join(rows))
    rng = random.Random(0)  # a vocabulary in which few words are common and many rare, as in a language
    text = " ".join(f"word{int(2 * rng.paretovariate(0.7)) % 9000}" for _ in range(60_000))
    (tmp_path / "book.txt").write_text(text)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    tables = tmp_path / "profiler/perf/RTXPRO6000/Qwen/Qwen3-32B/bf16/tp2"
    write_tables(lambda table: tables / f"{table}.csv")
    (tmp_path / "Qwen3-32B").mkdir()
    (tmp_path / "Qwen3-32B/config.json").write_text(json.dumps(QWEN3_32B))
    profiles.load("h100/llama-3.1-8b").save(tmp_path / "runs/mine")
    (tmp_path / "my_rules.py").write_text(
        "class Longest:\n    name, privileged, env_kwargs = 'longest', False, {}\n"
        "    def act(self, obs, mask):\n        return mask.argmax(axis=1)\n    def reset(self, lanes):\n        pass\n"
        "longest = Longest()\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_examples_run(page: Path, folder: Path) -> None:
    parts = blocks(page, "python")
    code = "\n".join(parts)
    if "policies" in code or "torch" in code:
        pytest.importorskip("torch")
        pytest.importorskip("sb3_contrib")
    names: dict[str, object] = {"__name__": "example"}
    missing = []
    for part in parts:
        try:
            exec(compile(part, str(page), "exec"), names)
        except LlmgymError as error:
            if "pip install 'llmgym[" not in str(error):
                raise
            missing.append(str(error))
    if "play_on_a_gpu" in names and __import__("torch").cuda.is_available():
        names["play_on_a_gpu"]()  # type: ignore[operator]
    if missing:
        pytest.skip(f"all other blocks ran: {'; '.join(missing)}")


@pytest.mark.parametrize("spec", ENVIRONMENTS, ids=lambda spec: spec.id)
def test_the_example_of_a_docstring_runs(spec: llmgym.EnvSpec) -> None:
    module, _, name = spec.env.partition(":")
    text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
    examples = [code for _, language, code in FENCE.findall(text) if language == "python"]
    assert examples
    for code in examples:
        exec(compile(code, name, "exec"), {"__name__": "example"})


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes, training, the test kit and measuring stop where they would begin."""

    def stop(*arguments: object, **keywords: object) -> None:
        raise Reached

    for name in ("evaluation.run_episodes", "evaluation.tuning.run_all", "evaluation.paired.run_all"):
        monkeypatch.setattr(f"llmgym.{name}", stop)
    monkeypatch.setattr("llmgym.policies.train", stop)
    monkeypatch.setattr("llmgym.testing.check", stop)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_commands_are_right(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in commands(page):
        program, *words = shlex.split(line)
        check: dict[str, Callable[[list[str]], None]] = {"llmgym": run_command, "python": check_script}
        if program == "pip":
            for extra in re.findall(r"\[(.*?)\]", line):
                assert set(extra.split(",")) <= set(extras), line
        elif program in check:
            try:
                check[program](words)
            except Reached:
                continue
            except SystemExit as end:
                assert end.code in (0, None), f"{line}\n{capsys.readouterr().err}"
            except AssertionError as error:
                raise AssertionError(f"{line}\n{error}\n{capsys.readouterr().err}") from error
        else:
            assert all((ROOT / word).exists() for word in words if word.startswith("tests")), line


def run_command(words: list[str]) -> None:
    """Run `llmgym ...`; a command that measures, or needs what is not installed for tests, is only read."""
    if words[0] in MEASURES or words[0] in NEEDS_MORE or {"--resume", "--backend"} & set(words):
        read_only(words)
        return
    if words[0] == "check" and not Path("my_env.py").exists():
        new("my_env")
    written = words[words.index("--out") + 1] if "--out" in words else None
    read = [word for word in words if word != written]
    if any(word.startswith(MAY_BE_MISSING) and not Path(word).exists() for word in read):
        read_only(words)
        return
    assert cli.main(words) == 0, "it fails"


def read_only(words: list[str]) -> None:
    """Read the arguments of a command as it does."""
    if words[0] == "train":
        tyro.cli(train.Args, args=words[1:])
    else:
        tyro.cli(tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[cli.Arguments]], args=words)


def check_script(words: list[str]) -> None:
    """A script of the project is there and knows the options."""
    if words[0] in ("-m", "train.py"):
        return
    source = (ROOT / words[0]).read_text()
    for word in words[1:]:
        if word.strip("[").startswith("--"):
            name = word.strip("[]").removeprefix("--")
            assert name in source or name.replace("-", "_") in source, f"{words[0]} has no option {word}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=named)
def test_files_of_settings_can_be_read(page: Path) -> None:
    for text in blocks(page, "toml"):
        assert tomllib.loads(text)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_block_hides_code(page: Path) -> None:
    """Code is called `python`, so that it runs; every language is one that a test knows."""
    for _, language, text in FENCE.findall(page.read_text()):
        assert language in ("", "python", "toml") or language.startswith("{"), f"```{language}"
        assert language or not re.search(r"^ *(from \w+ )?import ", text, re.M), text


@pytest.mark.parametrize("spec", ENVIRONMENTS, ids=lambda spec: spec.id)
def test_a_page_begins_with_the_problem_and_a_picture(spec: llmgym.EnvSpec) -> None:
    page = ROOT / spec.docs
    beginning = page.read_text().partition("\n## ")[0]
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", beginning, re.S)
    assert len(pictures) == 1
    picture = page.parent / pictures[0]
    assert picture.name == f"{page.stem}.png" and 3_000 < picture.stat().st_size < 60_000


@pytest.mark.parametrize("spec", ENVIRONMENTS, ids=lambda spec: spec.id)
def test_a_page_shows_the_numbers_of_the_results(spec: llmgym.EnvSpec) -> None:
    from benchmarks.site_tables import numbers

    if table := numbers(spec):
        assert filled(spec.docs, "numbers") == table


def test_the_same_moment_is_the_same_picture() -> None:
    from benchmarks.pictures import MOMENTS, frame

    assert {Path(spec.docs).stem for spec in ENVIRONMENTS} <= set(MOMENTS)
    assert (frame(MOMENTS["kv_queue"]) == frame(MOMENTS["kv_queue"])).all()


def filled(page: str, mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n(.*?)\n<!-- end -->", (ROOT / page).read_text(), re.S)
    assert found, f"{page} has no mark {mark}"
    return found[1]


def test_readme_shows_the_table_of_environments() -> None:
    from benchmarks.make_docs import environments

    assert filled("README.md", "environments") == environments()


def test_the_site_shows_every_environment() -> None:
    from benchmarks import site_tables

    assert filled("docs/gallery.md", "gallery") == site_tables.gallery()
    assert filled("docs/api/environments.md", "classes") == site_tables.classes()


@pytest.mark.parametrize("spec", ENVIRONMENTS, ids=lambda spec: spec.id)
def test_the_site_shows_every_rule(spec: llmgym.EnvSpec) -> None:
    from benchmarks.site_tables import name_of

    rows = [row for row in filled("docs/rules.md", "rules").splitlines() if f"[{name_of(spec)}]" in row]
    _, _, rules, tuned, _ = rows[0].split("|")
    marked = [name.strip().strip("†‡`") for name in rules.split(",")]
    assert marked == baselines.names(spec.id)
    grids = {name: baselines.grid(spec.id, name) for name in marked}
    assert re.findall(r"`(.+?)` (\d+)", tuned) == [
        (name, str(len(grid))) for name, grid in grids.items() if grid
    ]
