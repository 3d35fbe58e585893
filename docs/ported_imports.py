"""Changes the imports of code written for the other PT2E stack to those of pt2q.

``python docs/ported_imports.py FILE`` prints the file so changed. A name that pt2q does not offer
keeps its import, and stands in migrating.md with a reason.
"""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

PEER = "torchao.quantization.pt2e"
XNNPACK = "executorch.backends.xnnpack.quantizer"
OFFERED_BY = ("pt2q", "pt2q.quantizers", "pt2q.passes", "pt2q.debug", "pt2q.observers")
"""Where a name of theirs is looked for here, in this order."""


def place_of(name: str) -> str | None:
    """The module of ours that offers a name, or None."""
    return next((place for place in OFFERED_BY if name in import_module(place).__all__), None)


def ported(source: str, stacks: tuple[str, ...] = (PEER,)) -> str:
    """Source code with its imports changed.

    Args:
        source: of a module.
        stacks: packages whose names are imported from here, where they are offered.
    """
    lines = source.splitlines(keepends=True)
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    for node in sorted(found, key=lambda node: node.lineno, reverse=True):
        if node.level == 0 and is_in(node.module or "", stacks):
            indent = lines[node.lineno - 1][: node.col_offset]
            lines[node.lineno - 1 : node.end_lineno] = [
                f"{indent}{statement}\n" for statement in _statements(node)
            ]
    return "".join(lines)


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    """Whether a module is one of some packages, or inside one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _statements(node: ast.ImportFrom) -> list[str]:
    by_place: dict[str, list[str]] = {}
    for name in node.names:
        place = place_of(name.name) or str(node.module)
        by_place.setdefault(place, []).append(ast.unparse(name))
    return [f"from {place} import {', '.join(names)}" for place, names in sorted(by_place.items())]


if __name__ == "__main__":
    sys.stdout.write(ported(Path(sys.argv[1]).read_text(), (PEER, XNNPACK)))
