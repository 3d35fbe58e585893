"""A quantizer written against the peer, and the flow with it."""

from __future__ import annotations

import torch
import torchao.quantization.pt2e as peer
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import quantizer as peer_quantizer

from pt2q.ir import ops

EPS = 2**-12


class Foreign(peer_quantizer.Quantizer):
    """Linears and an addition, with every kind of spec the peer has."""

    def __init__(self, weight=None, activation=None) -> None:
        super().__init__()
        self.activation = activation or self.spec(peer.MinMaxObserver.with_args(eps=EPS))
        self.weight = weight or peer_quantizer.QuantizationSpec(
            dtype=torch.int8,
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=peer.PerChannelMinMaxObserver.with_args(eps=EPS),
        )
        self.replaced: list[object] = []

    @staticmethod
    def spec(ctr):
        return peer_quantizer.QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=ctr,
        )

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if ops.is_op(node, ops.LINEAR):
                self._linear(node)
            elif ops.is_op(node, ops.ADD):
                self._add(node)
            elif node.target is torch.ops.aten.sigmoid.default:
                self._sigmoid(node)
        return model

    def _linear(self, node: Node) -> None:
        source, weight, bias = node.args

        def derive(found):
            scale = found[0].calculate_qparams()[0] * found[1].calculate_qparams()[0]
            return scale, torch.zeros_like(scale, dtype=torch.int32)

        derived = peer_quantizer.DerivedQuantizationSpec(
            derived_from=[(source, node), (weight, node)],
            derive_qparams_fn=derive,
            dtype=torch.int32,
            quant_min=-(2**31),
            quant_max=2**31 - 1,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )
        inputs = {source: self.activation, weight: self.weight, bias: derived}
        self._set(node, inputs, self.activation)

    def _add(self, node: Node) -> None:
        first, second = node.args
        shared = peer_quantizer.SharedQuantizationSpec((first, node))
        self._set(node, {first: self.activation, second: shared}, shared)

    def _sigmoid(self, node: Node) -> None:
        fixed = peer_quantizer.FixedQParamsQuantizationSpec(
            dtype=torch.uint8,
            scale=1 / 256,
            zero_point=0,
            quant_min=0,
            quant_max=255,
            qscheme=torch.per_tensor_affine,
        )
        self._set(node, {}, fixed)

    @staticmethod
    def _set(node, inputs, output) -> None:
        node.meta["quantization_annotation"] = peer_quantizer.QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=output, _annotated=True
        )

    def validate(self, model: GraphModule) -> None:
        assert any("quantization_annotation" in n.meta for n in model.graph.nodes)

    def prepare_obs_or_fq_callback(self, model, edge_or_node_to_obs_or_fq) -> None:
        self.replaced = list(edge_or_node_to_obs_or_fq.values())


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.second = torch.nn.Linear(8, 8)

    def forward(self, x):
        y = self.first(x)
        return torch.sigmoid(self.second(y) + y)


def flow(prepare, convert, quantizer, net=None, calibrate=True):
    torch.manual_seed(0)
    net = Net().eval() if net is None else net
    batches = [torch.randn(4, 8) for _ in range(3)]
    prepared = prepare(torch.export.export(net, (batches[0],)).module(), quantizer)
    for batch in batches if calibrate else ():
        prepared(batch)
    return net, prepared, convert(prepared), batches[0]


def counts(model: GraphModule) -> tuple[int, int]:
    nodes = list(model.graph.nodes)
    return (
        sum(ops.is_op(n, ops.QUANTIZE) for n in nodes),
        sum(ops.is_op(n, ops.DEQUANTIZE) for n in nodes),
    )


class OnlyWeights(Foreign):
    def _linear(self, node: Node) -> None:
        self._set(node, {node.args[1]: self.weight}, None)

    def _add(self, node: Node) -> None:
        pass

    _sigmoid = _add


class Conv(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.more = torch.nn.Conv2d(8, 8, 1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        return self.head((y + self.more(y)).mean((2, 3)))
