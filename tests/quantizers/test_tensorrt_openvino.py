"""Files for TensorRT and OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.convnets import BasicBlock, ResNet
from support.nets import image_net
from support.onnx_models import check_same, converted, flat
from support.samples import images
from torch import nn

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.deploy import onnx as onnx_road
from pt2q.ir import ops
from pt2q.quantizers import OnnxQDQQuantizer

onnx = pytest.importorskip("onnx")


pytest.importorskip("onnxruntime")


class CenterNet(nn.Module):
    """A residual network, upsampled by transposed convolutions, with a head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.features = ResNet(BasicBlock, (1, 1), width=8).features
        layers: list[nn.Module] = []
        for _ in range(2):
            up = nn.ConvTranspose2d(16, 16, 4, 2, 1, bias=False)
            layers += [up, nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        self.upsample = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, n, 1))
                for name, n in (("heat", 3), ("size", 2), ("offset", 2))
            }
        )

    def forward(self, x):
        x = self.upsample(self.features(x))
        return tuple(head(x) for head in self.heads.values())


CENTERNET = image_net(CenterNet, 32)


@pytest.mark.parametrize("net", [CENTERNET, "small_vit"], ids=["centernet", "small_vit"])
def test_tensorrt_file_is_symmetric_throughout(net, tmp_path: Path):
    model, quantized, inputs = converted(net, OnnxQDQQuantizer.tensorrt())
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx", opset=20)
    graph = onnx.load(info.path).graph
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    pairs = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        activation = node.op_type == "QuantizeLinear" or node.input[0] not in constants
        assert constants[node.input[1]].ndim == (0 if activation else 1)
    check_same(onnx_road.load(info.path, fuse=False), quantized, inputs)
    assert all(
        sqnr(a, b) > 15 for a, b in zip(flat(model(*inputs)), flat(quantized(*inputs)), strict=True)
    )


def test_tensorrt_quantizes_the_skip_branch_and_no_bias():
    quantizer = OnnxQDQQuantizer.tensorrt()
    _, quantized, _ = converted("small_resnet", quantizer)
    additions = [n for n in quantized.graph.nodes if ops.is_op(n, ops.ADD)]
    assert len(additions) == 2
    for node in additions:
        read_quantized = [ops.is_op(s, ops.DEQUANTIZE) for s in node.all_input_nodes]
        assert sorted(read_quantized) == [False, True]
    for node in quantized.graph.nodes:
        if ops.is_op(node, ops.CONV | ops.LINEAR):
            assert not ops.is_op(ops.argument(node, "bias"), ops.DEQUANTIZE)


class OwnInput(nn.Module):
    """A residual around one convolution: what is added is what the convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = x + self.first(x)
        return self.last(torch.relu(self.norm(self.second(x)) + x))


@pytest.mark.parametrize("is_qat", [False, True])
def test_tensorrt_quantizes_a_skip_branch_around_one_convolution(is_qat, tmp_path: Path):
    quantizer = OnnxQDQQuantizer.tensorrt(is_qat=is_qat)
    prepare = prepare_qat_pt2e if is_qat else prepare_pt2e
    inputs = images(2, 8)
    model = OwnInput().train(is_qat)
    prepared = prepare(torch.export.export(model, inputs), quantizer)
    prepared(*inputs)
    quantized = convert_pt2e(prepared)
    graph = onnx.load(onnx_road.export(quantized, inputs, tmp_path / "own.onnx").path).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    additions = [[makers[i] for i in n.input] for n in graph.node if n.op_type == "Add"]
    assert sorted(map(sorted, additions)) == [["Conv", "DequantizeLinear"]] * 2
    check_same(onnx_road.load(tmp_path / "own.onnx", fuse=False), quantized, inputs)


def test_transposed_convolutions_have_scales_along_their_own_axis():
    _, quantized, _ = converted(CENTERNET, OnnxQDQQuantizer.tensorrt())
    transposed = [n for n in quantized.graph.nodes if ops.is_op(n, ops.CONV_TRANSPOSE)]
    assert len(transposed) == 2
    for node in transposed:
        weight = ops.argument(node, "weight")
        assert ops.argument(weight, "axis") == 1


def test_openvino_takes_the_same_file(tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    _, quantized, inputs = converted(CENTERNET, OnnxQDQQuantizer.openvino())
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(str(info.path), "CPU", {"INFERENCE_NUM_THREADS": 1})
    results = compiled([x.numpy() for x in inputs])
    for result, wanted in zip(results.values(), flat(quantized(*inputs)), strict=True):
        assert sqnr(wanted, torch.from_numpy(result)) > 20
