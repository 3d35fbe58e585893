"""All tables of this package by the runtime that they are for."""

from __future__ import annotations

from pt2q.quantizers.embedding import EmbeddingQuantizer
from pt2q.quantizers.onnx_qdq.onnxruntime import ONNXRUNTIME, OPENVINO
from pt2q.quantizers.onnx_qdq.tensorrt import TENSORRT
from pt2q.quantizers.weights.quantizer import WeightQuantizer
from pt2q.quantizers.x86_inductor.table import X86_INDUCTOR
from pt2q.quantizers.xnnpack.table import XNNPACK

TABLES = {
    table.runtime: table
    for table in (
        XNNPACK,
        X86_INDUCTOR,
        ONNXRUNTIME,
        OPENVINO,
        TENSORRT,
        WeightQuantizer.table,
        EmbeddingQuantizer.table,
    )
}
