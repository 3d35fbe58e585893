"""Models in bfloat16 and float16, as checkpoints ship, are quantized as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime import InferenceSession
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented
from support.decoder import Decoder, DecoderConfig
from support.half_precision import HALVES, sentence, word_model
from support.nodes import nodes_of
from support.seeds import seeded

from pt2q import QuantGraphModule, Quantizer, convert_pt2e, prepare_pt2e, quantize_pt2e, sqnr
from pt2q.algorithms import AWQ, GPTQ, AdaRound
from pt2q.algorithms.quantize import Algorithm
from pt2q.deploy import inductor, onnx
from pt2q.deploy.executorch import lower
from pt2q.errors import ComputesInFloat32Warning
from pt2q.ir import ops
from pt2q.ir.graph import get_constant
from pt2q.ir.module import copy_module
from pt2q.passes import ComputeInFloat32, run_passes
from pt2q.quantizers import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    OnnxQDQQuantizer,
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_int16_activation_config,
    get_symmetric_quantization_config,
    get_weight_only_quantization_config,
)


def dynamic() -> Quantizer:
    return XNNPACKQuantizer(get_symmetric_quantization_config(is_dynamic=True))


def everything() -> Quantizer:
    return ComposableQuantizer([EmbeddingQuantizer(), dynamic()])


# Least SQNR in dB against the program in half precision.
QUANTIZERS: dict[str, tuple[Callable[[], Quantizer], float]] = {
    "weights": (WeightQuantizer, 30),
    "8da4w": (lambda: WeightQuantizer(get_dynamic_activation_4bit_weight_config(32)), 14),
    "int16": (lambda: WeightQuantizer(get_int16_activation_config()), 25),
    "static": (XNNPACKQuantizer, 27),
    "dynamic": (dynamic, 30),
    "embedding": (everything, 28),
    "x86": (X86InductorQuantizer, 27),
    "onnx": (OnnxQDQQuantizer.onnxruntime, 27),
}


@functools.cache
def converted(name: str, dtype: torch.dtype) -> QuantGraphModule:
    prepared = prepare_pt2e(word_model(dtype)[0], QUANTIZERS[name][0]())
    for seed in range(4):
        prepared(sentence(seed))
    return convert_pt2e(prepared)


def shape_of(model: QuantGraphModule) -> list[str]:
    return [str(n.target) for n in nodes_of(model, ops.QUANTIZE | ops.DEQUANTIZE | ops.LINEAR)]


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", HALVES)
def test_the_same_is_quantized_as_in_float32(name: str, dtype: torch.dtype) -> None:
    model, least = converted(name, dtype), QUANTIZERS[name][1]
    assert shape_of(model) == shape_of(converted(name, torch.float32))
    for node in nodes_of(model, ops.DEQUANTIZE):
        assert node.meta["val"].dtype == dtype
        stored = ops.data_input(node)
        if stored.op == "get_attr":
            assert get_constant(model, stored).dtype in (torch.int8, torch.uint8)
    _, words, expected = word_model(dtype)
    found = model(words)
    assert found.dtype == dtype
    assert sqnr(expected.float(), found.float()) > least


@pytest.mark.parametrize("dtype", HALVES)
def test_computed_in_float32_the_model_is_that_of_float32_weights(dtype: torch.dtype) -> None:
    """What remains is what rounds at the inputs and outputs, and what the weights lost before."""
    model = converted("dynamic", dtype)
    wide = convert_pt2e(prepared_in_float32(dtype))
    changed = copy_of(model)
    run_passes(changed, [ComputeInFloat32()])
    words = word_model(dtype)[1]
    found = changed(words)
    assert found.dtype == dtype
    assert torch.equal(found, wide(words).to(dtype))
    assert model(words).dtype == dtype  # the original is as it was


def prepared_in_float32(dtype: torch.dtype) -> QuantGraphModule:
    """The float32 program with weights that went through half precision."""
    program = word_model(torch.float32)[0]
    module = program.module(check_guards=False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(dtype))
    return prepare_pt2e(module, dynamic())


def copy_of(model: QuantGraphModule) -> QuantGraphModule:
    return copy_module(model, model.record)


def test_executorch_runs_it_table_included_and_keeps_its_type() -> None:
    model = converted("embedding", torch.bfloat16)
    _, words, expected = word_model(torch.bfloat16)
    with pytest.warns(ComputesInFloat32Warning, match="bfloat16, and XNNPACK in float32"):
        program = lower(model, (words,))
    (found,) = program.load()(words)
    assert found.dtype is torch.bfloat16
    assert sqnr(expected.float(), found.float()) > 28
    assert sqnr(model(words).float(), found.float()) > 33
    kernels = dict(program.delegation.portable)
    assert kernels["quantized_decomposed.embedding_byte.default"] == 1


@pytest.mark.slow
def test_inductor_runs_its_kernels_in_bfloat16() -> None:
    model = converted("x86", torch.bfloat16)
    _, words, expected = word_model(torch.bfloat16)
    compiled = inductor.compile(model)
    found = compiled(words)
    assert found.dtype is torch.bfloat16
    assert len(compiled.fusion.fused) == 3
    assert not compiled.fusion.not_fused
    assert sqnr(expected.float(), found.float()) > 27


@pytest.mark.parametrize("dtype", HALVES)
def test_onnx_files_compute_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = converted("onnx", dtype)
    _, words, expected = word_model(dtype)
    with pytest.warns(ComputesInFloat32Warning):
        onnx.export(model, (words,), tmp_path / "model.onnx")
    (found,) = onnx.load(tmp_path / "model.onnx")(words)
    # NumPy has no bfloat16.
    assert found.dtype == (torch.float32 if dtype is torch.bfloat16 else dtype)
    assert sqnr(expected.float(), found.float()) > 27
    onnx.export(converted("onnx", torch.float32), (words,), tmp_path / "float32.onnx")
    kernels = integer_kernels(tmp_path / "float32.onnx")
    assert kernels
    assert integer_kernels(tmp_path / "model.onnx") == kernels


def integer_kernels(path: Path) -> dict[str, int]:
    found = onnx.load(path, threads=1).kernels()
    return {n: count for n, count in found.items() if n.startswith(("QLinear", "QGemm", "MatMulI"))}


@pytest.mark.parametrize("name", ["QuantizeLinear", "MatMul"])
def test_onnx_runtime_has_no_kernels_for_bfloat16(name: str) -> None:
    """Why a file has float32 in its place: when this fails, files can have it themselves."""
    bfloat16, kind = TensorProto.BFLOAT16, TensorProto.UINT8 if name[0] == "Q" else None
    second = helper.make_tensor("second", bfloat16, [1] if kind else [1, 1], [0.5])
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=bfloat16),
        helper.make_node(name, ["half", "second"], ["y"]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 1])]
    made = [helper.make_tensor_value_info("y", kind or bfloat16, [2, 1])]
    graph = helper.make_graph(nodes, name, given, made, [second])
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    with pytest.raises(NotImplemented, match=f"implementation for {name}"):
        InferenceSession(model, providers=["CPUExecutionProvider"])


ALGORITHMS = {"gptq": GPTQ(), "awq": AWQ(), "adaround": AdaRound(steps=30)}


@functools.cache
def small_decoder(dtype: torch.dtype) -> torch.export.ExportedProgram:
    """With the same numbers in every type."""
    with seeded(0):
        model = Decoder(DecoderConfig(64, 32, 1, hidden=64, length=16)).eval()
    model.to(torch.bfloat16).to(dtype)
    return torch.export.export(model, (sentence(9), torch.arange(8)))


def error_of(dtype: torch.dtype, algorithm: Algorithm) -> tuple[QuantGraphModule, float]:
    program, at = small_decoder(dtype), torch.arange(8)
    batches = [(sentence(seed), at) for seed in range(8)]
    quantizer = WeightQuantizer(get_weight_only_quantization_config(4, 32))
    done = quantize_pt2e(program, quantizer, batches, algorithms=[algorithm])
    with torch.no_grad():
        expected, found = (
            torch.cat([run(sentence(100 + seed), at).float() for seed in range(16)])
            for run in (program.module(), done)
        )
    return done, float(sqnr(expected, found))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_compute_in_float32_and_leave_weights_in_their_type(name: str) -> None:
    half, of_half = error_of(torch.bfloat16, ALGORITHMS[name])
    single, of_single = error_of(torch.float32, ALGORITHMS[name])
    assert shape_of(half) == shape_of(single)
    assert abs(of_half - of_single) < 1
    assert half.state_dict()["norm.weight"].dtype is torch.bfloat16
