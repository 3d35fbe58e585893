"""Complain of every private name of torch outside of the one file that names them.

    python .ci/torch_private.py [FOLDER ...]

Private are modules and names below ``torch`` that begin with an underscore, and attributes with
such a name that nothing in the given folders defines. What `pt2q.ir.torch_private` says is left
where it is used, and named tuples, are allowed; operators have names of their own
(``aten._softmax``) and one folder.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

HOME = "pt2q/ir/torch_private.py"
OPERATORS = "pt2q/ir/ops/"
FOLDERS = ("pt2q", "passes", "quantizers")
ASKING = ("getattr", "hasattr", "setattr", "delattr")
ALLOWED = {
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_make", "_replace", "_asdict"),
    *("_op", "_instruction_id"),  # ExecuTorch's, not torch's
}


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore, not with two."""
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """The private names that a module defines: functions, fields, attributes of ``self``."""
    for node in ast.walk(tree):
        stored = isinstance(getattr(node, "ctx", None), ast.Store)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif stored and isinstance(node, ast.Name):
            yield node.id
        elif stored and isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
            yield node.attr


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each private name of torch that is imported or written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        for name in names:
            root, *rest = name.split(".")
            if root == "torch" and any(map(is_private, rest)):
                yield node.lineno, name


def attributes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each private attribute that is read, written or asked for by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.lineno, node.attr
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in ASKING:
            continue
        name = getattr(node.args[1], "value", "") if len(node.args) > 1 else ""
        if is_private(str(name)):
            yield node.lineno, str(name)


def faults(files: dict[str, str]) -> list[str]:
    """What is wrong, a line for each place.

    Args:
        files: path and text of each module.
    """
    trees = {path: ast.parse(text) for path, text in files.items()}
    own = ALLOWED.union(*(defined(tree) for tree in trees.values()))
    found = set()
    for path, tree in trees.items():
        if path.endswith(HOME):
            continue
        found |= {(path, *place) for place in imported(tree)}
        if OPERATORS not in path:
            found |= {(path, line, name) for line, name in attributes(tree) if name not in own}
    return [
        f"{path}:{line}: {name} is torch's own; ask {HOME} for it, or enter it there"
        for path, line, name in sorted(found)
    ]


def main(folders: list[str]) -> int:
    """Look through folders; the exit status is 1 where something was found."""
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    found = faults({path.as_posix(): path.read_text() for path in paths})
    print("\n".join(found), end="\n" if found else "")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(FOLDERS)))
