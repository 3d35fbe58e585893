"""Calls of operators: their arguments by schema name, so that no pass depends on positions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch.fx import Node

from pt2q.ir.ops.movement import COPY
from pt2q.ir.ops.names import Target, aten
from pt2q.ir.torch_private import schema_of


def is_op(node: object, ops: frozenset[Target]) -> bool:
    """Whether ``node`` is a call of one of ``ops``.

    Args:
        node: anything; only an FX node can be a call.
        ops: a set of overloads.
    """
    return isinstance(node, Node) and node.op == "call_function" and node.target in ops


@lru_cache(maxsize=4096)
def _argument_index(target: Target, name: str) -> tuple[int, Any, bool]:
    schema = schema_of(target)
    for index, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name == name:
            return index, argument.default_value, argument.kwarg_only
    raise KeyError(f"{target} has no argument named {name!r}")


def has_argument(node: Node, name: str) -> bool:
    """Whether the operator's schema has an argument of that name."""
    try:
        _argument_index(node.target, name)
    except KeyError:
        return False
    return True


def argument(node: Node, name: str) -> Any:
    """The argument of a call by its schema name, or the schema's default.

    Args:
        node: a call_function node of an overload.
        name: the schema's name ("input", "weight", "momentum", ...).

    Raises:
        KeyError: the schema has no such argument.
    """
    index, default, kwarg_only = _argument_index(node.target, name)
    if name in node.kwargs:
        return node.kwargs[name]
    if not kwarg_only and index < len(node.args):
        return node.args[index]
    return default


def set_argument(node: Node, name: str, value: Any) -> None:
    """Set the argument of a call by its schema name, leaving all others as they are.

    Args:
        node: a call_function node of an overload.
        name: the schema's name.
        value: a node or a literal.

    Raises:
        KeyError: the schema has no such argument.
    """
    index, _, kwarg_only = _argument_index(node.target, name)
    if kwarg_only or name in node.kwargs or index > len(node.args):
        node.kwargs = {**node.kwargs, name: value}
        return
    args = list(node.args)
    args[index : index + 1] = [value]
    node.args = tuple(args)


def data_input(node: Node) -> Any:
    """The first argument of a call: what convolutions, norms and activations work on."""
    if node.args:
        return node.args[0]
    return argument(node, schema_of(node.target).arguments[0].name)


def is_mutating(node: Node) -> bool:
    """Whether a call writes into one of its arguments."""
    schema = schema_of(node.target)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def permutation(node: Node, rank: int) -> list[int] | None:
    """Where each dimension of a call's result comes from, or None if it does not permute.

    Args:
        node: a call.
        rank: the number of dimensions of its input.
    """
    order = list(range(rank))
    if node.target is aten.permute.default:
        return [d % rank for d in argument(node, "dims")]
    if node.target in COPY:
        return order
    if node.target is aten.transpose.int:
        one, other = (argument(node, name) % rank for name in ("dim0", "dim1"))
    elif node.target is aten.mT.default:
        one, other = rank - 2, rank - 1
    elif node.target in (aten.t.default, aten.numpy_T.default) and rank == 2:
        one, other = 0, 1
    else:
        return None
    order[one], order[other] = order[other], order[one]
    return order


def tensor_arguments(node: Node) -> list[tuple[str, Node]]:
    """(schema name, node) of every node a call reads, in order; lists are flattened.

    Args:
        node: any node; arguments of calls without a schema have the name "".
    """
    names = _argument_names(node.target)
    found: list[tuple[str, Node]] = []
    for index, value in enumerate(node.args):
        _collect(names[index] if index < len(names) else "", value, found)
    for name, value in node.kwargs.items():
        _collect(name, value, found)
    return found


@lru_cache(maxsize=4096)
def _argument_names(target: Target) -> tuple[str, ...]:
    schema = schema_of(target)
    return () if schema is None else tuple(argument.name for argument in schema.arguments)


def _collect(name: str, value: Any, found: list[tuple[str, Node]]) -> None:
    if isinstance(value, Node):
        found.append((name, value))
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(name, item, found)
