"""Rewrites of an exported ONNX graph that runtimes and file size gain from.

Each is a rule of `onnxscript.rewriter`: a pattern, a check, and a replacement of the same meaning.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript.rewriter import RewriteRuleSet

from pt2q.deploy.onnx.rewrites.biases import StoreAddedBias, StoreBias
from pt2q.deploy.onnx.rewrites.integer_products import MultiplyIntegers
from pt2q.deploy.onnx.rewrites.parameters import QuantizeOnce
from pt2q.deploy.onnx.rewrites.stored_weights import (
    LookUpIntegers,
    StoreFourBits,
    StoreTransposed,
)


def rewrite(model: ir.Model, *, four_bits: bool) -> None:
    """Apply the rewrites to a model in place.

    Args:
        model: as exported.
        four_bits: store grouped weights in 4 bits; the opset must have the type (21).
    """
    rules = [
        QuantizeOnce.rule(),
        StoreTransposed.rule(),
        MultiplyIntegers.rule("MatMul"),
        MultiplyIntegers.rule("Gemm"),
        MultiplyIntegers.rule("Gemm", with_bias=True),
        LookUpIntegers.rule(),
        StoreBias.rule(),
        StoreAddedBias.rule(),
    ]
    if four_bits:
        rules.append(StoreFourBits.rule())
    RewriteRuleSet(rules, commute=True).apply_to_model(model)
    RemoveUnusedNodesPass()(model)
    _forget_notes(model.graph)
    ShapeInferencePass()(model)


def _forget_notes(graph: ir.Graph) -> None:
    """Drop what the exporter and the rules note beside the graph.

    Types were taken over from torch, where computed parameters are float64 and int64. Notes on
    nodes hold stack traces with the paths of source files, and may outweigh the weights.
    """
    outputs = set(graph.outputs)
    for value in (*graph.inputs, *outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in outputs:
                value.type = None
                value.shape = None
