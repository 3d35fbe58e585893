"""A quantizer for training and small networks, shared by the tests of training."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx import GraphModule, Node

import pt2q
from pt2q.ir import ops
from pt2q.ir.module import QuantGraphModule
from pt2q.observers import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from pt2q.spec import (
    QUANT_ANNOTATION_KEY,
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)
from support import small_quantizers

ACTIVATION = replace(
    small_quantizers.ACTIVATION,
    observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver
    ),
)
PER_TENSOR = replace(
    small_quantizers.WEIGHT_PER_TENSOR,
    observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver, averaging_constant=1.0
    ),
)


def per_channel(axis: int) -> QuantizationSpec:
    follows = FusedMovingAvgObsFakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0
    )
    return replace(small_quantizers.weight_per_channel(axis), observer_or_fake_quant_ctr=follows)


def bias_scale(sources: list) -> tuple[torch.Tensor, torch.Tensor]:
    scale = sources[0].calculate_qparams()[0] * sources[1].calculate_qparams()[0]
    return scale, torch.zeros_like(scale, dtype=torch.int64)


@dataclass
class QATQuantizer(Quantizer):
    """Layers with what follows them: a batch norm, an activation."""

    bias: bool = False
    activation: QuantizationSpec | None = ACTIVATION
    weight: QuantizationSpec | None = None

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if ops.is_op(node, ops.CONV | ops.LINEAR):
                self._layer(node)
        return model

    def _layer(self, node: Node) -> None:
        x, weight = ops.argument(node, "input"), ops.argument(node, "weight")
        annotation = QuantizationAnnotation({x: self.activation, weight: self._weight(node)})
        bias = ops.argument(node, "bias")
        if self.bias and bias is not None:
            axis = 0 if annotation.input_qspec_map[weight].ch_axis is not None else None
            scheme = torch.per_tensor_symmetric if axis is None else torch.per_channel_symmetric
            annotation.input_qspec_map[bias] = DerivedQuantizationSpec(
                [(x, node), (weight, node)],
                bias_scale,
                torch.int32,
                -(2**31),
                2**31 - 1,
                scheme,
                axis,
            )
        node.meta[QUANT_ANNOTATION_KEY] = annotation
        last = _last(node)
        last.meta.setdefault(QUANT_ANNOTATION_KEY, QuantizationAnnotation())
        last.meta[QUANT_ANNOTATION_KEY].output_qspec = self.activation

    def _weight(self, node: Node) -> QuantizationSpec:
        if self.weight is not None:
            return self.weight
        transposed = node.target in ops.CONV_TRANSPOSE
        if transposed and ops.argument(node, "groups") != 1:
            return PER_TENSOR
        return per_channel(1 if transposed else 0)

    def validate(self, model: GraphModule) -> None:
        pass


def _last(node: Node) -> Node:
    for follower in (ops.BATCH_NORM, ops.RELU):
        users = list(node.users)
        if len(users) == 1 and ops.is_op(users[0], follower):
            node = users[0]
    return node


def prepare(
    model: nn.Module, *inputs: torch.Tensor, quantizer: Quantizer | None = None, **options: bool
) -> QuantGraphModule:
    """Prepare a copy of a model, in training mode."""
    mode = copy.deepcopy(model).train()
    try:
        exported = torch.export.export(mode, inputs)
    except Exception:  # momentum=None can be exported in evaluation mode alone
        exported = torch.export.export(mode.eval(), inputs)
    prepared = pt2q.prepare_qat_pt2e(exported, quantizer or QATQuantizer(), **options)
    return prepared.train()
