"""What one call does to storage: which of its inputs it writes, and which it may give out again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.torch_private import schema_of

Roles = tuple[tuple[int, str], ...]
"""Arguments of an operator, by position and name."""


@dataclass(frozen=True)
class Effects:
    """What a call does to storage.

    Args:
        written: the inputs that it writes into.
        shared: the inputs whose storage its result may lie in.
    """

    written: tuple[Node, ...] = ()
    shared: tuple[Node, ...] = ()


NONE = Effects()
STATISTICS = ("running_mean", "running_var")


def effects_of(node: Node) -> Effects:
    """The effects of a node that runs no graphs, by the schema of its operator.

    Args:
        node: of any kind. An observer gives what it is given; functions without a schema take
            lists of views apart.
    """
    if node.op == "call_module":
        return Effects(shared=tuple(node.all_input_nodes[:1]))
    if node.op != "call_function" or _has_none(node.target):
        return NONE
    if node.target is ops.GETITEM:
        return Effects(shared=_taken(node))
    if schema_of(node.target) is None:
        first = node.args[0] if node.args else None
        return Effects(shared=(first,)) if isinstance(first, Node) else NONE
    return _of_operator(node)


def may_write(node: Node) -> bool:
    """Whether a call of what runs no graphs may write into what it is given."""
    return _writes(node.target) or _trains(node)


@lru_cache(maxsize=4096)
def _writes(target: Any) -> bool:
    return schema_of(target) is not None and bool(_roles(target)[0])


def _of_operator(node: Node) -> Effects:
    if node.target in ops.EINSUM:  # of one operand a view, of several a product
        operands = _given(node, _named(node.target, "tensors"))
        return Effects(shared=operands) if len(operands) == 1 else NONE
    written, shared = _roles(node.target)
    moved = _given(node, _named(node.target, *STATISTICS)) if _trains(node) else ()
    if not (written or shared or moved):
        return NONE
    return Effects((*_given(node, written), *moved), _given(node, shared))


@lru_cache(maxsize=4096)
def _has_none(target: Any) -> bool:
    """Whether no call of an operator does anything to storage."""
    if schema_of(target) is None or target in ops.EINSUM or target in ops.UPDATES_STATISTICS:
        return False
    return _roles(target) == ((), ())


@lru_cache(maxsize=4096)
def _roles(target: Any) -> tuple[Roles, Roles]:
    """Which arguments an operator writes, and which its result may share storage with."""
    schema = schema_of(target)
    aliases = [
        (index, argument.name, argument.alias_info)
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None
    ]
    written = tuple((i, name) for i, name, alias in aliases if alias.is_write)
    given_out = any(result.alias_info is not None for result in schema.returns)
    shared = tuple((i, name) for i, name, _ in aliases) if given_out else ()
    if target in ops.MAY_RETURN_INPUT:  # their schema does not say so
        shared = ((0, schema.arguments[0].name),)
    return () if target in ops.WRITES_NOTHING else written, shared


@lru_cache(maxsize=4096)
def _named(target: Any, *wanted: str) -> Roles:
    names = [argument.name for argument in schema_of(target).arguments]
    return tuple((names.index(name), name) for name in wanted if name in names)


def _trains(node: Node) -> bool:
    """Whether a norm moves its running statistics, which its schema does not say."""
    if node.target not in ops.UPDATES_STATISTICS:
        return False
    mode = "training" if ops.has_argument(node, "training") else "use_input_stats"
    return bool(ops.argument(node, mode))


def _given(node: Node, roles: Roles) -> tuple[Node, ...]:
    """The nodes given for some arguments, by position or by name, in lists or not."""
    found: list[Node] = []
    for index, name in roles:
        value = node.args[index] if index < len(node.args) else node.kwargs.get(name)
        values = value if isinstance(value, list | tuple) else [value]
        found.extend(v for v in values if isinstance(v, Node))
    return tuple(found)


def _taken(getitem: Node) -> tuple[Node, ...]:
    """What one of several results may share storage with: all of them, or one operand of a list."""
    source, index = getitem.args
    if not isinstance(source, Node):
        return ()
    if not ops.is_op(source, ops.VIEWS_EACH) or not isinstance(index, int):
        return (source,)
    operands = _given(source, ((0, schema_of(source.target).arguments[0].name),))
    return (operands[index],) if len(operands) > index else (source,)
