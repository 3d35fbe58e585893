"""ONNX Runtime runs every layer in integers, with the values of the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.onnx_models import check_same, converted

from pt2q import sqnr
from pt2q.deploy import onnx as onnx_road
from pt2q.observers import HistogramObserver
from pt2q.quantizers import OnnxQDQQuantizer

onnx = pytest.importorskip("onnx")


pytest.importorskip("onnxruntime")


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
    observer = HistogramObserver(low=0.0, high=6.0, dtype=torch.uint8)
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    assert zero_point.item() == 0
    assert scale.item() * 255 <= 6 * (1 + 1e-6)
