"""The two stacks that are measured beside each other, each with its XNNPACK quantizer."""

from __future__ import annotations

from typing import Any

from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
from torchao.quantization.pt2e import quantize_pt2e as peer_flow

import pt2q
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config


class Ours:
    """pt2q: int8 with one weight scale per channel.

    Args:
        is_qat: prepare for training.
        fast: train with the batch norm that undoes the scaling, as is the default.
    """

    def __init__(self, is_qat: bool = False, fast: bool = True) -> None:
        self.name = "pt2q" if fast else "pt2q plain"
        self.is_qat, self.fast = is_qat, fast

    def prepare(self, module: Any) -> Any:
        config = get_symmetric_quantization_config(is_per_channel=True, is_qat=self.is_qat)
        quantizer = XNNPACKQuantizer().set_global(config)
        if not self.is_qat:
            return pt2q.prepare_pt2e(module, quantizer)
        return pt2q.prepare_qat_pt2e(module, quantizer, fast=self.fast)

    def train(self, prepared: Any) -> Any:
        return prepared.train()

    def convert(self, prepared: Any) -> Any:
        return pt2q.convert_pt2e(prepared)


class Peer:
    """torchao's flow with ExecuTorch's quantizer, in the same setting.

    Args:
        is_qat: prepare for training.
    """

    name = "peer"

    def __init__(self, is_qat: bool = False) -> None:
        self.is_qat = is_qat

    def prepare(self, module: Any) -> Any:
        config = xnnpack_quantizer.get_symmetric_quantization_config(
            is_per_channel=True, is_qat=self.is_qat
        )
        quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(config)
        if not self.is_qat:
            return peer_flow.prepare_pt2e(module, quantizer)
        return peer_flow.prepare_qat_pt2e(module, quantizer)

    def train(self, prepared: Any) -> Any:
        return move_exported_model_to_train(prepared)

    def convert(self, prepared: Any) -> Any:
        model = move_exported_model_to_eval(prepared) if self.is_qat else prepared
        return peer_flow.convert_pt2e(model)
