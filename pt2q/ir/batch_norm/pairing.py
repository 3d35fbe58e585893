"""Which batch norm belongs to which convolution or linear layer, or why to none."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.batch_norm.reading import BatchNorm, Layer, layer_of
from pt2q.ir.graph import get_constant, is_constant


def pair_reason(bn: BatchNorm) -> tuple[Layer | None, str]:
    """The layer whose output a batch norm alone reads, or the reason why there is none.

    Args:
        bn: the batch norm.

    Returns:
        (layer, "") or (None, reason).
    """
    producer = ops.argument(bn.node, "input")
    layer = layer_of(producer)
    if layer is None:
        name = producer.name if isinstance(producer, Node) else producer
        return None, f"its input {name} is not a convolution or linear layer"
    if len(layer.node.users) > 1:
        users = ", ".join(u.name for u in layer.node.users if u is not bn.node)
        return None, f"the output of {layer.node.name} is also read by {users}"
    return _checked(layer, bn)


def _checked(layer: Layer, bn: BatchNorm) -> tuple[Layer | None, str]:
    value = layer.node.meta.get("val")
    expected = layer.spatial + 2
    if value is None or value.dim() != expected:
        found = "an unknown number of" if value is None else value.dim()
        return None, (
            f"the output of {layer.node.name} has {found} dimensions, and dimension 1, which is "
            f"normalized, is its channels only with {expected}"
        )
    if bn.output is bn.node and bn.node.target not in ops.BATCH_NORM:
        return None, "its batch statistics are read"
    return layer, ""


def constants_reason(model: GraphModule, layer: Layer, bn: BatchNorm, written: set[str]) -> str:
    """Why the tensors of a pair are not plain constants, or "".

    Args:
        model: the module that owns the graph.
        layer, bn: the pair.
        written: the names of constants that a forward pass writes into.
    """
    named = {"weight": layer.weight, "bias": layer.bias}
    for name, node in named.items():
        if node is not None and not is_constant(node):
            return f"the {name} of {layer.node.name} is computed by {node.name}"
    for node in bn.constants:
        if not is_constant(node):
            return f"{node.name} is not a constant of the model"
    tensors = [n for n in (layer.weight, layer.bias, *bn.constants) if n is not None]
    for node in tensors:
        if str(node.target) in written:
            return f"{node.target} is written in the forward pass"
    return _dtype_reason(model, layer, tensors)


def _dtype_reason(model: GraphModule, layer: Layer, tensors: list[Node]) -> str:
    values = [get_constant(model, node) for node in tensors]
    if not all(value.dtype.is_floating_point for value in values):
        return f"{layer.node.name} and its batch norm do not both work on real floating numbers"
    return ""
