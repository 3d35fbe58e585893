"""Padding behind quantized layers, read in float: the runtime takes the program and agrees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.lowering import quantized
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy.executorch import lower
from pt2q.deploy.executorch.file_account import describe
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
    """Each way to read on its own input: they share nothing and are lowered once, which takes the
    time."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 8, 3) for _ in READ)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        each = zip(READ.values(), self.convs, inputs, strict=True)
        return tuple(read(conv(x)) for read, conv, x in each)


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """By name: in float, quantized in PyTorch, and in ExecuTorch."""
    torch.manual_seed(0)
    model, inputs = Padded().eval(), tuple(torch.randn(1, 3, 10, 10) for _ in READ)
    prepared = prepare_pt2e(torch.export.export(model, inputs), XNNPACKQuantizer())
    with torch.no_grad():
        prepared(*inputs)
        converted = convert_pt2e(prepared)
        found = lower(converted, inputs).load()(*inputs)
        columns = model(*inputs), converted(*inputs), found
    return dict(zip(READ, zip(*columns, strict=True), strict=True))


@pytest.mark.parametrize("name", READ)
def test_padding_read_in_float_runs(
    name: str, results: dict[str, tuple[Tensor, Tensor, Tensor]]
) -> None:
    expected, eager, found = results[name]
    assert sqnr(eager, found) > 40
    assert sqnr(expected, found) > 30


class Between(nn.Module):
    """A padding between two convolutions."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.first, self.second, self.value = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), value

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.pad(self.first(x), [0, 1, 2, 0], value=self.value))


@pytest.mark.parametrize(("value", "converts"), [(0.0, 2), (1.0, 4)])
def test_zeros_are_added_in_integers(value: float, converts: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Between(value).eval(), torch.randn(1, 3, 10, 10)
    converted = quantized(model, (x,))
    program = lower(converted, (x,))
    (method,) = describe(program.save(tmp_path / "model.pte")).methods
    assert dict(method.delegated)["Convert"] == converts
    (found,) = program.load()(x)
    assert sqnr(converted(x), found) > 40
    assert sqnr(model(x), found) > 30
