"""Fold what was fused for training: no batch norm is left, the rounded weight stays the same.

``batch_norm(conv(x, fq(w * s)) / s + b)`` becomes ``conv(x, fq(w'), b')`` with ``w' = w * s``
computed by the operators that training used, so that it has the very same values, and
``b' = (b - running_mean) * s + beta``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.batch_norm import BatchNorm, Layer, layer_of, read_batch_norm
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import get_constant, is_parameter, set_constant, stand_for
from pt2q.ir.module import QuantGraphModule
from pt2q.passes.batch_norm.folded_tensors import factor_and_shift, folded_name
from pt2q.passes.batch_norm.qat_record import FusedPair, FusedPairs, fused_pairs

PASS = "conv_bn_qat_fold"


@dataclass(frozen=True)
class FoldConvBatchNormQAT:
    """Fold every pair that `FuseConvBatchNormQAT` has on record.

    Runs at conversion, in evaluation mode, before observers are replaced: the fake quantizers of
    weight and bias stay where they are, behind the folded tensors.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Fold; see the class.

        Args:
            model: changed in place.

        Returns:
            Whether there was a pair.
        """
        pairs = fused_pairs(model.record)
        if not pairs:
            return False
        places, emit = _Places.of(model), Emitter(model, PASS)
        for pair in pairs:
            _Folding(emit, pair, places).run()
        model.record.take(FusedPairs)
        return True


@dataclass
class _Places:
    """Nodes by name and reads of constants by target: read once for all pairs."""

    nodes: dict[str, Node]
    reads: dict[str, list[Node]]

    @classmethod
    def of(cls, model: QuantGraphModule) -> _Places:
        nodes = {node.name: node for node in model.graph.nodes}
        reads: dict[str, list[Node]] = {}
        for node in nodes.values():
            if node.op == "get_attr":
                reads.setdefault(str(node.target), []).append(node)
        return cls(nodes, reads)

    def is_sole_reader(self, constant: Node, reader: Node) -> bool:
        found = {user for node in self.reads[str(constant.target)] for user in node.users}
        return found <= {reader}


class _Folding:
    """Folds one pair."""

    def __init__(self, emit: Emitter, pair: FusedPair, places: _Places) -> None:
        self.emit, self.model = emit, emit.model
        self.places = places
        nodes = places.nodes
        self.helpers = [nodes[name] for name in pair.helpers]
        self.scaled = nodes[pair.weight]
        self.bias_reader = nodes[pair.bias_reader] if pair.bias_reader else None
        layer = layer_of(nodes[pair.layer])
        assert layer is not None
        self.layer: Layer = layer
        self.bn: BatchNorm = read_batch_norm(nodes[pair.norm])

    @torch.no_grad()
    def run(self) -> None:
        weight, own_bias = self.weight_node(), self.bias_node()
        old_bias = self.source(own_bias) if own_bias is not None else None
        _, shift = factor_and_shift(self.model, self.bn, old_bias)
        self.set_bias(own_bias, self.new_constant("bias", shift, old_bias))
        folded = self.layer.per_channel(self.training_factor(), get_constant(self.model, weight))
        self.scaled.replace_all_uses_with(self.new_constant("weight", folded, weight))
        stand_for(self.layer.node, self.bn.node, PASS)
        self.bn.node.replace_all_uses_with(self.layer.node)
        for node in (self.bn.node, *reversed(self.helpers)):
            self.model.graph.erase_node(node)

    def weight_node(self) -> Node:
        """The constant that was scaled."""
        weight = self.scaled.args[0]
        assert isinstance(weight, Node)
        return weight

    def bias_node(self) -> Node | None:
        """What the layer's own bias is read from: the constant, or its fake quantizer."""
        reader = self.bias_reader
        if reader is None:
            return None
        is_norm = reader is self.bn.node
        bias: Node = ops.argument(reader, "own_bias") if is_norm else ops.data_input(reader)
        return bias

    def source(self, node: Node) -> Node:
        """The constant behind a fake quantizer."""
        while node.op != "get_attr":
            (node,) = node.all_input_nodes
        return node

    def training_factor(self) -> torch.Tensor:
        """``s`` by the operators of the graph, in their precision."""
        assert self.bn.running_var is not None
        std = torch.sqrt(get_constant(self.model, self.bn.running_var) + self.bn.eps)
        if self.bn.weight is None:
            return torch.reciprocal(std)
        return get_constant(self.model, self.bn.weight) / std

    def new_constant(self, kind: str, value: torch.Tensor, old: Node | None) -> Node:
        """Store a folded tensor in the place of the old one, or beside it if others read that."""
        weight = self.weight_node()
        like = get_constant(self.model, weight)
        value = value.to(like.dtype)
        if is_parameter(self.model, str(weight.target)):
            value = torch.nn.Parameter(value, requires_grad=like.requires_grad)
        target = folded_name(weight, old, kind)
        self.emit.before(self.scaled, origin=weight if old is None else old)
        if old is None or not self.places.is_sole_reader(old, next(iter(old.users))):
            return self.emit.constant(target, value)
        set_constant(self.model, target, value)
        return self.emit.read(target)

    def set_bias(self, own: Node | None, new: Node) -> None:
        """Give the layer the folded bias, through the fake quantizer of its own, if any."""
        layer = self.layer.node
        if own is None or own.op == "get_attr":
            ops.set_argument(layer, "bias", new)
            return
        layer.prepend(own)
        own.replace_input_with(self.source(own), new)
        ops.set_argument(layer, "bias", own)
