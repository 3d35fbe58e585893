"""Quantizers: what each backend runs quantized, and the tools to write more of them."""

from pt2q.quantizers.composable import ComposableQuantizer
from pt2q.quantizers.embedding import EmbeddingQuantizer, get_embedding_quantization_config
from pt2q.quantizers.low_bit import (
    WeightQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_float8_quantization_config,
    get_int16_activation_config,
    get_weight_only_quantization_config,
)
from pt2q.quantizers.onnx_qdq import (
    OnnxQDQQuantizer,
    get_onnxruntime_quantization_config,
    get_tensorrt_quantization_config,
)
from pt2q.quantizers.state_quantizer import StateQuantizer
from pt2q.quantizers.toolkit.config import QuantizationConfig, get_symmetric_quantization_config
from pt2q.quantizers.toolkit.engine import TableQuantizer
from pt2q.quantizers.toolkit.masks import MaskFinder
from pt2q.quantizers.toolkit.partitions import find_sequential_partitions
from pt2q.quantizers.toolkit.report import Report, Row
from pt2q.quantizers.toolkit.roles import Roles, roles_of
from pt2q.quantizers.toolkit.rules import Kind, Match, Rule
from pt2q.quantizers.toolkit.selection import Selection
from pt2q.quantizers.x86_inductor import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)
from pt2q.quantizers.xnnpack import XNNPACKQuantizer

__all__ = [
    "ComposableQuantizer",
    "EmbeddingQuantizer",
    "Kind",
    "MaskFinder",
    "Match",
    "OnnxQDQQuantizer",
    "QuantizationConfig",
    "Report",
    "Roles",
    "Row",
    "Rule",
    "Selection",
    "StateQuantizer",
    "TableQuantizer",
    "WeightQuantizer",
    "X86InductorQuantizer",
    "XNNPACKQuantizer",
    "find_sequential_partitions",
    "get_default_x86_inductor_quantization_config",
    "get_dynamic_activation_4bit_weight_config",
    "get_embedding_quantization_config",
    "get_float8_quantization_config",
    "get_int16_activation_config",
    "get_onnxruntime_quantization_config",
    "get_symmetric_quantization_config",
    "get_tensorrt_quantization_config",
    "get_weight_only_quantization_config",
    "roles_of",
]
