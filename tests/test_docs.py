"""The Python examples of the README and of the docs run as they are printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path) -> list[str]:
    """The ```python blocks of a page; they run one after the other in one namespace, as a reader would type them."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(page))
    if "policies" in code or "torch" in code:
        pytest.importorskip("torch")
        pytest.importorskip("sb3_contrib")
    exec(compile(code, str(page), "exec"), {"__name__": "example"})


def test_readme_shows_the_table_of_environments():
    from benchmarks.make_docs import environments

    assert f"<!-- environments -->\n{environments()}\n<!-- end -->" in (ROOT / "README.md").read_text()
