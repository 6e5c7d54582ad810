"""Settings of the documentation site: sphinx-build -W --keep-going -b html docs docs/_build."""

import re
from typing import Any, Generic, TypeVar

import numpy.typing
from sphinx.application import Sphinx

T = TypeVar("T")


class ArrayLike:
    """What numpy makes an array of; its own type is a union of ten lines, which no signature can show."""


class NDArray(Generic[T]):
    """An array of numpy with this type of entries; its own name does not come back out of a signature."""


numpy.typing.ArrayLike, numpy.typing.NDArray = (
    ArrayLike,
    NDArray,
)  # before the package is imported, whose signatures are shown

import llmgym  # noqa: E402

project = "llmgym"
author = "The llmgym authors"
project_copyright = author
release = llmgym.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "results/vllm_*", "results/segmented_attention", "results/leaderboard"]
html_theme = "furo"
html_title = f"llmgym {release}"
highlight_language = "none"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_mock_imports = [
    "torch",
    "stable_baselines3",
    "sb3_contrib",
    "tianshou",
    "pettingzoo",
]  # everything else is a dependency of the package
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88


def results(app: Sphinx, page: str, source: list[str]) -> None:
    """Measured results lie outside `docs`; the site has them in its folder `results`, which is a link to theirs."""
    source[0] = re.sub(
        r"\[([^]]*)\]\([./]+benchmarks/results/([^)]*)\.md\)", r"{doc}`\1 </results/\2>`", source[0]
    )


def docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are Markdown; autodoc reads reStructuredText. Headings, blocks of code, tables and names in backticks differ."""
    out: list[str] = []
    fence: str | None = None
    table = block = listed = False
    before = ""
    for line in lines:
        text = line.strip()
        indent = line[: len(line) - len(line.lstrip())]
        if text.startswith("```"):
            fence = None if fence is not None else indent
            out += ["", f"{indent}.. code-block:: {text[3:]}", ""] if fence is not None else [""]
        elif fence is not None:
            out.append(f"    {line}")
        elif text.startswith("#"):
            out += ["", f"{indent}.. rubric:: {text.lstrip('# ')}", ""]
        elif text.startswith("|") and text.endswith("|"):
            if not table:
                out += ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
            table = True
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", text.strip("|"))]
            if not set("".join(cells)) <= set("-: "):
                marks = ["* -", *["  -"] * (len(cells) - 1)]
                out += [f"{indent}   {mark} {code(cell)}" for mark, cell in zip(marks, cells)]
        else:
            if table:
                out.append("")
            table = False
            if not indent or not text:
                block = False
            elif len(indent) >= 4 and not block and out and not out[-1] and not before.startswith(" "):
                block = True
                out += [".. code-block:: none", ""]
            if text and not indent:  # a list of Markdown needs no blank lines around it
                item = text.startswith("- ")
                if out and out[-1] and item != listed:
                    out.append("")
                listed = item
            out.append(line if block else code(line))
        before = line if text else before
    lines[:] = out


def code(text: str) -> str:
    """`name` of Markdown as ``name`` of reStructuredText; a letter right after it is kept apart, a bar outside means a bar."""

    def one(found: re.Match[str]) -> str:
        if found[0] == "|":
            return r"\|"
        return f"``{found[1]}``" + (rf"\ {found[2]}" if found[2] else "")

    return re.sub(r"(?<!`)`([^`]+)`(?!`)(\w?)|\|", one, text)


def without_aliases(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Fields of a named tuple are told once, by the docstring of their class."""
    return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field number") else None


def signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, text: str, returns: str
) -> tuple[str, str] | None:
    """Environments are made by `gymnasium.make`; their class says no more than `**kwargs`."""
    return ("", "") if what == "class" and name.startswith("llmgym.envs.") else None


def setup(app: Sphinx) -> None:
    """Connect the functions above; docstrings are changed before napoleon reads them."""
    app.connect("source-read", results)
    app.connect("autodoc-process-docstring", docstring, priority=100)
    app.connect("autodoc-skip-member", without_aliases)
    app.connect("autodoc-process-signature", signature)
