"""Values inside a runtime beside float: those of the converted model, but for fused kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.comparing import Mlp, build, run
from support.flow import calibrated
from torch import nn
from torch.nn import functional as F

from pt2q import convert_pt2e, debug
from pt2q.deploy import executorch, onnx
from pt2q.errors import ComparisonError
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)


def test_values_inside_onnx_runtime(tmp_path: Path) -> None:
    _, program, inputs = build(Mlp, 8, 16)
    prepared = calibrated(program, OnnxQDQQuantizer(), *((x,) for x in inputs))
    converted = convert_pt2e(prepared)
    path = tmp_path / "model.onnx"
    onnx.export(converted, (inputs[0],), path)
    values = onnx.InnerValues(path)
    found = debug.compare_in_runtime(program, values, inputs)
    expected = debug.compare(program, converted, inputs)
    assert set(found.errors) >= {"x", "relu"} and found.batches == len(inputs)
    for name, error in found.errors.items():
        assert error.sqnr == pytest.approx(expected[name].total.sqnr, abs=1.5)
    kernels = values.kernels()
    assert any(name.startswith(("QLinear", "QGemm")) for name in kernels), kernels
    assert "relu" in str(found) and "total dB" in str(found)


class Mixed(nn.Module):
    """Two subgraphs of the delegate, with a portable kernel between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.norm, self.linear = nn.LayerNorm(288), nn.Linear(288, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.conv(x))).flatten(1)
        return F.relu(self.linear(self.norm(x)))


def test_values_inside_executorch() -> None:
    _, program, inputs = build(Mixed, 2, 3, 8, 8)
    converted = convert_pt2e(calibrated(program, XNNPACKQuantizer(), *((x,) for x in inputs)))
    values = executorch.InnerValues(converted, (inputs[0],))
    found = debug.compare_in_runtime(program, values, inputs)
    assert not found.unmatched and values.delegation.blobs == 2
    assert set(found.errors) == {"x", "relu", "layer_norm", "relu_1"}
    expected = debug.compare(program, converted, inputs)
    for name, error in found.errors.items():
        assert error.sqnr == pytest.approx(expected[name].total.sqnr, abs=1.5)
    # What is shown changes nothing: the plain program gives the same numbers.
    plain = executorch.lower(converted, (inputs[0],)).load()
    assert torch.equal(plain(inputs[1])[0], values(inputs[1])["relu_1"])
    assert json.loads(found.worst(1).to_json())["rows"][0]["total"]["sqnr"] < 45


def test_what_portable_kernels_compute_is_in_the_record() -> None:
    _, program, inputs = build(Mixed, 2, 3, 8, 8)
    values = executorch.InnerValues(program, (inputs[0],))
    (found,) = values(inputs[0]).items()
    assert found[0] == "layer_norm"
    expected = run(program.module(check_guards=False), inputs[0]).values["layer_norm"]
    assert torch.allclose(found[1], expected, atol=1e-5)


def test_what_reads_measured_ranges_is_shown() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    dynamic = get_symmetric_quantization_config(is_dynamic=True)
    quantizer = XNNPACKQuantizer().set_global(dynamic)
    converted = convert_pt2e(calibrated(program, quantizer, (inputs[0],)))
    values = executorch.InnerValues(converted, (inputs[0],))
    found = debug.compare_in_runtime(program, values, inputs)
    assert found.errors["relu"].sqnr > 35 and found.errors["x"].is_exact


def test_values_without_a_counterpart_are_listed() -> None:
    _, program, inputs = build(Mlp, 8, 16)

    def relu(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"relu": torch.zeros(8, 16), "other": x}

    assert debug.compare_in_runtime(program, relu, inputs).unmatched == ("other",)
    with pytest.raises(ComparisonError, match="no value"):
        debug.compare_in_runtime(program, lambda x: {"relu": torch.zeros(3)}, inputs)
