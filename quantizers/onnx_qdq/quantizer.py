"""`OnnxQDQQuantizer`: where runtimes that read ONNX want quantizes and dequantizes."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from pt2q.passes import SplitProducts
from pt2q.quantizers.onnx_qdq.configs import (
    get_onnxruntime_quantization_config,
    get_tensorrt_quantization_config,
)
from pt2q.quantizers.onnx_qdq.onnxruntime import ONNXRUNTIME
from pt2q.quantizers.onnx_qdq.openvino import OPENVINO
from pt2q.quantizers.onnx_qdq.shared_rows import OnnxTable
from pt2q.quantizers.onnx_qdq.tensorrt import TENSORRT
from pt2q.quantizers.toolkit.config import QuantizationConfig
from pt2q.quantizers.toolkit.engine.decompositions import Decompositions
from pt2q.quantizers.toolkit.engine.table_quantizer import TableQuantizer
from pt2q.quantizers.toolkit.reading.fixed_ranges import keep_inside_fixed_ranges
from pt2q.spec import EdgeOrNode


class OnnxQDQQuantizer(TableQuantizer):
    """Quantizes for runtimes that read ONNX; see `pt2q.deploy.onnx`.

    Take a preset::

        quantizer = OnnxQDQQuantizer.onnxruntime()
        quantizer = OnnxQDQQuantizer.tensorrt().set_module_name("head", None)

    Args:
        table: the runtime's: `ONNXRUNTIME`, `OPENVINO` or `TENSORRT`.
        default: how to quantize; None takes the runtime's configuration.
    """

    # These runtimes multiply two activations in integers.
    decompositions = Decompositions(attention=True)

    def __init__(
        self, table: OnnxTable = ONNXRUNTIME, default: QuantizationConfig | None = None
    ) -> None:
        self.table: OnnxTable = table
        super().__init__(default)

    @classmethod
    def onnxruntime(
        cls, *, is_qat: bool = False, is_dynamic: bool = False, reduce_range: bool = False
    ) -> OnnxQDQQuantizer:
        """For ONNX Runtime on CPUs; the arguments are `get_onnxruntime_quantization_config`'s."""
        return cls(
            ONNXRUNTIME, get_onnxruntime_quantization_config(is_qat, is_dynamic, reduce_range)
        )

    @classmethod
    def openvino(cls, *, is_qat: bool = False) -> OnnxQDQQuantizer:
        """For OpenVINO, which fuses what ONNX Runtime does."""
        return cls(OPENVINO, get_onnxruntime_quantization_config(is_qat))

    @classmethod
    def tensorrt(cls, *, is_qat: bool = False) -> OnnxQDQQuantizer:
        """For TensorRT: symmetric int8, zero points 0, biases in float."""
        return cls(TENSORRT, get_tensorrt_quantization_config(is_qat))

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """As for every table; products that are added to are taken in two parts, if not dynamic."""
        is_static = any(not config.is_dynamic for config in self.selection.configs())
        if is_static:
            split = SplitProducts(self.selection.stated_operators())
            if split(model):
                model.recompile()
        return super().transform_for_annotation(model)

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]
    ) -> None:
        """Let the grids of what follows a relu end with it: ONNX Runtime then leaves it out."""
        if self.table.leaves_out_relu:
            keep_inside_fixed_ranges(edge_or_node_to_obs_or_fq)
