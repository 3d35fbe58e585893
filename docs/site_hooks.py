"""What the documentation site has beyond the files of docs/, and a check that it needs no network.

- A page for each module of the public interface, from its docstrings, and one on the command line.
- The pages that stand at the root of the repository, such as CHANGELOG.md. Links to and from them
  are those of the repository, so that they work on a code host, and are rewritten here.
- The files of a folder that the navigation names.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from pt2q.app.cli import app

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
API = "api/"
COMMANDS = "command_line.md"
LINK = re.compile(r"\[([^]]*)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)]*)?\)")
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link\b[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon)\b[^>]*href=[\"']?(?:https?:)?//"
    r"|url\([\"']?(?:https?:)?//|class=[\"']?mermaid",
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the files of folders that the navigation names."""
    config.nav = _expanded(config.nav, Path(config.docs_dir))
    return config


def _expanded(item: Any, docs: Path) -> Any:
    if isinstance(item, list):
        return [_expanded(part, docs) for part in item]
    if isinstance(item, dict):
        return {name: _expanded(part, docs) for name, part in item.items()}
    if not item.endswith("/"):
        return item
    return [path.relative_to(docs).as_posix() for path in sorted((docs / item).glob("*.md"))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made from docstrings and commands, and pages of the root of the repository."""
    for uri in _named(config.nav):
        if uri.startswith(API):
            module = uri.removeprefix(API).removesuffix(".md")
            text = f"# {module}\n\n::: {module}\n"
            files.append(File.generated(config, uri, content=text))
    files.append(File.generated(config, COMMANDS, content=_command_line()))
    for name, uri in ROOT_PAGES.items():
        if files.get_file_from_path(uri) is None:
            text = relinked((ROOT / name).read_text(), name)
            files.append(File.generated(config, uri, content=text))
    return files


def _command_line() -> str:
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="pt2q")
    return get_docs_for_click(obj=command, ctx=context, name="pt2q", title="The command line")


def _named(item: Any) -> list[str]:
    if isinstance(item, list):
        return [uri for part in item for uri in _named(part)]
    if isinstance(item, dict):
        return [uri for part in item.values() for uri in _named(part)]
    return [item]


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to pages at the root of the repository to where they are in the site."""
    if page.file.generated_by is not None:
        return markdown
    return relinked(markdown, f"docs/{page.file.src_uri}")


def relinked(text: str, source: str) -> str:
    """Rewrite the links of a page for the site.

    Args:
        text: the page.
        source: its path in the repository.

    Returns:
        The page with links between places in the site. A link to a file that is not in it, such as
        an example, becomes the path of that file.
    """
    folder = posixpath.dirname(source)

    def replaced(match: re.Match[str]) -> str:
        words, link, anchor = match.groups()
        target = posixpath.normpath(posixpath.join(folder, link))
        if not target.startswith("docs/") and target not in ROOT_PAGES:
            return f"{words} (`{target}`)"
        place = posixpath.relpath(_place(target), posixpath.dirname(_place(source)))
        return f"[{words}]({place}{anchor or ''})"

    return LINK.sub(replaced, text)


def _place(path: str) -> str:
    """Where a page of the repository is in the site."""
    return ROOT_PAGES.get(path, path.removeprefix("docs/"))


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that fetches anything from elsewhere, or leaves out a part of the interface."""
    site = Path(config.site_dir)
    for pattern in ("*.html", "*.css"):
        for path in sorted(site.rglob(pattern)):
            found = FETCHED.search(path.read_text())
            if found:
                raise PluginError(f"{path} fetches from the network: {found[0]}")
    for uri in _named(config.nav):
        if uri.startswith(API):
            _check_complete(site / uri.replace(".md", ".html"), config)


def _check_complete(path: Path, config: MkDocsConfig) -> None:
    """Every name in a module's `__all__` is on its page."""
    module = path.stem
    handlers = config.plugins["mkdocstrings"].config["handlers"]
    file = Path(handlers["python"]["paths"][0], *module.split("."), "__init__.py")
    anchors = set(re.findall(r'id="([^"]+)"', path.read_text()))
    missing = [name for name in _public(file) if f"{module}.{name}" not in anchors]
    if missing:
        raise PluginError(f"{module} has no documentation of {', '.join(missing)}")


def _public(file: Path) -> list[str]:
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    return []
