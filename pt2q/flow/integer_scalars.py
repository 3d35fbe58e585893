"""Integers stay integers, whatever a quantizer makes of the scalars beside them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import get_constant, is_constant, value_of


def constants_read(module: GraphModule) -> frozenset[str]:
    """The qualified names of all constants that a graph reads."""
    return frozenset(str(node.target) for node in module.graph.nodes if is_constant(node))


def restore_integer_scalars(module: GraphModule, known: frozenset[str]) -> int:
    """Write a scalar again where a quantizer made a tensor in floating point of it.

    ``positions + 1`` with a tensor ``1.0`` gives floating point numbers, which index nothing.

    Args:
        module: what the quantizer's ``transform_for_annotation`` left; changed in place.
        known: the constants that were read before it.

    Returns:
        How many scalars were restored.
    """
    found = [pair for node in module.graph.nodes for pair in _made_of_scalars(module, node, known)]
    for node, constant in found:
        number = float(get_constant(module, constant))
        scalar = int(number) if number.is_integer() else number
        node.args = tuple(scalar if arg is constant else arg for arg in node.args)
        if not constant.users:
            module.graph.erase_node(constant)
    return len(found)


def unite_integer_types(module: GraphModule) -> int:
    """Let what is written into integers have their type, where a quantizer narrowed one of them.

    Args:
        module: what the quantizer's ``transform_for_annotation`` left; changed in place.

    Returns:
        How many casts were written.
    """
    found = [node for node in module.graph.nodes if ops.is_op(node, ops.INDEX_PUT)]
    found = [node for node in found if _differ(*_written(node))]
    for node in found:
        target, values = _written(node)
        emit = Emitter(module, "pt2q.integers").before(node, origin=values)
        cast = emit.call(ops.TO_DTYPE, values, value_of(target).dtype)
        ops.set_argument(node, "values", cast)
    return len(found)


def _written(node: Node) -> tuple[Node, Node]:
    """What an operator writes into, and what."""
    return ops.argument(node, "self"), ops.argument(node, "values")


def _differ(target: Node, values: Node) -> bool:
    types = [getattr(n.meta.get("val"), "dtype", None) for n in (target, values)]
    known = [t for t in types if t is not None and not (t.is_floating_point or t.is_complex)]
    return len(set(known)) == 2


def _made_of_scalars(
    module: GraphModule, node: Node, known: frozenset[str]
) -> Iterator[tuple[Node, Node]]:
    """A call on integers with a floating point scalar that was none before."""
    if not ops.is_op(node, ops.ADD | ops.SUB | ops.RSUB | ops.MUL):
        return
    others = [source for _, source in ops.tensor_arguments(node)]
    made = [s for s in others if is_constant(s) and str(s.target) not in known]
    if len(made) == 1 and len(others) == 2 and _is_scalar(get_constant(module, made[0])):
        rest = next(source for source in others if source is not made[0])
        if not _is_float(value_of(rest)) and not _is_float(value_of(node)):
            yield node, made[0]


def _is_scalar(value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() == 0


def _is_float(value: object) -> bool:
    return not isinstance(value, Tensor) or value.dtype.is_floating_point or value.is_complex()
