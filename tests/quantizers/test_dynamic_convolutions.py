"""Convolutions whose input is measured at run time, in XNNPACK."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.flow import imported
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

executorch = pytest.importorskip("pt2q.deploy.executorch")
pytest.importorskip("executorch")
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
STATIC = get_symmetric_quantization_config(is_per_channel=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.line = nn.Conv1d(8, 8, 3)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.grouped(self.first(x).relu()).relu()).relu()
        return self.last(self.line(self.depthwise(x).flatten(2)).mean(-1))


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3, 12, 12) * torch.tensor([0.05, 1.0, 20.0])[:, None, None, None]


@pytest.fixture(scope="module")
def done(images: Tensor) -> tuple[nn.Module, Any, Any]:
    quantizer, model = XNNPACKQuantizer().set_global(DYNAMIC), Net().eval()
    prepared = prepare_pt2e(torch.export.export(model, (images,)), quantizer)
    prepared(images)
    return model, convert_pt2e(prepared), quantizer.report()


def test_what_the_runtime_takes_is_quantized(done: tuple[nn.Module, Any, Any]) -> None:
    report = done[2]
    reasons = {row.module: row.reason.code for row in report.left_float if "conv" in row.operator}
    assert reasons == {"depthwise": "depthwise", "line": "dynamic-images-only"}
    assert {row.module for row in report.quantized} == {"first", "grouped", "up", "last"}


IMAGE, SIGNAL = torch.randn(1, 8, 6, 6), torch.randn(1, 8, 6)
LEFT: dict[str, tuple[nn.Module, Tensor, str]] = {
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), IMAGE, "depthwise"),
    "one channel": (nn.Conv2d(1, 8, 3), IMAGE[:, :1], "depthwise"),
    "one channel, transposed": (nn.ConvTranspose2d(1, 8, 3), IMAGE[:, :1], "depthwise"),
    "1-d": (nn.Conv1d(8, 8, 3), SIGNAL, "dynamic-images-only"),
    "1-d, transposed": (nn.ConvTranspose1d(8, 8, 3), SIGNAL, "dynamic-images-only"),
    "grouped, transposed": (nn.ConvTranspose2d(8, 8, 3, groups=2), IMAGE, "dynamic-images-only"),
}


@pytest.mark.parametrize(("layer", "x", "code"), LEFT.values(), ids=list(LEFT))
def test_what_it_does_not_take_is_quantized_as_the_advice_says(
    layer: nn.Module, x: Tensor, code: str
) -> None:
    quantizer = XNNPACKQuantizer(DYNAMIC)
    quantizer.annotate(imported(nn.Sequential(layer), x))
    (row,) = quantizer.report()
    assert row.reason.code == code and row.reason.advice == "give it a static configuration"
    quantizer = XNNPACKQuantizer(DYNAMIC).set_module_name("0", STATIC)
    quantizer.annotate(imported(nn.Sequential(layer), x))
    assert all(row.quantized for row in quantizer.report())


def test_there_is_no_way_out_in_three_dimensions() -> None:
    quantizer = XNNPACKQuantizer(DYNAMIC)
    quantizer.annotate(imported(nn.Conv3d(2, 2, 3), torch.randn(1, 2, 4, 4, 4)))
    (row,) = quantizer.report()
    assert row.reason.code == "no-convolution-kernel" and not row.reason.advice


def test_the_runtime_measures_each_image(done: tuple[nn.Module, Any, Any], images: Tensor) -> None:
    model, converted, _ = done
    program = executorch.lower(converted, (images,))
    (found,) = program.load()(images)
    assert program.delegation.quantized_left == ()
    for image, result in zip(images, found, strict=True):
        assert sqnr(model(image[None]), result[None]) > 28
    assert sqnr(model(images), found) > 28
    assert sqnr(converted(images), found) > 25
