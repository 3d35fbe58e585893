"""Complain of every place that makes a node of a graph itself; `pt2q/ir/emit.py` alone does that.

    python .ci/one_emitter.py [FOLDER ...]

Ruff can forbid a function by its name, not a method, so this is a rule of its own.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

EMITTER = "pt2q/ir/emit.py"
FOLDERS = ("pt2q", "passes", "quantizers")
MAKERS = {
    *("create_node", "call_function", "call_module", "call_method", "get_attr", "placeholder"),
    *("output", "node_copy", "graph_copy", "create_proxy"),
}


def raw_nodes(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each call of a method that makes nodes.

    Args:
        source: a module. ``super().call_module(...)`` is an interpreter's, and no call of these.
    """
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of = node.func.value
        is_super = isinstance(of, ast.Call) and getattr(of.func, "id", "") == "super"
        if node.func.attr in MAKERS and not is_super:
            yield node.lineno, node.func.attr


def main(folders: list[str]) -> int:
    """Look through folders; the exit status is 1 where something was found."""
    files = [p for folder in folders for p in sorted(Path(folder).rglob("*.py"))]
    found = 0
    for path in files:
        if path.as_posix().endswith(EMITTER):
            continue
        for line, name in raw_nodes(path.read_text()):
            found += 1
            print(f"{path}:{line}: .{name}() makes a node; let pt2q.ir.emit.Emitter do it")
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(FOLDERS)))
