"""Products with a stored ``[in, out]`` weight, as GPT-2's `Conv1D` has them, are linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    WeightQuantizer,
    X86InductorQuantizer,
)

pytestmark = pytest.mark.usefixtures("no_gradients")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Parameter(torch.randn(16, 24) / 4), nn.Parameter(torch.randn(24, 8))
        self.bias = nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, 16)
        hidden = torch.addmm(self.bias, flat, self.one).relu().view(*x.shape[:-1], 24)
        return hidden @ self.two


@pytest.mark.parametrize(
    "make",
    [
        X86InductorQuantizer,
        OnnxQDQQuantizer.onnxruntime,
        OnnxQDQQuantizer.openvino,
        OnnxQDQQuantizer.tensorrt,
        WeightQuantizer,
    ],
)
def test_they_are_quantized_everywhere(make: Callable[[], Any]) -> None:
    model, x = Block().eval(), torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    quantizer = make()
    prepared = prepare_pt2e(torch.export.export(model, (x,)), quantizer)
    prepared(x)
    converted = convert_pt2e(prepared)
    assert sqnr(model(x), converted(x)) > 28
    stored = [b for _, b in converted.named_buffers() if b.dtype == torch.int8 and b.dim() == 2]
    assert sum(b.numel() for b in stored) == 16 * 24 + 24 * 8, quantizer.report()
    assert not any(name == "one" or name == "two" for name, _ in converted.named_parameters())
