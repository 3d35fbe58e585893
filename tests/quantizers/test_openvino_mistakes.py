"""What OpenVINO gets wrong stays in float: its figures are those of the converted model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.applied_functions import Apply
from torch import nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy import onnx as onnx_road
from pt2q.deploy.onnx.openvino_session import OpenVinoSession
from pt2q.quantizers import OnnxQDQQuantizer, Report

pytest.importorskip("openvino")


def linear(inputs: int = 16, outputs: int = 16) -> nn.Linear:
    return nn.Linear(inputs, outputs)


CASES: dict[str, tuple[Callable[..., Any], tuple[nn.Module, ...], tuple[int, ...], str]] = {
    "amax": (
        lambda m, x: m[1](m[0](x).view(2, 4, 16).amax(1)), (linear(), linear()), (8, 16), "extreme"
    ),
    "max": (
        lambda m, x: m[1](m[0](x).view(2, 4, 16).max(1).values), (linear(), linear()), (8, 16),
        "extreme",
    ),
    "amin of the input": (
        lambda m, x: m[1](m[0](x.amin(1) * 2)), (linear(), linear()), (2, 4, 16), "extreme"
    ),
    "amax, convolution": (
        lambda m, x: m[1](m[0](x).view(2, 4, 4, 4, 4).amax(1)), (linear(), nn.Conv2d(4, 4, 3)),
        (2, 4, 4, 16), "extreme",
    ),
    "stack": (
        lambda m, x: m[1](torch.stack([m[0](x), m[0](x * 2)], 1)), (linear(), linear()), (8, 16),
        "joined-rows",
    ),
    "roll": (
        lambda m, x: m[1](m[0](torch.roll(x, 1, 1))), (linear(), linear()), (2, 8, 16),
        "joined-rows",
    ),
    "rows in two parts": (
        lambda m, x: m[1](torch.cat([m[0](x)[:, 4:], m[0](x)[:, :4]], 1) * 0.5),
        (linear(), linear()), (2, 8, 16), "joined-rows",
    ),
}  # fmt: skip


def report_of(model: nn.Module, x: torch.Tensor, folder: Path) -> Report:
    """What was quantized; OpenVINO has to compute what the converted model does."""
    quantizer = OnnxQDQQuantizer.openvino()
    prepared = prepare_pt2e(torch.export.export(model, (x,)), quantizer)
    prepared(x)
    converted = convert_pt2e(prepared)
    onnx_road.export(converted, (x,), folder / "m.onnx")
    (found,) = OpenVinoSession(folder / "m.onnx", threads=1)(x)
    assert sqnr(converted(x), found) > 30
    return quantizer.report()


@pytest.mark.parametrize("name", CASES)
def test_it_stays_in_float(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    function, modules, shape, code = CASES[name]
    for module in modules:
        module.reset_parameters()  # type: ignore[operator]
    model, x = Apply(function, *modules).eval(), torch.randn(shape)
    rows = report_of(model, x, tmp_path).rows
    assert f"behind-{code}" in {r.reason.code for r in rows if r.reason}


def test_what_it_gets_right_is_quantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    modules = linear(), linear(32, 8)
    model = Apply(lambda m, x: m[1](F.relu(torch.cat([m[0](x), m[0](x * 2)], -1))), *modules).eval()
    x = torch.randn(2, 8, 16)
    rows = report_of(model, x, tmp_path).rows
    assert all(row.quantized for row in rows if "linear" in row.operator)
