"""What need not be computed or copied in each call is not, and the numbers stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.lowering import quantized
from torch import Tensor, nn
from torch.fx.passes.infra.pass_base import PassResult

from pt2q.deploy.executorch import Program, lower, lowering
from pt2q.deploy.executorch.file_account import describe


class Positions(nn.Module):
    """Adds embedded positions, and a constant that an operator makes large."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(16, 8), nn.Linear(8, 8)
        self.register_buffer("numbers", torch.arange(16))
        self.row = nn.Parameter(torch.randn(1, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        known = self.table(self.numbers[:4]) + 1.0
        large = self.row.expand(400, 8).contiguous()
        return torch.atan2(self.linear(x), known), large * x.sum()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = self.project(x).view(1, 6, 2, 4).transpose(1, 2)
        return (q @ q.transpose(-1, -2)).softmax(-1) @ q, x.expand(30, 6, 8)


def portable(program: Program) -> dict[str, int]:
    return dict(program.delegation.portable)


def alike(one: Program, other: Program, x: Tensor) -> bool:
    pairs = zip(one.load()(x), other.load()(x), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_what_is_known_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    converted = quantized(Positions().eval(), (x,))
    found = lower(converted, (x,))
    monkeypatch.setattr(lowering, "store_known_parts", lambda model: False)
    before = lower(converted, (x,))
    assert alike(found, before, x)
    assert "aten.embedding.default" in portable(before)
    assert "aten.embedding.default" not in portable(found)
    # What would make the file larger by more than it takes away is computed as before.
    assert portable(found)["aten.expand_copy.default"] == 1
    assert len(found.buffer) < len(before.buffer) + 400
    assert "table.weight" in converted.state_dict()  # the model itself stays as it is


def test_expansions_that_expand_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8)
    converted = quantized(Attention().eval(), (x,))
    found = lower(converted, (x,))
    monkeypatch.setattr(
        lowering, "without_idle_expansions", lambda module: PassResult(module, False)
    )
    before = lower(converted, (x,))
    assert alike(found, before, x)
    assert portable(before)["aten.expand_copy.default"] == 5
    assert portable(found)["aten.expand_copy.default"] == 1  # the one that expands
    assert found.delegation.blobs < before.delegation.blobs


class Residual(nn.Module):
    """What is quantized is read by two operators in float, and by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return self.second(y), y.sigmoid() * y.exp()


def test_what_is_read_in_float_is_dequantized_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    converted = quantized(Residual().eval(), (x,))
    found = lower(converted, (x,))
    monkeypatch.setattr(lowering, "share_dequantizes", lambda model: False)
    before = lower(converted, (x,))
    assert alike(found, before, x)
    assert converts(before, tmp_path) - converts(found, tmp_path) == 1


def converts(program: Program, folder: Path) -> int:
    """How many numbers XNNPACK quantizes and dequantizes."""
    (method,) = describe(program.save(folder / "model.pte")).methods
    return dict(method.delegated)["Convert"]
