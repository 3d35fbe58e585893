"""What is installed is what the repository holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pt2q

ROOT = Path(__file__).parent.parent
ROOTS = {"pt2q": "pt2q", "passes": "pt2q.passes", "quantizers": "pt2q.quantizers"}


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="in Python since 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> set[str]:
    found = set()
    for folder, package in ROOTS.items():
        for marker in (ROOT / folder).rglob("__init__.py"):
            parts = marker.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *parts)))
    return found


def test_every_package_is_listed() -> None:
    assert set(project()["tool"]["setuptools"]["packages"]) == packages_on_disk()
    assert project()["project"]["version"] == pt2q.__version__


def test_every_extra_is_explained() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    extras = project()["project"]["optional-dependencies"]
    assert [name for name in extras if f"\n| `{name}` | " not in page] == []


def test_types_are_shipped() -> None:
    assert (Path(pt2q.__file__).parent / "py.typed").exists()


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {pt2q.__version__}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changes


def test_the_page_on_releases_is_about_those_that_are_tested() -> None:
    page = (ROOT / "docs" / "torch_releases.md").read_text()
    pins = [
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    ]
    assert [name for name, version in pins if version not in page] == []
