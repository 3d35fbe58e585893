"""Batch norms and the layers that they may belong to, read from the graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from pt2q.ir import ops


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm call.

    Args:
        node: the call.
        output: the node that holds its output: the call, or the getitem of a decomposed one.
        weight, bias, running_mean, running_var: constants, or None.
        eps: added to the variance.
    """

    node: Node
    output: Node
    weight: Node | None
    bias: Node | None
    running_mean: Node | None
    running_var: Node | None
    eps: float

    @property
    def constants(self) -> tuple[Node, ...]:
        """Those of its constants that exist."""
        found = (self.weight, self.bias, self.running_mean, self.running_var)
        return tuple(node for node in found if node is not None)


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer.

    Args:
        node: the call.
        transposed: whether output channels are dimension 1 of the weight.
        groups: of a convolution.
        spatial: the number of spatial dimensions, 0 for linear.
    """

    node: Node
    transposed: bool
    groups: int
    spatial: int

    @property
    def weight(self) -> Node:
        """What the call reads as its weight."""
        found = ops.argument(self.node, "weight")
        assert isinstance(found, Node)
        return found

    @property
    def bias(self) -> Node | None:
        """What the call reads as its bias."""
        found: Node | None = ops.argument(self.node, "bias")
        return found

    def per_channel(
        self, scale: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``scale * weight``, one factor per output channel.

        Args:
            scale: [output channels].
            weight: [out, in / groups, *kernel], transposed [in, out / groups, *kernel].
            out: takes the result, if it can; of the shape of the weight.
        """
        rest = (1,) * (weight.dim() - 2)
        if not self.transposed:
            return torch.mul(weight, scale.reshape(-1, 1, *rest), out=out)
        if self.groups == 1:
            return torch.mul(weight, scale.reshape(1, -1, *rest), out=out)
        # Output channel g * (out / groups) + j sits in rows of group g, column j.
        grouped = weight.unflatten(0, (self.groups, -1))
        scaled: torch.Tensor = grouped * scale.reshape(self.groups, 1, -1, *rest)
        return scaled.flatten(0, 1)


def batch_norms(model: GraphModule) -> list[BatchNorm]:
    """All batch norms of a graph, in order."""
    return [read_batch_norm(n) for n in model.graph.nodes if ops.is_op(n, ops.BATCH_NORM_ANY)]


def read_batch_norm(node: Node) -> BatchNorm:
    """The arguments of a batch norm, by name.

    Args:
        node: a call of one of ``ops.BATCH_NORM_ANY``.
    """
    return BatchNorm(
        node,
        _output(node),
        ops.argument(node, "weight"),
        ops.argument(node, "bias"),
        ops.argument(node, "running_mean"),
        ops.argument(node, "running_var"),
        ops.argument(node, "eps"),
    )


def _output(node: Node) -> Node:
    """A decomposed batch norm also gives batch statistics, which nobody reads in evaluation."""
    if node.target in ops.BATCH_NORM:
        return node
    users = list(node.users)
    read = [u for u in users if ops.is_op(u, frozenset({ops.GETITEM})) and u.args[1] == 0]
    return read[0] if len(read) == 1 and len(users) == 1 else node


def is_training(bn: BatchNorm) -> bool:
    """Whether a batch norm uses the statistics of its input."""
    return ops.has_argument(bn.node, "training") and bool(ops.argument(bn.node, "training"))


def layer_of(node: object) -> Layer | None:
    """The convolution or linear layer that a node is, or None."""
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    if node.target in ops.LINEAR:
        return Layer(node, False, 1, 0)
    if not (node.target in ops.CONV or node.target in ops.CONV_GENERIC):
        return None
    weight = ops.argument(node, "weight")
    value = weight.meta.get("val") if isinstance(weight, Node) else None
    if value is None:
        return None
    transposed = (
        bool(ops.argument(node, "transposed"))
        if node.target in ops.CONV_GENERIC
        else node.target in ops.CONV_TRANSPOSE
    )
    return Layer(node, transposed, ops.argument(node, "groups"), value.dim() - 2)
