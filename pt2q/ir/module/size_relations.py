"""What export found out about the sizes of inputs: relations between them, as text.

``x.size()[0] == y.size()[0]`` or ``(x.size()[0] % 3) == 0``: the program computes what the model
computes where they hold, and may compute something else in silence where they do not.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

Sizes = Mapping[str, Sequence[int]]
"""The sizes of tensors by the path at which they are given, such as ``x`` or ``d['k'][0]``."""

# Whatever else a text may hold is not evaluated: it may come from a file.
_ALLOWED = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.USub, ast.Not),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Name, ast.Load),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
_FREE_UP_TO = 2
"""Export takes every size to be 2 or more until it is told otherwise: no relation of the model."""


def exported_size(size: Any) -> int | None:
    """A size of a placeholder: a number if the program runs at that one alone, None if it varies.

    Args:
        size: a number, or a symbolic size; one that export specialised has a number in it.
    """
    if isinstance(size, int):
        return size
    expr = size.node.expr
    return int(expr) if expr.is_number else None


def relations_among(inputs: Mapping[str, Node]) -> tuple[str, ...]:
    """What the symbolic sizes of placeholders say of each other, and their bounds.

    Args:
        inputs: placeholders by the path at which their value is given.
    """
    first: dict[Any, str] = {}
    found: list[str] = []
    for path, node in inputs.items():
        value = node.meta.get("val")
        sizes: tuple[Any, ...] = tuple(value.shape) if isinstance(value, Tensor) else ()
        for axis, size in enumerate(sizes):
            if exported_size(size) is None and size.node.expr.is_Symbol:
                here = f"{path}.size()[{axis}]"
                there = first.setdefault(size.node.expr, here)
                found += [f"{here} == {there}"] if there != here else _bounds(here, size)
    return tuple(found)


def _bounds(here: str, size: torch.SymInt) -> Iterator[str]:
    bounds = size.node.shape_env.bound_sympy(size.node.expr)
    if bounds.lower.is_finite and bounds.lower > _FREE_UP_TO:
        yield f"{here} >= {int(bounds.lower)}"
    if bounds.upper.is_finite and bounds.upper < 2**31:
        yield f"{here} <= {int(bounds.upper)}"


def readable(texts: Iterable[str]) -> tuple[str, ...]:
    """Those of export's guards that speak of sizes alone, each once.

    Args:
        texts: expressions in Python's syntax.
    """
    return tuple(dict.fromkeys(text for text in texts if _compiled(text) is not None))


def broken(texts: Iterable[str], sizes: Sizes) -> str | None:
    """The first relation that does not hold of the sizes of a call; None if all do.

    Args:
        texts: from `readable`.
        sizes: what is given; a relation of something else is not looked at.
    """
    for text in texts:
        test = _compiled(text)
        try:
            if test is not None and not test(sizes):
                return text
        except (NameError, IndexError, ZeroDivisionError):
            continue
    return None


@lru_cache(maxsize=4096)
def _compiled(text: str) -> Callable[[Sizes], bool] | None:
    try:
        tree = _Sizes().visit(ast.parse(text, mode="eval"))
    except (SyntaxError, ValueError, RecursionError):
        return None
    if not all(map(_is_allowed, ast.walk(tree))):
        return None
    code = compile(ast.fix_missing_locations(tree), "<guard>", "eval")

    def test(sizes: Sizes) -> bool:
        return bool(eval(code, {"__builtins__": {}}, _Lookup(sizes)))  # names and integers alone

    return test


def _is_allowed(node: ast.AST) -> bool:
    return isinstance(node, _ALLOWED) or (
        isinstance(node, ast.Constant) and type(node.value) is int
    )


class _Sizes(ast.NodeTransformer):
    """Puts a name for every ``path.size()[axis]``."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        match node:
            case ast.Subscript(
                value=ast.Call(func=ast.Attribute(value=path, attr="size"), args=[], keywords=[]),
                slice=ast.Constant(value=int(axis)),
            ):
                return ast.Name(f"{ast.unparse(path)}|{axis}", ast.Load())
        return node


class _Lookup(dict[str, int]):
    """The names that `_Sizes` puts, found when they are asked for."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self._sizes = sizes

    def __missing__(self, name: str) -> int:
        path, _, axis = name.rpartition("|")
        return self._sizes[path][int(axis)]
