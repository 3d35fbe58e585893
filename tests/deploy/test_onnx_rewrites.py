"""Each rewrite of an ONNX graph: what it makes of a graph, what it leaves alone, and the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from pt2q.deploy.onnx.rewrites import rewrite

WEIGHT = "int8[3,4] w = {1,-2,3,-4, 5,6,-7,-8, 7,0,1,2}, float[3] t = {0.5,0.25,0.125}"
COLUMNS = "int8[4,3] w = {1,-2,3,-4, 5,6,-7,-8, 7,0,1,2}, float[3] t = {0.5,0.25,0.125}"
BIAS = "float[3] b = {0.3,-1.25,4}"
STATIC = "float s = {0.1}, uint8 z = {3}"
DYNAMIC = "q, s, z = DynamicQuantizeLinear(x) left = DequantizeLinear(q, s, z)"
QUANTIZED = "q = QuantizeLinear(x, s, z) left = DequantizeLinear(q, s, z)"


def model(initializers: str, body: str, inputs: str = "float[2,4] x", opset: int = 20) -> Any:
    text = f'<ir_version: 10, opset_import: ["": {opset}]> g ({inputs}) => (float[N,M] y)'
    parsed = onnx.parser.parse_model(f"{text} <{initializers}> {{ {body} }}")
    onnx.checker.check_model(parsed)
    return parsed


def rewritten(before: Any, four_bits: bool = False) -> Any:
    graph = ir.from_proto(before)
    rewrite(graph, four_bits=four_bits)
    after = ir.to_proto(graph)
    onnx.checker.check_model(after)
    return after


def calls(proto: Any) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def run(proto: Any, **inputs: np.ndarray) -> np.ndarray:
    (result,) = ReferenceEvaluator(proto).run(None, inputs)
    return result


def sample() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)


CASES = {
    "dynamic quantize": (
        "float c = {1}",
        "p, s, z = DynamicQuantizeLinear(x) q = QuantizeLinear(x, s, z) "
        "d = DequantizeLinear(q, s, z) y = Mul(d, c)",
        ["DynamicQuantizeLinear", "DequantizeLinear", "Mul"],
    ),
    "transposed weight": (
        WEIGHT,
        "r = DequantizeLinear<axis=0>(w, t) u = Transpose<perm=[1,0]>(r) y = MatMul(x, u)",
        ["DequantizeLinear", "MatMul"],
    ),
    "dynamic product": (
        COLUMNS,
        f"{DYNAMIC} r = DequantizeLinear<axis=1>(w, t) y = MatMul(left, r)",
        ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul"],
    ),
    "dynamic product of a transposed weight": (
        WEIGHT,
        f"{DYNAMIC} r = DequantizeLinear<axis=0>(w, t) u = Transpose<perm=[1,0]>(r) "
        "y = MatMul(left, u)",
        ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul"],
    ),
    "dynamic linear layer": (
        f"{WEIGHT}, {BIAS}",
        f"{DYNAMIC} r = DequantizeLinear<axis=0>(w, t) y = Gemm<transB=1>(left, r, b)",
        ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul", "Add"],
    ),
    "bias of a linear layer": (
        f"{WEIGHT}, {BIAS}, {STATIC}",
        f"{QUANTIZED} r = DequantizeLinear<axis=0>(w, t) y = Gemm<transB=1>(left, r, b)",
        ["QuantizeLinear", *["DequantizeLinear"] * 3, "Gemm"],
    ),
    "bias added to a product": (
        f"{COLUMNS}, {BIAS}, {STATIC}",
        f"{QUANTIZED} r = DequantizeLinear<axis=1>(w, t) p = MatMul(left, r) y = Add(p, b)",
        ["QuantizeLinear", *["DequantizeLinear"] * 2, "MatMul", "DequantizeLinear", "Add"],
    ),
    "product added to a bias": (
        f"{COLUMNS}, {BIAS}, {STATIC}",
        f"{QUANTIZED} r = DequantizeLinear<axis=1>(w, t) p = MatMul(left, r) y = Add(b, p)",
        ["QuantizeLinear", *["DequantizeLinear"] * 2, "MatMul", "DequantizeLinear", "Add"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_rewritten(name: str) -> None:
    initializers, body, expected = CASES[name]
    before = model(initializers, body)
    after = rewritten(before)
    assert sorted(calls(after)) == sorted(expected)
    # A bias in the unit of sums is off by half a step at most: 0.5 * 0.1 * 0.5.
    wanted, found = (run(proto, x=sample()) for proto in (before, after))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=0.025 if "bias" in name else 1e-5)


LEFT_ALONE = {
    "a weight with zero points": (
        f"{COLUMNS}, int8[3] k = {{1,0,0}}",
        f"{DYNAMIC} r = DequantizeLinear<axis=1>(w, t, k) y = MatMul(left, r)",
    ),
    "scales along the summed axis": (
        "int8[4,4] w = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}, float[4] t = {1,2,3,4}",
        f"{DYNAMIC} r = DequantizeLinear<axis=0>(w, t) y = MatMul(left, r)",
    ),
    "a scaled product": (
        f"{WEIGHT}, {BIAS}, {STATIC}",
        f"{QUANTIZED} r = DequantizeLinear<axis=0>(w, t) y = Gemm<transB=1,beta=2.0>(left, r, b)",
    ),
    "a symmetric activation": (
        f"{WEIGHT}, {BIAS}, float s = {{0.1}}, int8 z = {{0}}",
        f"{QUANTIZED} r = DequantizeLinear<axis=0>(w, t) y = Gemm<transB=1>(left, r, b)",
    ),
    "a bias beyond int32": (
        f"{WEIGHT}, float[3] b = {{1e9,0,0}}, {STATIC}",
        f"{QUANTIZED} r = DequantizeLinear<axis=0>(w, t) y = Gemm<transB=1>(left, r, b)",
    ),
    "a product with other readers": (
        f"{COLUMNS}, {BIAS}, {STATIC}",
        f"{QUANTIZED} r = DequantizeLinear<axis=1>(w, t) p = MatMul(left, r) a = Add(p, b) "
        "y = Mul(a, p)",
    ),
    "a weight that others read as it is": (
        "int8[4,4] w = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}, float[4] t = {1,2,3,4}",
        "r = DequantizeLinear<axis=0>(w, t) u = Transpose<perm=[1,0]>(r) p = MatMul(x, u) "
        "y = MatMul(p, r)",
    ),
    "another quantize of the same tensor": (
        STATIC,
        "p, k, l = DynamicQuantizeLinear(x) q = QuantizeLinear(x, s, z) "
        "d = DequantizeLinear(q, s, z) e = DequantizeLinear(p, k, l) y = Add(d, e)",
    ),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone(name: str) -> None:
    before = model(*LEFT_ALONE[name])
    after = rewritten(before, four_bits=True)
    assert calls(after) == calls(before)
    assert np.array_equal(run(after, x=sample()), run(before, x=sample()))


@pytest.mark.parametrize("zero_points", [False, True])
def test_embeddings_are_looked_up_in_integers(zero_points: bool) -> None:
    zeros = ", int8[3] k = {1,-2,3}" if zero_points else ""
    read = f"r = DequantizeLinear<axis=0>(w, t{', k' if zero_points else ''})"
    before = model(f"{WEIGHT}{zeros}", f"{read} y = Gather<axis=0>(r, i)", "int64[5] i")
    after = rewritten(before)
    shift = ["Gather", "Sub"] if zero_points else []
    assert sorted(calls(after)) == sorted(["Gather", "Cast", "Gather", "Mul", *shift])
    rows = np.array([2, 0, 1, 1, 2])
    assert np.array_equal(run(after, i=rows), run(before, i=rows))


@pytest.mark.parametrize(("largest", "stored"), [(7, "INT4"), (8, "INT8")])
def test_groups_are_stored_in_four_bits_where_they_fit(largest: int, stored: str) -> None:
    weight = f"int8[2,4] w = {{1,-8,3,-4, 5,6,{largest},0}}, float[2,2] t = {{0.5,1,2,4}}"
    body = "r = DequantizeLinear<axis=1,block_size=2>(w, t) y = Mul(x, r)"
    before = model(weight, body, "float[2,4] x", opset=21)
    after = rewritten(before, four_bits=True)
    types = {onnx.TensorProto.DataType.Name(t.data_type) for t in after.graph.initializer}
    assert types == {stored, "FLOAT"}
    assert calls(after) == ["DequantizeLinear", "Mul"]
    assert np.array_equal(run(after, x=sample()), run(before, x=sample()))
    kept = rewritten(before, four_bits=False)
    assert {t.data_type for t in kept.graph.initializer} == {
        onnx.TensorProto.INT8,
        onnx.TensorProto.FLOAT,
    }


def test_one_weight_read_twice_is_stored_for_each() -> None:
    body = (
        "r = DequantizeLinear<axis=0>(w, t) u = Transpose<perm=[1,0]>(r) "
        "k = DequantizeLinear<axis=0>(w, t) v = Transpose<perm=[1,0]>(k) "
        "a = MatMul(x, u) c = MatMul(x, v) y = Add(a, c)"
    )
    before = model(WEIGHT, body)
    after = rewritten(before)
    names = [tensor.name for tensor in after.graph.initializer]
    assert len(names) == len(set(names))
    assert "Transpose" not in calls(after)
    np.testing.assert_allclose(run(after, x=sample()), run(before, x=sample()), rtol=1e-6)


def test_nothing_is_noted_beside_the_graph() -> None:
    initializers, body, _ = CASES["dynamic linear layer"]
    before = model(initializers, body)
    before.graph.node[0].doc_string = "/home/someone/model.py"
    after = rewritten(before)
    assert all(not node.metadata_props and not node.doc_string for node in after.graph.node)
