"""`X86InductorQuantizer`: quantize for Inductor on x86 processors."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule
from typing_extensions import Self

from pt2q.quantizers.toolkit.config import QuantizationConfig
from pt2q.quantizers.toolkit.engine.table_quantizer import TableQuantizer
from pt2q.quantizers.x86_inductor.table import HALF_LINEAR, X86_INDUCTOR


class X86InductorQuantizer(TableQuantizer):
    """Quantizes for Inductor on x86; see `pt2q.deploy.inductor`.

    ``X86InductorQuantizer()`` is ready to use: static uint8 activations and int8 weights with a
    scale per channel, in the whole model::

        quantizer = X86InductorQuantizer().set_module_name("head", None)
        prepared = prepare_pt2e(exported.module(), quantizer)
        print(quantizer.report())

    Args:
        default: taken in place of that configuration.
    """

    table = X86_INDUCTOR

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate as the table says, and weights in half precision where they are asked for."""
        weights = (config.weight for config in self.selection.configs())
        half = any(weight is not None and weight.dtype is torch.float16 for weight in weights)
        if half and HALF_LINEAR not in self.table.rules:
            self.add_rule(HALF_LINEAR)
        return super().annotate(model)

    def get_global_quantization_config(self) -> QuantizationConfig | None:
        """What `set_global` was given; None where it was not called."""
        return self.selection.everywhere

    def set_module_name_qconfig(
        self, module_name: str, quantization_config: QuantizationConfig | None
    ) -> Self:
        """`set_module_name` under the name it has in PyTorch's x86 quantizer."""
        return self.set_module_name(module_name, quantization_config)

    def set_module_type_qconfig(
        self, module_type: type | str, quantization_config: QuantizationConfig | None
    ) -> Self:
        """`set_module_type` under the name it has in PyTorch's x86 quantizer."""
        return self.set_module_type(module_type, quantization_config)

    def set_function_type_qconfig(
        self, function_type: Any, quantization_config: QuantizationConfig | None
    ) -> Self:
        """`set_operator_type` under the name it has in PyTorch's x86 quantizer."""
        return self.set_operator_type(function_type, quantization_config)
