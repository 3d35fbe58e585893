"""OnnxQDQQuantizer and pt2q.deploy.onnx: files are written, checked, and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.convnets import BasicBlock, ResNet
from support.nets import NETS, Net, image_net
from support.samples import images
from support.small_quantizers import DYNAMIC, PER_TOKEN, UNSIGNED, SmallQuantizer
from torch import nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.deploy import onnx as onnx_road
from pt2q.errors import AnnotationError, DataError, InputShapeError, LoweringError
from pt2q.ir import ops
from pt2q.observers.bounded import BoundedHistogramObserver
from pt2q.quantizers import OnnxQDQQuantizer, XNNPACKQuantizer, get_symmetric_quantization_config

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


def converted(net: Net | str, quantizer):
    net = NETS[net] if isinstance(net, str) else net
    model, inputs = net.build(), net.inputs(2)
    prepared = prepare_pt2e(torch.export.export(model, inputs), quantizer)
    prepared(*inputs)
    return model, convert_pt2e(prepared), inputs


def flat(result) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def check_same(session, model, inputs, least: float = 80.0) -> None:
    for result, wanted in zip(session(*inputs), flat(model(*inputs)), strict=True):
        assert sqnr(wanted, result) > least


# ------------------------------------------------------------------ ONNX Runtime


@pytest.mark.parametrize("name", ["small_resnet", "small_mobilenet"])
def test_every_convolution_runs_in_integers(name, tmp_path: Path):
    model, quantized, inputs = converted(name, OnnxQDQQuantizer.onnxruntime())
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    check_same(onnx_road.load(info.path, fuse=False), quantized, inputs)
    fused = onnx_road.load(info.path)
    kernels = fused.kernels()
    assert kernels["QLinearConv"] == info.count("Conv")
    assert kernels["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Relu", "Clip", "Add"} & set(kernels)
    (result,) = fused(*inputs)
    assert sqnr(quantized(*inputs), result) > 25
    assert sqnr(model(*inputs), result) > 15


def test_weights_are_stored_as_integers_alone(tmp_path: Path):
    _, quantized, inputs = converted("small_resnet", OnnxQDQQuantizer.onnxruntime())
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    graph = onnx.load(info.path).graph
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    assert all(a.ndim <= 1 for a in arrays.values() if a.dtype == np.float32)
    matrices = [a for a in arrays.values() if a.ndim > 1]
    assert len(matrices) == 7
    assert all(a.dtype == np.int8 for a in matrices)
    assert info.size < 120_000
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_grids_behind_a_relu_end_where_it_does():
    x = torch.cat([torch.rand(4000) * 6, torch.full((4000,), 6.0), torch.zeros(4000)])
    observer = BoundedHistogramObserver(low=0.0, high=6.0, dtype=torch.uint8)
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    assert zero_point.item() == 0
    assert scale.item() * 255 <= 6 * (1 + 1e-6)


# ------------------------------------------------------------------ TensorRT


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


# ------------------------------------------------------------------ OpenVINO


def test_openvino_takes_the_same_file(tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    _, quantized, inputs = converted(CENTERNET, OnnxQDQQuantizer.openvino())
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(str(info.path), "CPU", {"INFERENCE_NUM_THREADS": 1})
    results = compiled([x.numpy() for x in inputs])
    for result, wanted in zip(results.values(), flat(quantized(*inputs)), strict=True):
        assert sqnr(wanted, torch.from_numpy(result)) > 20


# ------------------------------------------------------------------ dynamic quantization


def test_dynamic_products_run_in_integers(tmp_path: Path):
    quantizer = OnnxQDQQuantizer.onnxruntime(is_dynamic=True)
    _, quantized, inputs = converted("small_bert", quantizer)
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    assert info.count("MatMulInteger") == 13
    assert info.count("QuantizeLinear") == 0
    session = onnx_road.load(info.path)
    check_same(session, quantized, inputs)
    assert session.kernels()["DynamicQuantizeMatMul"] > 0


@pytest.mark.parametrize("activation", [DYNAMIC, PER_TOKEN], ids=["signed", "per token"])
def test_other_dynamic_parameters_are_written_out(activation, tmp_path: Path):
    _, quantized, inputs = converted("small_bert", SmallQuantizer(activation))
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    check_same(onnx_road.load(info.path), quantized, inputs)


# ------------------------------------------------------------------ files


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, x):
        return F.relu(self.linear(x))


def small(quantizer=None, dynamic_shapes=None):
    x = torch.randn(4, 16)
    exported = torch.export.export(Rows().eval(), (x,), dynamic_shapes=dynamic_shapes)
    prepared = prepare_pt2e(exported, quantizer or OnnxQDQQuantizer.onnxruntime())
    prepared(x)
    return convert_pt2e(prepared), (x,)


def test_sizes_can_be_dynamic(tmp_path: Path):
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    model, args = small(dynamic_shapes=shapes)
    info = onnx_road.export(model, args, tmp_path / "model.onnx", dynamic_shapes=shapes)
    session = onnx_road.load(info.path, fuse=False)
    for rows in (2, 7):
        check_same(session, model, (torch.randn(rows, 16),))


def test_narrow_ranges_saturate_where_they_end(tmp_path: Path):
    config = get_symmetric_quantization_config(act_qmin=-100, act_qmax=90)
    model, (x,) = small(XNNPACKQuantizer().set_global(config))
    info = onnx_road.export(model, (x,), tmp_path / "model.onnx")
    check_same(onnx_road.load(info.path, fuse=False), model, (10 * x,))


def test_constants_in_a_file_of_their_own(tmp_path: Path):
    model, args = small()
    info = onnx_road.export(model, args, tmp_path / "model.onnx", external_data=True)
    assert info.data == tmp_path / "model.onnx.data"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    check_same(onnx_road.load(info.path, fuse=False), model, args)


def test_mistakes_are_named(tmp_path: Path):
    model, args = small()
    path = tmp_path / "model.onnx"
    with pytest.raises(LoweringError, match="opset 12 is too old"):
        onnx_road.export(model, args, path, opset=12)
    assert not list(tmp_path.iterdir())
    with pytest.raises(LoweringError, match=r"give opset=18 or later, as torch\.onnx writes"):
        onnx_road.export(model, args, path, opset=17)
    with pytest.raises(LoweringError, match="opset is a whole number such as 20, found '21'"):
        onnx_road.export(model, args, path, opset="21")
    with pytest.raises(LoweringError, match=r"cannot write opset 99, only \d+; leave opset out"):
        onnx_road.export(model, args, path, opset=99)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"no model")
    for wrong in (path, tmp_path / "missing.onnx"):
        with pytest.raises(DataError, match=wrong.name):
            onnx_road.load(wrong)
    session = onnx_road.load(onnx_road.export(model, args, path).path)
    with pytest.raises(InputShapeError, match="1 input"):
        session(*args, *args)
    with pytest.raises(InputShapeError, match="shapes"):
        session(torch.randn(4, 5))
    affine = OnnxQDQQuantizer.tensorrt().set_global(get_symmetric_quantization_config())
    with pytest.raises(AnnotationError, match="zero point 0"):
        prepare_pt2e(torch.export.export(NETS["small_resnet"].build(), images(2, 32)), affine)


def test_uint8_activations_written_by_another_quantizer(tmp_path: Path):
    _, quantized, inputs = converted("small_bert", SmallQuantizer(UNSIGNED))
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    check_same(onnx_road.load(info.path, fuse=False), quantized, inputs)
