"""Code of ExecuTorch and torchao with its imports changed to pt2q's, in a folder of its own.

In a process that calls `take_from`, modules that the folder has are loaded from there under the
names that they have where they are installed. Nothing of it enters the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
PEER = "torchao.quantization.pt2e"
XNNPACK = "executorch.backends.xnnpack.quantizer"


def installed(package: str) -> Path:
    """The folder of an installed package; it is not imported."""
    top, *inner = package.split(".")
    spec = find_spec(top)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).joinpath(*inner)


def write_ported(package: str, folder: Path, stacks: tuple[str, ...]) -> list[Path]:
    """The modules of a package that import from another stack, with imports changed.

    Args:
        package: gone through with its subpackages.
        folder: gets the files, by the path of their module.
        stacks: packages whose names are imported from pt2q.
    """
    sys.path.insert(0, str(ROOT / "docs"))
    from ported_imports import ported

    source, written = installed(package), []
    for path in sorted(source.rglob("*.py")):
        text = path.read_text()
        if any(stack in text for stack in stacks):
            target = folder.joinpath(*package.split("."), path.relative_to(source))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(ported(text, stacks))
            written.append(target)
    return written


def take_from(folder: Path) -> None:
    """Load from a folder what it has, from now on."""
    sys.meta_path.insert(0, _Finder(folder))


class _Finder(MetaPathFinder):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        at = self.folder.joinpath(*name.split("."))
        if at.with_suffix(".py").is_file():
            return spec_from_file_location(name, at.with_suffix(".py"))
        if not (at / "__init__.py").is_file():
            return None
        usual = PathFinder.find_spec(name, path)
        return spec_from_file_location(
            name,
            at / "__init__.py",
            submodule_search_locations=usual and usual.submodule_search_locations,
        )


def python(*arguments: str | Path, folder: Path, timeout: int) -> subprocess.CompletedProcess[str]:
    """Run a Python of its own in a folder, with one thread; it finds what tests share."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
