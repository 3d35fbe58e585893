"""Patterns are sought where they can be, and the program is the same, byte for byte."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from executorch.backends.xnnpack._passes.convert_to_sdpa import ConvertToSDPAPass
from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.deploy.executorch import lower, lowering
from pt2q.errors import LoweringError
from pt2q.quantizers import XNNPACKQuantizer


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q = self.project(x).view(1, 8, 2, 8).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=torch.zeros(8, 8))


class Enlarged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.conv(x), scale_factor=2, mode="bilinear")


@pytest.mark.parametrize(
    ("make", "shape", "quantized"), [(Attention, (1, 8, 16), True), (Enlarged, (1, 3, 8, 8), False)]
)
def test_the_same_program(
    make: type[nn.Module], shape: tuple[int, ...], quantized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape)
    model = torch.export.export(make().eval(), (x,))
    if quantized:
        prepared = prepare_pt2e(model, XNNPACKQuantizer())
        prepared(x)
        model = convert_pt2e(prepared)  # type: ignore[assignment]
    found = lower(model, (x,))
    monkeypatch.setattr(lowering, "sought_where_possible", nullcontext)
    assert found.buffer == lower(model, (x,)).buffer


def test_nothing_is_exported_to_be_sought_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("patterns were made")

    for module, name in ((bilinear_2d, "get_graphs_dict"), (sdpa, "get_graphs")):
        monkeypatch.setattr(module, name, fail)
    before, x = ConvertToSDPAPass.call, torch.randn(2, 8)
    lower(torch.export.export(nn.Linear(8, 4).eval(), (x,)), (x,))
    assert ConvertToSDPAPass.call is before
    with pytest.raises(LoweringError, match="ConvertToSDPAPass"):
        lower(torch.export.export(nn.Softmax(-1), (x,)), (x,))


def test_threads_take_turns_in_lowering() -> None:
    x = torch.randn(2, 8)
    model = torch.export.export(nn.Linear(8, 4).eval(), (x,))
    prepared = prepare_pt2e(model, XNNPACKQuantizer())
    prepared(x)
    converted, before = convert_pt2e(prepared), ConvertToSDPAPass.call
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(lower, converted, (x,), check=False) for _ in range(3)]
    assert len({program.result().buffer for program in found}) == 1
    assert ConvertToSDPAPass.call is before
