"""Every Python snippet of README.md and docs/*.md runs; those of one file share their names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text()
    monkeypatch.chdir(tmp_path)  # snippets may write files
    names: dict[str, object] = {"__name__": "snippet"}
    for match in SNIPPET.finditer(text):
        # Blank lines in front make a traceback point at the line of the page.
        above = text.count("\n", 0, match.start(1))
        exec(compile("\n" * above + match[1], str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


def test_the_readme_has_snippets_to_run() -> None:
    assert len(SNIPPET.findall(PAGES[0].read_text())) >= 2
