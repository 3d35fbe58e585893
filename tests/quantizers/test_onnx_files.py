"""ONNX files: dynamic products and sizes, ranges, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.nets import NETS
from support.onnx_models import check_same, converted
from support.samples import images
from support.small_quantizers import DYNAMIC, PER_TOKEN, UNSIGNED, SmallQuantizer
from torch import nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.deploy import onnx as onnx_road
from pt2q.errors import AnnotationError, DataError, InputShapeError, LoweringError
from pt2q.quantizers import OnnxQDQQuantizer, XNNPACKQuantizer, get_symmetric_quantization_config

onnx = pytest.importorskip("onnx")


pytest.importorskip("onnxruntime")


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
    assert info.data is not None and info.data.parent == tmp_path
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", info.data.name]
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
