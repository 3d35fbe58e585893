"""Rewrites of an exported ONNX graph that runtimes and file size gain from.

Each looks at one operator and what produces its inputs, and keeps what the graph computes:

- a dynamic quantize with ONNX's own parameters is ``DynamicQuantizeLinear`` alone;
- a transposed constant is stored transposed, so that a product sees its dequantized weight;
- a dynamically quantized product becomes ``MatMulInteger``, which runs in integers;
- the bias of a product in uint8 is stored in the unit of its sums;
- an embedding is looked up in int8 and only the rows found are dequantized;
- weights in [-8, 7] in groups are stored in 4 bits.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

Rewrite = Callable[[ir.Graph, ir.Node], bool]


def rewrite(model: ir.Model, *, four_bits: bool) -> None:
    """Apply the rewrites to a model in place.

    Args:
        model: as exported.
        four_bits: store grouped weights in 4 bits; the opset must have the type (21).
    """
    _forget_notes(model)
    rules: list[Rewrite] = [
        _quantize_once,
        _store_transposed,
        _multiply_integers,
        _look_up_integers,
        _store_bias_in_sums,
    ]
    if four_bits:
        rules.append(_store_four_bits)
    for rule in rules:
        for node in list(model.graph):
            rule(model.graph, node)
        _remove_unread(model.graph)
    ShapeInferencePass()(model)


def _forget_notes(model: ir.Model) -> None:
    """Drop what the exporter notes beside the graph.

    Types were taken over from torch, where computed parameters are float64 and int64. Notes on
    nodes hold stack traces with the paths of source files, and may outweigh the weights.
    """
    outputs = set(model.graph.outputs)
    for value in (*model.graph.inputs, *outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in outputs:
                value.type = None
                value.shape = None


# ------------------------------------------------------------------ reading


def _array(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant, or None."""
    if value is None:
        return None
    found = ir.convenience.get_const_tensor(value)
    return None if found is None else found.numpy()


def _producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def _stored(node: ir.Node | None) -> bool:
    """Whether a dequantize reads a stored weight."""
    return node is not None and node.inputs[0] is not None and node.inputs[0].is_initializer()


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _remove_unread(graph: ir.Graph) -> None:
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]


# ------------------------------------------------------------------ writing


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value


def _node(
    graph: ir.Graph,
    before: ir.Node,
    kind: str,
    inputs: list[ir.Value | None],
    **attributes: int,
) -> ir.Value:
    """A new operator in front of another; gives its output."""
    given = [ir.AttrInt64(name, value) for name, value in attributes.items()]
    node = ir.Node("", kind, inputs, given)
    graph.insert_before(before, node)
    return node.outputs[0]


def _replace(old: ir.Node, new: ir.Value) -> None:
    result = old.outputs[0]
    new.name, new.type, new.shape = result.name, result.type, result.shape
    result.name = None
    graph = old.graph
    result.replace_all_uses_with(new, replace_graph_outputs=True)
    assert isinstance(graph, ir.Graph)
    graph.remove(old, safe=True)


# ------------------------------------------------------------------ the rules


def _quantize_once(graph: ir.Graph, node: ir.Node) -> bool:
    """``QuantizeLinear(x, s, z)`` with both from ``DynamicQuantizeLinear(x)``: its first output."""
    if node.op_type != "QuantizeLinear":
        return False
    value, scale, zero_point = _three(node)
    dynamic = _producer(scale, "DynamicQuantizeLinear")
    if dynamic is None or dynamic.inputs[0] is not value:
        return False
    if scale is not dynamic.outputs[1] or zero_point is not dynamic.outputs[2]:
        return False
    node.outputs[0].replace_all_uses_with(dynamic.outputs[0])
    graph.remove(node, safe=True)
    return True


def _store_transposed(graph: ir.Graph, node: ir.Node) -> bool:
    """``Transpose(DequantizeLinear(w))`` with a matrix ``w``: store ``w`` transposed."""
    dequantize = _producer(node.inputs[0] if node.inputs else None, "DequantizeLinear")
    if node.op_type != "Transpose" or not _stored(dequantize):
        return False
    assert dequantize is not None
    weight, scale, zero_point = (_array(value) for value in _three(dequantize))
    if weight is None or scale is None or weight.ndim != 2 or len(dequantize.outputs[0].uses()) > 1:
        return False
    if list(node.attributes["perm"].as_ints()) != [1, 0]:
        return False
    attributes = {"axis": 1 - _int(dequantize, "axis", 1) % 2}
    if _int(dequantize, "block_size", 0):
        attributes["block_size"] = _int(dequantize, "block_size", 0)
    values = [_turned(graph, dequantize, i) for i, a in enumerate((weight, scale, zero_point))]
    _replace(node, _node(graph, node, "DequantizeLinear", values, **attributes))
    return True


def _three(node: ir.Node) -> tuple[ir.Value | None, ...]:
    inputs = list(node.inputs)
    return tuple(inputs + [None] * (3 - len(inputs)))


def _turned(graph: ir.Graph, node: ir.Node, index: int) -> ir.Value | None:
    """An input of a dequantize, matrices transposed."""
    value = _three(node)[index]
    array = _array(value)
    if value is None or array is None or array.ndim != 2:
        return value
    return _constant(graph, f"{value.name}_t", np.ascontiguousarray(array.T))


def _multiply_integers(graph: ir.Graph, node: ir.Node) -> bool:
    """``DQ(Q(x, s, z)) @ DQ(w, t)`` with computed ``s``: ``(q - z) @ w * (s * t)``, in int32."""
    if node.op_type not in ("MatMul", "Gemm") or not _is_plain(node):
        return False
    left = _producer(node.inputs[0], "DequantizeLinear")
    right = _producer(node.inputs[1], "DequantizeLinear")
    if left is None or right is None or not _stored(right) or _stored(left):
        return False
    if _array(left.inputs[1]) is not None:
        return False
    weight = _integer_factor(graph, node, right)
    if weight is None:
        return False
    steps, scale, zero_point = _three(left)
    total = _node(graph, node, "MatMulInteger", [steps, weight, zero_point])
    as_float = _node(graph, node, "Cast", [total], to=int(ir.DataType.FLOAT))
    scales = _node(graph, node, "Mul", [scale, right.inputs[1]])
    result = _node(graph, node, "Mul", [as_float, scales])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        result = _node(graph, node, "Add", [result, bias])
    _replace(node, result)
    return True


def _store_bias_in_sums(graph: ir.Graph, node: ir.Node) -> bool:
    """The bias of ``DQ(q, s, z) @ DQ(w, t)`` in the unit of its int32 sums, ``s * t``.

    ONNX Runtime does so itself where the result is quantized too; where it is float, it has its
    product in integers only with such a bias. Symmetric int8 is left alone: TensorRT wants biases
    in float.
    """
    product = node if node.op_type == "Gemm" else _matrix_product(node)
    if product is None or not _is_plain(product):
        return False
    left = _producer(product.inputs[0], "DequantizeLinear")
    right = _producer(product.inputs[1], "DequantizeLinear")
    if left is None or _stored(left) or not _stored(right):
        return False
    assert right is not None
    scale, zero_point, scales = (
        _array(v) for v in (left.inputs[1], _three(left)[2], right.inputs[1])
    )
    if scale is None or scales is None or scale.size != 1 or scales.ndim != 1:
        return False
    if zero_point is None or zero_point.dtype != np.uint8:
        return False
    return _scale_bias(graph, node, scales * scale.reshape(()))


def _matrix_product(node: ir.Node) -> ir.Node | None:
    if node.op_type != "Add":
        return None
    found = [p for value in node.inputs if (p := _producer(value, "MatMul")) is not None]
    return found[0] if len(found) == 1 and len(found[0].outputs[0].uses()) == 1 else None


def _scale_bias(graph: ir.Graph, node: ir.Node, unit: np.ndarray) -> bool:
    for index, value in enumerate(node.inputs):
        bias = _array(value)
        if value is None or bias is None or bias.shape != unit.shape or not value.is_initializer():
            continue
        steps = np.round(bias.astype(np.float64) / unit)
        if np.abs(steps).max(initial=0) >= 2**31:
            return False
        stored = _constant(graph, f"{value.name}_int32", steps.astype(np.int32))
        units = _constant(graph, f"{value.name}_unit", unit.astype(np.float32))
        zeros = _constant(graph, f"{value.name}_zero", np.zeros(unit.shape, np.int32))
        inputs: list[ir.Value | None] = [stored, units, zeros]
        node.replace_input_with(index, _node(graph, node, "DequantizeLinear", inputs, axis=0))
        return True
    return False


def _is_plain(node: ir.Node) -> bool:
    """A product without factors of its own (``alpha``, ``beta``) and without ``transA``."""
    factors = (node.attributes.get(name) for name in ("alpha", "beta"))
    return all(f is None or f.as_float() == 1.0 for f in factors) and not _int(node, "transA", 0)


def _integer_factor(graph: ir.Graph, node: ir.Node, right: ir.Node) -> ir.Value | None:
    """The stored weight as [K, N], if its scales belong to N and its zero points are 0."""
    weight, zero_point = _array(right.inputs[0]), _array(_three(right)[2])
    turned = bool(_int(node, "transB", 0))
    if weight is None or weight.ndim != 2 or weight.dtype != np.int8:
        return None
    if zero_point is not None and np.any(zero_point != 0):
        return None
    scale = _array(right.inputs[1])
    axis = _int(right, "axis", 1) % 2
    if scale is None or (scale.ndim == 1 and axis != (0 if turned else 1)) or scale.ndim > 1:
        return None
    if not turned:
        return right.inputs[0]
    return _turned(graph, right, 0)


def _look_up_integers(graph: ir.Graph, node: ir.Node) -> bool:
    """``Gather(DQ(w, s, z), i)`` along rows: ``(Gather(w, i) - z) * Gather(s, i)``."""
    if node.op_type != "Gather" or _int(node, "axis", 0) != 0:
        return False
    dequantize = _producer(node.inputs[0], "DequantizeLinear")
    if not _stored(dequantize):
        return False
    assert dequantize is not None
    table, scale, zero_point = _three(dequantize)
    numbers = _array(scale)
    if table is None or numbers is None or numbers.ndim != 1 or _int(dequantize, "axis", 1) != 0:
        return False
    rows = _node(graph, node, "Gather", [table, node.inputs[1]], axis=0)
    steps = _node(graph, node, "Cast", [rows], to=int(ir.DataType.FLOAT))
    zeros = _array(zero_point)
    if zeros is not None and np.any(zeros != 0):
        column = zeros.reshape(-1, 1).astype(np.float32)
        shift = _column(graph, node, f"{table.name}_zero_column", column)
        steps = _node(graph, node, "Sub", [steps, shift])
    scales = _column(graph, node, f"{table.name}_scale_column", numbers.reshape(-1, 1))
    _replace(node, _node(graph, node, "Mul", [steps, scales]))
    return True


def _column(graph: ir.Graph, node: ir.Node, name: str, column: np.ndarray) -> ir.Value:
    """The entries of a column for the rows that are looked up."""
    constant = _constant(graph, name, column)
    return _node(graph, node, "Gather", [constant, node.inputs[1]], axis=0)


def _store_four_bits(graph: ir.Graph, node: ir.Node) -> bool:
    """A grouped weight whose integers fit: store it in 4 bits."""
    if node.op_type != "DequantizeLinear" or not _int(node, "block_size", 0) or not _stored(node):
        return False
    weight, _, zero_point = _three(node)
    numbers = _array(weight)
    if numbers is None or numbers.dtype != np.int8 or numbers.min() < -8 or numbers.max() > 7:
        return False
    for index, value in ((0, weight), (2, zero_point)):
        array = _array(value)
        if value is not None and array is not None:
            packed = _constant(graph, f"{value.name}_int4", array.astype(ml_dtypes.int4))
            node.replace_input_with(index, packed)
    return True
