"""Quantizers: what each backend runs quantized, and the tools to write more of them."""

from pt2q.quantizers.composable import ComposableQuantizer
from pt2q.quantizers.embedding import (
    EmbeddingQuantizer,
    get_embedding_operators_config,
    get_embedding_quantization_config,
    with_embeddings,
)
from pt2q.quantizers.onnx_qdq.configs import (
    get_onnxruntime_quantization_config,
    get_tensorrt_quantization_config,
)
from pt2q.quantizers.onnx_qdq.quantizer import OnnxQDQQuantizer
from pt2q.quantizers.state_quantizer import StateQuantizer
from pt2q.quantizers.toolkit.authoring import (
    Q_ANNOTATION_KEY,
    OperatorConfig,
    OperatorPatternType,
    WrapperModule,
    annotate_input_qspec_map,
    annotate_output_qspec,
    get_bias_qspec,
    get_input_act_qspec,
    get_module_name_filter,
    get_new_attr_name_with_prefix,
    get_output_act_qspec,
    get_weight_qspec,
    is_valid_annotation,
)
from pt2q.quantizers.toolkit.config import QuantizationConfig
from pt2q.quantizers.toolkit.engine.table_quantizer import TableQuantizer
from pt2q.quantizers.toolkit.reading.attention_masks import MaskFinder
from pt2q.quantizers.toolkit.reading.partitions import (
    find_sequential_partitions,
    get_equivalent_types,
    update_equivalent_types_dict,
)
from pt2q.quantizers.toolkit.reading.tensor_roles import Roles, roles_of
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.report.decision_report import Report
from pt2q.quantizers.toolkit.report.decisions import Row
from pt2q.quantizers.toolkit.selection.statements import Selection
from pt2q.quantizers.toolkit.table.backend_table import BackendTable
from pt2q.quantizers.toolkit.table.rule import Match, Rule, When
from pt2q.quantizers.weights.configs import (
    get_dynamic_activation_4bit_weight_config,
    get_float8_quantization_config,
    get_int16_activation_config,
    get_weight_only_quantization_config,
)
from pt2q.quantizers.weights.quantizer import WeightQuantizer
from pt2q.quantizers.weights.table import with_weights_alone
from pt2q.quantizers.x86_inductor.configs import (
    get_default_x86_inductor_quantization_config,
    get_x86_inductor_linear_dynamic_fp16_config,
)
from pt2q.quantizers.x86_inductor.quantizer import X86InductorQuantizer
from pt2q.quantizers.xnnpack.configs import get_symmetric_quantization_config
from pt2q.quantizers.xnnpack.quantizer import XNNPACKQuantizer

__all__ = [
    "Q_ANNOTATION_KEY",
    "BackendTable",
    "ComposableQuantizer",
    "EmbeddingQuantizer",
    "MaskFinder",
    "Match",
    "OnnxQDQQuantizer",
    "OperatorConfig",
    "OperatorPatternType",
    "QuantizationConfig",
    "Reason",
    "Report",
    "Roles",
    "Row",
    "Rule",
    "Selection",
    "StateQuantizer",
    "TableQuantizer",
    "WeightQuantizer",
    "When",
    "WrapperModule",
    "X86InductorQuantizer",
    "XNNPACKQuantizer",
    "annotate_input_qspec_map",
    "annotate_output_qspec",
    "find_sequential_partitions",
    "get_bias_qspec",
    "get_default_x86_inductor_quantization_config",
    "get_dynamic_activation_4bit_weight_config",
    "get_embedding_operators_config",
    "get_embedding_quantization_config",
    "get_equivalent_types",
    "get_float8_quantization_config",
    "get_input_act_qspec",
    "get_int16_activation_config",
    "get_module_name_filter",
    "get_new_attr_name_with_prefix",
    "get_onnxruntime_quantization_config",
    "get_output_act_qspec",
    "get_symmetric_quantization_config",
    "get_tensorrt_quantization_config",
    "get_weight_only_quantization_config",
    "get_weight_qspec",
    "get_x86_inductor_linear_dynamic_fp16_config",
    "is_valid_annotation",
    "roles_of",
    "update_equivalent_types_dict",
    "with_embeddings",
    "with_weights_alone",
]
