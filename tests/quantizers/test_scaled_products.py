"""Scaled products of constants are linear layers; for ONNX, added ones are taken in two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.results import assert_same
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.deploy import executorch
from pt2q.deploy import onnx as onnx_road
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)

MAKE: dict[str, Callable[[], Any]] = {
    "xnnpack": XNNPACKQuantizer,
    "dynamic": lambda: XNNPACKQuantizer(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    ),
    "x86": X86InductorQuantizer,
    "onnx": OnnxQDQQuantizer.onnxruntime,
    "tensorrt": OnnxQDQQuantizer.tensorrt,
    "weights": WeightQuantizer,
}
SCALES = [{"alpha": 0.25, "beta": 3.0}, {"alpha": 2}, {"beta": -0.5}, {"beta": 0}]
X = (torch.randn(6, 16, generator=torch.Generator().manual_seed(1)),)


class Scaled(nn.Module):
    def __init__(self, transposed: bool = False, **scales: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 16) if transposed else torch.randn(16, 8))
        self.bias, self.scales, self.transposed = nn.Parameter(torch.randn(8)), scales, transposed

    def forward(self, x: Tensor) -> Tensor:
        factor = self.weight.t() if self.transposed else self.weight
        return torch.addmm(self.bias, x, factor, **self.scales)


def quantized(model: nn.Module, quantizer: Any, inputs: tuple[Tensor, ...]) -> Any:
    """Converted; what is prepared computes what the model does."""
    with torch.no_grad():
        ready = prepare_pt2e(torch.export.export(model.eval(), inputs), quantizer)
        assert_same(ready(*inputs), model(*inputs), 1e-5)
        return convert_pt2e(ready)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_a_scaled_product_with_a_constant_is_a_linear_layer(
    name: str, scales: dict[str, float]
) -> None:
    model, quantizer = Scaled(**scales), MAKE[name]()
    done = quantized(model, quantizer, X)
    (row,) = quantizer.report()
    assert row.quantized and row.operator == "aten.linear.default"
    assert sqnr(model(*X), done(*X)) > 30
    assert [t.shape for t in done.state_dict().values() if t.dtype is torch.int8] == [(8, 16)]


def test_a_transposed_weight_is_scaled_too() -> None:
    model, quantizer = Scaled(transposed=True, alpha=0.5, beta=2), XNNPACKQuantizer()
    done = quantized(model, quantizer, X)
    assert all(row.quantized for row in quantizer.report())
    assert sqnr(model(*X), done(*X)) > 30


def test_what_is_no_linear_layer_stays() -> None:
    class Others(Scaled):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            by_none = torch.addmm(self.bias, x, self.weight, alpha=0)
            computed = torch.addmv(x[:, 0], x, self.weight[:, 0])
            return by_none, computed

    quantizer = X86InductorQuantizer()
    with pytest.warns(UserWarning):  # nothing is left to quantize
        quantized(Others(), quantizer, X)
    assert [row.reason.code for row in quantizer.report()] == ["needs-linear-layer"] * 2


class OtherBiases(Scaled):
    """A product with a constant, to which a computed row and two matrices are added."""

    def forward(self, x: Tensor) -> Tensor:
        found = torch.addmm(x[0, :8], x, self.weight, beta=2)
        found = found + torch.addmm(x[:, :8], x, self.weight, alpha=2)
        return found + torch.addmm(self.bias.expand(6, 8), x, self.weight, alpha=0.5, beta=-1)


@pytest.mark.parametrize("name", MAKE)
def test_what_is_added_to_a_product_with_a_constant_need_not_be_a_bias(name: str) -> None:
    model, quantizer = OtherBiases(), MAKE[name]()
    done = quantized(model, quantizer, X)
    linear = [row for row in quantizer.report() if row.operator == "aten.linear.default"]
    assert len(linear) == 3 and all(row.quantized for row in linear)
    assert not any("addmm" in row.operator for row in quantizer.report())
    assert sqnr(model(*X), done(*X)) > 27


def test_training_keeps_the_scales_beside_the_weight() -> None:
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    quantizer = XNNPACKQuantizer(config)
    with pytest.warns(UserWarning):  # nothing is left to quantize
        prepare_qat_pt2e(torch.export.export(Scaled(alpha=2).train(), X), quantizer)
    assert [row.reason.code for row in quantizer.report()] == ["scaled-product"]


class Scores(nn.Module):
    """Attention scores with a bias, between linear layers."""

    def __init__(self, **scales: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.last = (nn.Linear(8, 8) for _ in range(3))
        self.bias, self.scales = nn.Parameter(torch.randn(2, 8, 8)), scales

    def forward(self, x: Tensor) -> Tensor:
        key = self.key(x).transpose(1, 2)
        return self.last(torch.baddbmm(self.bias, self.query(x), key, **self.scales))


IMAGES = (torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(2)),)


@pytest.mark.parametrize("scales", [{}, {"beta": 0}, {"alpha": -0.25, "beta": 3.0}], ids=str)
@pytest.mark.parametrize("make", [OnnxQDQQuantizer.onnxruntime, OnnxQDQQuantizer.openvino])
def test_a_product_of_activations_and_its_addition_are_quantized(
    make: Callable[[], Any], scales: dict[str, float]
) -> None:
    model, quantizer = Scores(**scales), make()
    done = quantized(model, quantizer, IMAGES)
    found = [row.operator for row in quantizer.report() if row.quantized]
    assert "aten.matmul.default" in found and ("aten.add.Tensor" in found) == (
        scales != {"beta": 0}
    )
    assert found.count("aten.mul.Tensor") == ("alpha" in scales)
    assert sqnr(model(*IMAGES), done(*IMAGES)) > 25


def test_in_onnx_runtime(tmp_path: Path) -> None:
    scales = {"alpha": 0.25, "beta": 3.0}
    for model, inputs in ((Scaled(**scales), X), (Scores(**scales), IMAGES), (OtherBiases(), X)):
        done = quantized(model, OnnxQDQQuantizer.onnxruntime(), inputs)
        path = onnx_road.export(done, inputs, tmp_path / "m.onnx").path
        (found,) = onnx_road.load(path)(*inputs)
        assert sqnr(model(*inputs), found) > 25


@pytest.mark.parametrize("name", ["xnnpack", "dynamic"])
def test_in_executorch(name: str) -> None:
    model = Scaled(alpha=0.25, beta=3.0)
    program = executorch.lower(quantized(model, MAKE[name](), X), X)
    assert not program.delegation.quantized_left
    (found,) = program.load()(*X)
    assert sqnr(model(*X), found) > 30
