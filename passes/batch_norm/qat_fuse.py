"""Write every convolution and its batch norm so that training quantizes the folded weight.

Jacob et al. 2018, section 3.2: what is deployed is ``w * s`` with
``s = gamma / sqrt(running_var + eps)``, so that is what must be rounded in training. The layer

    batch_norm(conv(x, w) + b)

becomes

    batch_norm(conv(x, fq(w * s)) / s + b)

which without ``fq`` is the same function, with the same gradients and statistics. The operators
and their order are those of ``torch.ao.nn.intrinsic.qat.ConvBn2d``. A channel with ``gamma = 0``
uses ``s = 1``: it has no folded weight to round, and its statistics must not become 0 / 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.batch_norm import BatchNorm, Layer, batch_norms, pair_reason
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import fake_constant, is_constant, stand_for, value_of
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import StorageMap
from pt2q.passes.batch_norm.qat_record import FusedPair, FusedPairs
from pt2q.spec import QUANT_ANNOTATION_KEY, EdgeOrNode, QuantizationAnnotation, annotation_of
from pt2q.spec.moved_edges import move_edges
from pt2q.training import scaled_batch_norm  # noqa: F401 - registers the operator

PASS = "conv_bn_qat_fuse"


@dataclass(frozen=True)
class FuseConvBatchNormQAT:
    """Fuse every annotated layer with its batch norm; note the reason where that is impossible.

    Runs after annotation. The annotations of a layer's weight and bias, and every spec that refers
    to those edges, move to the nodes that take their place.

    Args:
        fast: let the batch norm undo the scaling (`pt2q.training.scaled_batch_norm`): the same
            function with other rounding errors, in less time and memory.
    """

    fast: bool = False

    def __call__(self, model: QuantGraphModule) -> bool:
        """Fuse; see the class.

        Args:
            model: annotated; changed in place.

        Returns:
            Whether something was fused.
        """
        written = StorageMap.of(model.graph).written_constants()
        pairs, moved = [], {}
        for bn in batch_norms(model):
            layer, reason = _match(bn, written)
            if layer is None or reason:
                model.record.note(PASS, bn.node.name, reason)
            elif _quantizes_weight(layer):
                fusion = _Fusion(model, layer, bn, self.fast)
                pairs.append(fusion.run())
                moved.update(fusion.moved)
        move_edges(model.graph, moved)
        model.record.put(FusedPairs(tuple(pairs)))
        return bool(pairs)


def _match(bn: BatchNorm, written: set[str]) -> tuple[Layer | None, str]:
    if bn.running_mean is None or bn.running_var is None:
        return None, "it has no running statistics, with which the folded weight is made"
    layer, reason = pair_reason(bn)
    if layer is None:
        return None, reason
    if bn.node.target not in ops.BATCH_NORM or not all(map(is_constant, bn.constants)):
        return None, "it is decomposed or its parameters are computed"
    if not is_constant(layer.weight):
        return None, f"the weight of {layer.node.name} is computed by {layer.weight.name}"
    if str(layer.weight.target) in written:
        return None, f"{layer.weight.target} is written in the forward pass"
    if not (layer.bias is None or is_constant(layer.bias)):
        return None, f"the bias of {layer.node.name} is computed by {layer.bias.name}"
    if _quantizes_between(layer, bn):
        return None, f"the output of {layer.node.name} is quantized before it"
    return layer, ""


def _quantizes_between(layer: Layer, bn: BatchNorm) -> bool:
    own, next_ = annotation_of(layer.node), annotation_of(bn.node)
    output = own is not None and own.output_qspec is not None
    return output or (next_ is not None and next_.input_qspec_map.get(layer.node) is not None)


def _quantizes_weight(layer: Layer) -> bool:
    annotation = annotation_of(layer.node)
    return annotation is not None and annotation.input_qspec_map.get(layer.weight) is not None


@dataclass
class _Fusion:
    """Writes one pair."""

    model: QuantGraphModule
    layer: Layer
    bn: BatchNorm
    fast: bool
    moved: dict[EdgeOrNode, EdgeOrNode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bias = self.layer.bias
        self.emit = Emitter(self.model, PASS)

    def run(self) -> FusedPair:
        layer, conv = self.layer, self.layer.node
        weight, bias = layer.weight, self.bias
        self.hoist_constants()
        self.emit.before(conv)
        factor = self.factor()
        scaled = self.add(ops.aten.mul.Tensor, weight, self.for_weight(factor), like=weight)
        self.move((weight, conv), (scaled, conv))
        ops.set_argument(conv, "weight", scaled)
        if bias is not None:
            ops.set_argument(conv, "bias", None)
        reader = self.rescale_in_norm(factor) if self.fast else self.rescale_output(factor)
        if bias is not None:
            self.move((bias, conv), (bias, reader))
        return FusedPair(
            conv.name,
            self.bn.node.name,
            scaled.name,
            "" if bias is None else reader.name,
            tuple(node.name for node in self.emit.made),
        )

    def hoist_constants(self) -> None:
        """Read the batch norm's constants before the layer: a quantizer may have moved them."""
        conv = self.layer.node
        for constant in (self.bn.running_var, self.bn.weight):
            if constant is not None and constant.op == "get_attr" and conv < constant:
                conv.prepend(constant)

    def rescale_output(self, factor: Node) -> Node:
        """Divide the layer's output by ``s``, add its bias; returns what reads the bias."""
        conv, bias, reader = self.layer.node, self.bias, self.bn.node
        self.emit.before(self.bn.node, origin=conv)
        shaped = self.reshape(factor, self.channel_shape())
        output = self.add(ops.aten.div.Tensor, conv, shaped, like=conv)
        if bias is not None:
            reader = self.reshape(bias, self.channel_shape())
            output = self.add(ops.aten.add.Tensor, output, reader, like=conv)
        ops.set_argument(self.bn.node, "input", output)
        return reader

    def rescale_in_norm(self, factor: Node) -> Node:
        """Let the batch norm undo the scaling; returns what reads the bias: the batch norm."""
        norm = self.bn.node
        kept = ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
        values = [ops.argument(norm, name) for name in kept]
        norm.target, norm.kwargs = ops.SCALED_BATCH_NORM, {}
        norm.args = (self.layer.node, factor, self.bias, *values)
        for node in (*self.emit.made, self.layer.node):
            stand_for(node, norm, PASS)  # the layer's own value is nowhere: it is scaled
        return norm

    def factor(self) -> Node:
        """``s``, [C]."""
        var, gamma, aten = self.bn.running_var, self.bn.weight, ops.aten
        assert var is not None
        present = self.add(ops.SNAPSHOT, var, like=var)
        shifted = self.add(aten.add.Tensor, present, self.bn.eps, like=var)
        std = self.add(aten.sqrt.default, shifted, like=var)
        if gamma is None:
            return self.add(aten.reciprocal.default, std, like=var)
        factor = self.add(aten.div.Tensor, gamma, std, like=var)
        is_zero = self.add(aten.eq.Scalar, factor, 0, like=var)
        return self.add(aten.masked_fill.Scalar, factor, is_zero, 1.0, like=var)

    def for_weight(self, factor: Node) -> Node:
        """``s`` in a shape that multiplies output channels of the weight."""
        layer, size = self.layer, value_of(self.layer.weight).shape
        rest = [1] * (len(size) - 2)
        if not layer.transposed:
            return self.reshape(factor, [-1, 1, *rest])
        if layer.groups == 1:
            return self.reshape(factor, [1, -1, *rest])
        # Output channel g * (out / groups) + j sits in the rows of group g, column j.
        grouped = self.reshape(factor, [layer.groups, 1, size[1]])
        rows = [layer.groups, size[0] // layer.groups, size[1]]
        spread = self.add(ops.aten.expand.default, grouped, rows, shape=rows)
        return self.reshape(spread, [size[0], size[1], *rest])

    def channel_shape(self) -> list[int]:
        return [1, -1, *[1] * self.layer.spatial]

    def reshape(self, node: Node, shape: list[int]) -> Node:
        count = value_of(node).numel()
        known = [count if size == -1 else size for size in shape]
        return self.add(ops.aten.reshape.default, node, shape, shape=known)

    def add(
        self, target: Any, *args: Any, like: Node | None = None, shape: list[int] | None = None
    ) -> Node:
        """A new node with the value of ``like``, or a new value of ``shape``."""
        value = value_of(like) if like is not None else self.fake_vector(shape or [])
        return self.emit.call_giving(value, target, *args)

    def fake_vector(self, shape: list[int]) -> Any:
        assert self.bn.running_var is not None
        variance = value_of(self.bn.running_var)
        return fake_constant(torch.empty(shape, dtype=variance.dtype, device="meta"), variance)

    def move(self, old: tuple[Node, Node], new: tuple[Node, Node]) -> None:
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
