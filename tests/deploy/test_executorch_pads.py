"""Padding behind quantized layers, read in float: the runtime takes the program and agrees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy.executorch import lower
from pt2q.quantizers import XNNPACKQuantizer

FRAME = [1, 1, 1, 1]
READ = {
    "alone": lambda y: F.pad(y, FRAME),
    "pooled": lambda y: F.max_pool2d(F.pad(y, FRAME), 3, 2),
    "twice": lambda y: torch.cat([F.gelu(F.pad(y, FRAME)), F.silu(F.pad(y, FRAME))], 1),
    "two readers": lambda y: (lambda p: F.gelu(p) * F.silu(p))(F.pad(y, FRAME)),
    "beside its input": lambda y: F.gelu(F.pad(y, FRAME))[..., 1:-1, 1:-1] * F.silu(y),
    "channels": lambda y: F.gelu(F.pad(y, [0, 0, 0, 0, 2, 0])),
    "ones": lambda y: F.gelu(F.pad(y, FRAME, value=1.0)),
    "mirrored": lambda y: F.gelu(F.pad(y, FRAME, mode="reflect")),
}


class Padded(nn.Module):
    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.read = nn.Conv2d(3, 8, 3), read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.conv(x))


@pytest.mark.parametrize("name", READ)
def test_padding_read_in_float_runs(name: str) -> None:
    torch.manual_seed(0)
    model, x = Padded(READ[name]).eval(), torch.randn(1, 3, 10, 10)
    prepared = prepare_pt2e(torch.export.export(model, (x,)), XNNPACKQuantizer())
    prepared(x)
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        (found,) = lower(converted, (x,)).load()(x)
        assert sqnr(converted(x), found) > 40
        assert sqnr(model(x), found) > 30
