"""The pages: their snippets run, their links lead somewhere, what is generated in them is fresh."""

from __future__ import annotations

import json
import pkgutil
import re
import runpy
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import pt2q.deploy
from pt2q.app import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TUTORIALS = DOCS / "tutorial"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
SNIPPET = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
SITE = (ROOT / "mkdocs.yml").read_text()
GENERATED = {"errors.md": "docs/error_catalogue.py", "benchmarks.md": "benchmarks/overview.py"}
TABLES = {  # of which page, made by which function of which benchmark
    "accuracy": ("accuracy.md", "markdown"),
    "decoder": ("graphs.md", "markdown"),
    "large_models": ("large.md", "markdown"),
    "other_quantizers": ("other_quantizers.md", "markdown"),
    "roads": ("roads.md", "page"),
    "scoreboard": ("scoreboard.md", "page"),
    "xnnpack": ("xnnpack.md", "page"),
    "xnnpack_peer": ("xnnpack_peer.md", "page"),
}
API = (
    "pt2q",
    "pt2q.algorithms",
    "pt2q.debug",
    "pt2q.flow",
    "pt2q.passes",
    "pt2q.quantizers",
    "pt2q.spec",
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_python(page: Path, line: int, code: str, names: dict[str, object]) -> None:
    # Blank lines in front make a traceback point at the line of the page.
    exec(compile("\n" * line + code, str(page), "exec"), names)


def run_commands(code: str) -> None:
    for line in code.splitlines():
        program, *arguments = shlex.split(line) or [""]
        if program == "pt2q":
            with pytest.raises(SystemExit) as end:
                cli.main(arguments)
            assert end.value.code == 0, line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python everywhere, with names shared in a page; in tutorials the commands of pt2q, too."""
    text = page.read_text()
    monkeypatch.chdir(tmp_path)  # snippets may write files
    names: dict[str, object] = {"__name__": "snippet"}
    for match in SNIPPET.finditer(text):
        if match[1] == "python":
            run_python(page, text.count("\n", 0, match.start(2)), match[2], names)
        elif TUTORIALS in page.parents:
            run_commands(match[2])


def test_snippets_are_found() -> None:
    found = {name(page): SNIPPET.findall(page.read_text()) for page in PAGES}
    assert len(found["README.md"]) >= 2
    tutorial = found["docs/tutorial/first_model.md"]
    assert any(kind == "sh" and "pt2q quantize" in code for kind, code in tutorial)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks find each other, as they do where one of them is run."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.parametrize("page", GENERATED)
def test_generated_pages_are_fresh(page: str, programs: None) -> None:
    """`make pages` writes them again."""
    written = runpy.run_path(str(ROOT / GENERATED[page]))["page"]()
    assert (DOCS / page).read_text() == written


@pytest.mark.parametrize("benchmark", TABLES)
def test_tables_are_those_of_the_results(benchmark: str, programs: None) -> None:
    page, function = TABLES[benchmark]
    found = json.loads((ROOT / "benchmarks" / "results" / f"{benchmark}.json").read_text())
    made = runpy.run_path(str(ROOT / "benchmarks" / f"{benchmark}.py"))[function]
    assert made(found.get("results", found)).strip() in (DOCS / page).read_text()


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name)
def test_the_site_leads_to_every_page(page: Path) -> None:
    """It is in the navigation of mkdocs.yml, by itself or as one of a folder."""
    path = page.relative_to(DOCS)
    assert re.search(rf" ({path}|{path.parent}/)\n", SITE), f"add {path} to mkdocs.yml"


def test_the_site_documents_every_public_module() -> None:
    deploy = [f"pt2q.deploy.{m.name}" for m in pkgutil.iter_modules(pt2q.deploy.__path__)]
    there = [import_module(name) for name in (*API, *deploy) if find_spec(name) is not None]
    public = [module.__name__ for module in there if hasattr(module, "__all__")]
    assert len(public) >= 7
    assert [module for module in public if f"- api/{module}.md\n" not in SITE] == []
