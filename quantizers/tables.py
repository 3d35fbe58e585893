"""All tables of this package by the runtime that they are for."""

from __future__ import annotations

from collections.abc import Mapping

from pt2q.quantizers.embedding import EMBEDDINGS
from pt2q.quantizers.onnx_qdq.onnxruntime import ONNXRUNTIME
from pt2q.quantizers.onnx_qdq.openvino import OPENVINO
from pt2q.quantizers.onnx_qdq.tensorrt import TENSORRT
from pt2q.quantizers.toolkit.table.backend_table import BackendTable
from pt2q.quantizers.weights.table import WEIGHTS
from pt2q.quantizers.x86_inductor.table import X86_INDUCTOR
from pt2q.quantizers.xnnpack.table import XNNPACK

TABLES: Mapping[str, BackendTable] = {
    table.runtime: table
    for table in (XNNPACK, X86_INDUCTOR, ONNXRUNTIME, OPENVINO, TENSORRT, WEIGHTS, EMBEDDINGS)
}
