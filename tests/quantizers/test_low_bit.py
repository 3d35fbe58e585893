"""Weights alone, 4 bits in groups, int16 and float8: what is stored, and what runtimes compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.nets import NETS
from support.samples import vectors
from torch import nn

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy import onnx as onnx_road
from pt2q.errors import LoweringError, SpecError
from pt2q.ir import ops
from pt2q.observers import PerGroupMinMaxObserver
from pt2q.quantizers import (
    EmbeddingQuantizer,
    WeightQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_embedding_quantization_config,
    get_float8_quantization_config,
    get_int16_activation_config,
    get_weight_only_quantization_config,
)

W4 = get_weight_only_quantization_config(bits=4, group_size=32)
W8 = get_weight_only_quantization_config()
A8W4 = get_dynamic_activation_4bit_weight_config(group_size=32)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)).eval()


def converted(quantizer, model=None, inputs=None):
    model = mlp() if model is None else model
    inputs = vectors(8, 64) if inputs is None else inputs
    prepared = prepare_pt2e(torch.export.export(model, inputs), quantizer)
    prepared(*inputs)
    return model, convert_pt2e(prepared), inputs


# ------------------------------------------------------------------ groups


def test_group_observer_finds_a_scale_per_group():
    weight = torch.randn(6, 64) * torch.logspace(-2, 2, 4).repeat_interleave(16)
    observer = PerGroupMinMaxObserver(
        dtype=torch.int8, quant_min=-8, quant_max=7, group_size=16, scale_dtype=torch.float32
    )
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    assert scale.shape == zero_point.shape == (6, 4)
    assert not zero_point.any()
    largest = weight.reshape(6, 4, 16).abs().amax(-1)
    torch.testing.assert_close(scale, largest / 7.5)


@pytest.mark.parametrize("size", [0, -1, True, "32", 2.0])
def test_group_sizes_are_checked_where_they_are_given(size):
    for make in (
        lambda: get_weight_only_quantization_config(4, group_size=size),
        lambda: get_dynamic_activation_4bit_weight_config(group_size=size),
    ):
        with pytest.raises(SpecError, match=r"group_size is .* whole number from 1 up"):
            make()


def test_opsets_without_groups_or_16_bits_are_refused_with_the_reason(tmp_path: Path):
    for config, why in ((W4, "a scale per group"), (get_int16_activation_config(), "16-bit")):
        _, quantized, inputs = converted(WeightQuantizer(config))
        with pytest.raises(LoweringError, match=f"give opset=21 or later, as .* has {why}"):
            onnx_road.export(quantized, inputs, tmp_path / "old.onnx", opset=20)


def test_sizes_of_small_files_are_told(tmp_path: Path):
    _, quantized, inputs = converted(WeightQuantizer(W8))
    text = str(onnx_road.export(quantized, inputs, tmp_path / "small.onnx"))
    assert "int8 12." in text and "kB" in text and "0.00" not in text


def test_group_scales_are_bf16_numbers_unless_told_otherwise():
    observer = PerGroupMinMaxObserver(dtype=torch.int8, quant_min=-8, quant_max=7, group_size=8)
    observer(torch.randn(4, 32))
    scale, _ = observer.calculate_qparams()
    assert torch.equal(scale, scale.bfloat16().float())


def test_groups_must_divide_a_row():
    observer = PerGroupMinMaxObserver(dtype=torch.int8, quant_min=-8, quant_max=7, group_size=24)
    with pytest.raises(SpecError, match="24"):
        observer(torch.randn(4, 64))
    quantizer = WeightQuantizer(get_weight_only_quantization_config(4, 48))
    with pytest.warns(match="annotated nothing"):
        converted(quantizer)
    assert "do not divide by 48" in quantizer.report()["linear"].how


def test_the_report_says_what_shares_a_scale():
    quantizer = WeightQuantizer(W4)
    converted(quantizer)
    assert quantizer.report()["linear"].how == "weight only, weight int4 in groups of 32"


def test_finer_groups_are_nearer_to_float():
    model = mlp()
    with torch.no_grad():  # columns of many sizes, as trained weights have
        model[0].weight *= torch.logspace(-2, 0, 64)
        model[2].weight *= torch.logspace(-2, 0, 128)
    errors = []
    for size in (None, 32, 8):
        config = get_weight_only_quantization_config(4, size)
        _, quantized, inputs = converted(WeightQuantizer(config), model)
        errors.append(-float(sqnr(model(*inputs), quantized(*inputs))))
    assert errors[0] > errors[1] > errors[2]


# ------------------------------------------------------------------ what is stored


def test_weights_are_stored_in_integers_and_activations_left_alone():
    model, quantized, inputs = converted(WeightQuantizer())
    dtypes = [b.dtype for b in quantized.buffers() if b.dim() == 2]
    assert dtypes == [torch.int8, torch.int8]
    assert not any(ops.is_op(n, ops.QUANTIZE) for n in quantized.graph.nodes)
    assert sqnr(model(*inputs), quantized(*inputs)) > 40


def test_embedding_tables_are_looked_up_in_int8(tmp_path: Path):
    net = NETS["small_bert"]
    model, quantized, inputs = converted(
        EmbeddingQuantizer(get_embedding_quantization_config()), net.build(), net.inputs(2)
    )
    assert sqnr(model(*inputs), quantized(*inputs)) > 40
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    assert info.count("DequantizeLinear") == 0
    assert sqnr(quantized(*inputs), onnx_road.load(info.path)(*inputs)[0]) > 100


def test_zero_points_in_float_are_no_onnx(tmp_path: Path):
    _, quantized, inputs = converted(EmbeddingQuantizer(), nn.Embedding(8, 4), (torch.arange(3),))
    with pytest.raises(LoweringError, match="get_embedding_quantization_config"):
        onnx_road.export(quantized, inputs, tmp_path / "model.onnx")


# ------------------------------------------------------------------ runtimes


@pytest.mark.parametrize(
    ("config", "stored", "bytes_of_weights"),
    [
        (W8, "int8", 12288),
        (W4, "int4", 6144),
        (A8W4, "int4", 6144),
    ],
    ids=["int8 weights", "int4 weights", "8da4w"],
)
def test_low_bit_weights_in_onnx(config, stored, bytes_of_weights, tmp_path: Path):
    _, quantized, inputs = converted(WeightQuantizer(config))
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    assert bytes_of_weights <= dict(info.constants)[stored] <= bytes_of_weights * 1.2
    assert sqnr(quantized(*inputs), onnx_road.load(info.path)(*inputs)[0]) > 100


@pytest.mark.parametrize("group_size", [32, None])
def test_8da4w_runs_on_xnnpack(group_size):
    pytest.importorskip("executorch")
    from pt2q.deploy import executorch as executorch_road

    config = get_dynamic_activation_4bit_weight_config(group_size)
    _, quantized, inputs = converted(WeightQuantizer(config))
    program = executorch_road.lower(quantized, inputs)
    assert not program.delegation.quantized_left
    assert len(program.buffer) < 16_000  # 12,288 weights; in float: 49,152 bytes
    assert sqnr(quantized(*inputs), program.load()(*inputs)[0]) > 80


@pytest.mark.parametrize("config", [W8, W4], ids=["int8", "int4"])
def test_weights_alone_are_refused_where_xnnpack_computes_them_wrongly(config):
    pytest.importorskip("executorch")
    from pt2q.deploy import executorch as executorch_road

    _, quantized, inputs = converted(WeightQuantizer(config))
    with pytest.raises(LoweringError, match="input in float"):
        executorch_road.lower(quantized, inputs)


def test_int16_activations_are_nearly_float(tmp_path: Path):
    net = NETS["small_resnet"]
    quantizer = WeightQuantizer(get_int16_activation_config())
    model, quantized, inputs = converted(quantizer, net.build(), net.inputs(2))
    assert sqnr(model(*inputs), quantized(*inputs)) > 35  # what int8 weights leave
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    assert info.opset == 21
    result = onnx_road.load(info.path, fuse=False)(*inputs)[0]
    assert sqnr(quantized(*inputs), result) > 60


def test_float8_is_stored_and_run(tmp_path: Path):
    quantizer = WeightQuantizer(get_float8_quantization_config())
    model, quantized, inputs = converted(quantizer)
    assert sqnr(model(*inputs), quantized(*inputs)) > 18
    info = onnx_road.export(quantized, inputs, tmp_path / "model.onnx")
    assert dict(info.constants)["float8e4m3fn"] >= 12288
    result = onnx_road.load(info.path)(*inputs)[0]
    assert sqnr(quantized(*inputs), result) > 18


def test_bits_that_are_not_stored_are_refused():
    with pytest.raises(SpecError, match="4 or 8"):
        get_weight_only_quantization_config(bits=3)
