"""A layer and its batch norm, written so that training quantizes the folded weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.batch_norm import BatchNorm, Layer
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import fake_constant, stand_for, value_of
from pt2q.passes.batch_norm.qat_record import FusedPair
from pt2q.spec import QUANT_ANNOTATION_KEY, EdgeOrNode, QuantizationAnnotation, annotation_of
from pt2q.training import scaled_batch_norm  # noqa: F401 - registers the operator


@dataclass
class PairWriter:
    """Writes one layer and its batch norm anew.

    Args:
        emit: makes the nodes, for this pair alone.
        layer, bn: the pair.
        fast: let the batch norm undo the scaling.
        moved: the edges whose annotations moved, and where to.
    """

    emit: Emitter
    layer: Layer
    bn: BatchNorm
    fast: bool
    moved: dict[EdgeOrNode, EdgeOrNode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bias = self.layer.bias

    def write(self) -> FusedPair:
        """Write the pair; what folding has to know of it."""
        layer, conv = self.layer, self.layer.node
        weight, bias = layer.weight, self.bias
        self._hoist_constants()
        self.emit.before(conv)
        factor = self._factor()
        scaled = self._add(ops.aten.mul.Tensor, weight, self._for_weight(factor), like=weight)
        self._move((weight, conv), (scaled, conv))
        ops.set_argument(conv, "weight", scaled)
        if bias is not None:
            ops.set_argument(conv, "bias", None)
        reader = self._rescale_in_norm(factor) if self.fast else self._rescale_output(factor)
        if bias is not None:
            self._move((bias, conv), (bias, reader))
        return FusedPair(
            conv.name,
            self.bn.node.name,
            scaled.name,
            "" if bias is None else reader.name,
            tuple(node.name for node in self.emit.made),
        )

    def _hoist_constants(self) -> None:
        """Read the batch norm's constants before the layer: a quantizer may have moved them."""
        conv = self.layer.node
        for constant in (self.bn.running_var, self.bn.weight):
            if constant is not None and constant.op == "get_attr" and conv < constant:
                conv.prepend(constant)

    def _rescale_output(self, factor: Node) -> Node:
        """Divide the layer's output by ``s``, add its bias; returns what reads the bias."""
        conv, bias, reader = self.layer.node, self.bias, self.bn.node
        self.emit.before(self.bn.node, origin=conv)
        shaped = self._reshape(factor, self._channel_shape())
        output = self._add(ops.aten.div.Tensor, conv, shaped, like=conv)
        if bias is not None:
            reader = self._reshape(bias, self._channel_shape())
            output = self._add(ops.aten.add.Tensor, output, reader, like=conv)
        ops.set_argument(self.bn.node, "input", output)
        return reader

    def _rescale_in_norm(self, factor: Node) -> Node:
        """Let the batch norm undo the scaling; returns what reads the bias: the batch norm."""
        norm = self.bn.node
        kept = ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
        values = [ops.argument(norm, name) for name in kept]
        norm.target, norm.kwargs = ops.SCALED_BATCH_NORM, {}
        norm.args = (self.layer.node, factor, self.bias, *values)
        for node in (*self.emit.made, self.layer.node):
            stand_for(
                node, norm, self.emit.pass_name
            )  # the layer's own value is nowhere: it is scaled
        return norm

    def _factor(self) -> Node:
        """``s``, [C]."""
        var, gamma, aten = self.bn.running_var, self.bn.weight, ops.aten
        assert var is not None
        present = self._add(ops.SNAPSHOT, var, like=var)
        shifted = self._add(aten.add.Tensor, present, self.bn.eps, like=var)
        std = self._add(aten.sqrt.default, shifted, like=var)
        if gamma is None:
            return self._add(aten.reciprocal.default, std, like=var)
        factor = self._add(aten.div.Tensor, gamma, std, like=var)
        is_zero = self.emit.call(aten.eq.Scalar, factor, 0)
        return self._add(aten.masked_fill.Scalar, factor, is_zero, 1.0, like=var)

    def _for_weight(self, factor: Node) -> Node:
        """``s`` in a shape that multiplies output channels of the weight."""
        layer, size = self.layer, value_of(self.layer.weight).shape
        rest = [1] * (len(size) - 2)
        if not layer.transposed:
            return self._reshape(factor, [-1, 1, *rest])
        if layer.groups == 1:
            return self._reshape(factor, [1, -1, *rest])
        # Output channel g * (out / groups) + j sits in the rows of group g, column j.
        grouped = self._reshape(factor, [layer.groups, 1, size[1]])
        rows = [layer.groups, size[0] // layer.groups, size[1]]
        spread = self._add(ops.aten.expand.default, grouped, rows, shape=rows)
        return self._reshape(spread, [size[0], size[1], *rest])

    def _channel_shape(self) -> list[int]:
        return [1, -1, *[1] * self.layer.spatial]

    def _reshape(self, node: Node, shape: list[int]) -> Node:
        count = value_of(node).numel()
        known = [count if size == -1 else size for size in shape]
        return self._add(ops.aten.reshape.default, node, shape, shape=known)

    def _add(
        self, target: Any, *args: Any, like: Node | None = None, shape: list[int] | None = None
    ) -> Node:
        """A new node with the value of ``like``, or a new value of ``shape``."""
        value = value_of(like) if like is not None else self._fake_vector(shape or [])
        return self.emit.call_giving(value, target, *args)

    def _fake_vector(self, shape: list[int]) -> Any:
        assert self.bn.running_var is not None
        variance = value_of(self.bn.running_var)
        return fake_constant(torch.empty(shape, dtype=variance.dtype, device="meta"), variance)

    def _move(self, old: tuple[Node, Node], new: tuple[Node, Node]) -> None:
        """Hand the annotation of an edge over to the edge that takes its place."""
        annotation = annotation_of(old[1])
        if annotation is None or old[0] not in annotation.input_qspec_map:
            return
        spec = annotation.input_qspec_map.pop(old[0])
        other = annotation_of(new[1])
        if other is None:
            other = QuantizationAnnotation(
                allow_implicit_sharing=annotation.allow_implicit_sharing, _annotated=True
            )
            new[1].meta[QUANT_ANNOTATION_KEY] = other
        other.input_qspec_map[new[0]] = spec
        self.moved[old] = new
