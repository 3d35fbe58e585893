"""What is installed is what the repository holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import pt2q

ROOT = Path(__file__).parent.parent
ROOTS = {"pt2q": "pt2q", "passes": "pt2q.passes", "quantizers": "pt2q.quantizers"}


def packages_on_disk() -> set[str]:
    found = set()
    for folder, package in ROOTS.items():
        for marker in (ROOT / folder).rglob("__init__.py"):
            parts = marker.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *parts)))
    return found


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is in Python since 3.11")
def test_every_package_is_listed() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["setuptools"]["packages"]) == packages_on_disk()
    assert project["project"]["version"] == pt2q.__version__


def test_types_are_shipped() -> None:
    assert (Path(pt2q.__file__).parent / "py.typed").exists()
