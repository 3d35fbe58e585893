"""Quantizers small enough to read beside the tests that use them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.graph import is_float_tensor
from pt2q.observers import MinMaxObserver, PerChannelMinMaxObserver, PlaceholderObserver
from pt2q.spec import (
    QUANT_ANNOTATION_KEY,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)

ACTIVATION = QuantizationSpec(
    torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine, is_dynamic=False
)
UNSIGNED = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
DYNAMIC = QuantizationSpec(
    torch.int8, PlaceholderObserver, -128, 127, torch.per_tensor_affine, is_dynamic=True
)
PER_TOKEN = replace(
    DYNAMIC, observer_or_fake_quant_ctr=PlaceholderObserver.with_args(per_token=True)
)
WEIGHT_PER_TENSOR = QuantizationSpec(
    torch.int8, MinMaxObserver, -127, 127, torch.per_tensor_symmetric
)


def weight_per_channel(axis: int) -> QuantizationSpec:
    return replace(
        WEIGHT_PER_TENSOR,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
        qscheme=torch.per_channel_symmetric,
        ch_axis=axis,
    )


class NoopQuantizer(Quantizer):
    """Annotates nothing."""

    def annotate(self, model: GraphModule) -> GraphModule:
        return model

    def validate(self, model: GraphModule) -> None:
        pass


class FunctionQuantizer(NoopQuantizer):
    """Annotates what a function of one node gives back."""

    def __init__(self, function) -> None:
        self.function = function

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            annotation = self.function(node)
            if annotation is not None:
                node.meta[QUANT_ANNOTATION_KEY] = annotation
        return model


class SmallQuantizer(NoopQuantizer):
    """Static or dynamic int8 for convolutions and linears; adds and cats share their inputs."""

    def __init__(
        self,
        activation: QuantizationSpecBase | None = ACTIVATION,
        weight: str = "per_channel",
        output: bool = True,
    ) -> None:
        self.activation = activation
        self.weight = weight
        self.output = activation if output and activation not in (DYNAMIC, PER_TOKEN) else None

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in list(model.graph.nodes):
            if ops.is_op(node, ops.CONV | ops.LINEAR):
                self._weighted(node)
            elif ops.is_op(node, ops.ADD | ops.CAT) and self.output is not None:
                self._sharing(node)
        return model

    def _weighted(self, node: Node) -> None:
        axis = 1 if node.target in ops.CONV_TRANSPOSE else 0
        grouped = node.target in ops.CONV_TRANSPOSE and ops.argument(node, "groups") != 1
        per_tensor = self.weight == "per_tensor" or grouped
        spec = WEIGHT_PER_TENSOR if per_tensor else weight_per_channel(axis)
        node.meta[QUANT_ANNOTATION_KEY] = QuantizationAnnotation(
            {ops.argument(node, "input"): self.activation, ops.argument(node, "weight"): spec},
            self.output,
        )

    def _sharing(self, node: Node) -> None:
        inputs = [n for n in node.all_input_nodes if is_float_tensor(n)]
        if not inputs or not is_float_tensor(node):
            return
        first = (inputs[0], node)
        specs: dict[Node, QuantizationSpecBase | None] = {inputs[0]: self.activation}
        specs.update((n, SharedQuantizationSpec(first)) for n in inputs[1:])
        node.meta[QUANT_ANNOTATION_KEY] = QuantizationAnnotation(
            specs, SharedQuantizationSpec(first)
        )


def linears(
    activation: QuantizationSpecBase | None,
    weight: QuantizationSpecBase | None,
    output: QuantizationSpecBase | None = None,
) -> FunctionQuantizer:
    """Annotates every linear and convolution alike."""

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if not ops.is_op(node, ops.LINEAR | ops.CONV):
            return None
        inputs = {ops.argument(node, "input"): activation, ops.argument(node, "weight"): weight}
        return QuantizationAnnotation(inputs, output)

    return FunctionQuantizer(annotate)


def everything(spec: QuantizationSpecBase) -> FunctionQuantizer:
    """Every floating point input and output of every operator."""

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.op != "call_function":
            return None
        return QuantizationAnnotation({n: spec for n in node.all_input_nodes}, spec)

    return FunctionQuantizer(annotate)
