"""Values inside ONNX Runtime beside float: those of the converted model, but for fused kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.comparing import Mlp, build
from support.flow import calibrated

from pt2q import convert_pt2e, debug
from pt2q.deploy import onnx
from pt2q.errors import ComparisonError
from pt2q.quantizers import OnnxQDQQuantizer


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


def test_values_without_a_counterpart_are_listed() -> None:
    _, program, inputs = build(Mlp, 8, 16)

    def relu(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"relu": torch.zeros(8, 16), "other": x}

    assert debug.compare_in_runtime(program, relu, inputs).unmatched == ("other",)
    with pytest.raises(ComparisonError, match="no value"):
        debug.compare_in_runtime(program, lambda x: {"relu": torch.zeros(3)}, inputs)
