"""Products that stay in float say why by where their factors come from, and the way out works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.flow import imported
from torch import Tensor, nn

from pt2q.quantizers import (
    OnnxQDQQuantizer,
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from pt2q.quantizers.toolkit.reasons import REASONS

pytestmark = pytest.mark.usefixtures("no_gradients")

MAKE: dict[str, Callable[[], Any]] = {
    "xnnpack": XNNPACKQuantizer,
    "x86": X86InductorQuantizer,
    "onnx": OnnxQDQQuantizer.onnxruntime,
    "tensorrt": OnnxQDQQuantizer.tensorrt,
    "weights": WeightQuantizer,
}
SHAPES = {
    "addmm": ((4, 8), (4, 16), (16, 8)),
    "addmv": ((4,), (4, 16), (16,)),
    "addbmm": ((4, 8), (2, 4, 16), (2, 16, 8)),
    "baddbmm": ((2, 4, 8), (2, 4, 16), (2, 16, 8)),
}
PLAIN = ("bmm", "matmul")
SHAPES |= dict.fromkeys(PLAIN, SHAPES["baddbmm"])
SCALED = {"alpha": 0.25, "beta": 3.0}
ADDED = ("baddbmm", "addbmm", "addmv")
WITH_ADDITION = ("addmm", *ADDED)
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


class Product(nn.Module):
    """A function of a constant, and of two tensors that linear layers give, or one and a constant.

    Linear layers stand around it, so that both its neighbours are quantized.
    """

    def __init__(self, kind: str, constant: bool, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        bias, first, second = SHAPES[kind]
        self.bias, self.weight = nn.Parameter(torch.randn(bias)), nn.Parameter(torch.randn(second))
        self.one, self.two = (nn.Linear(shape[-1], shape[-1]) for shape in (first, second))
        self.last = nn.Linear(bias[-1], 4)
        self.constant, self.product = constant, forward

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        factor = self.weight if self.constant else self.two(y)
        return self.last(self.product(self.bias, self.one(x), factor))


def rows(quantizer: Any, kind: str, constant: bool, forward: Forward) -> list[Any]:
    """The report's rows but for the layers around the product."""
    inputs = tuple(torch.randn(shape) for shape in SHAPES[kind][1:])
    quantizer.annotate(
        quantizer.transform_for_annotation(imported(Product(kind, constant, forward), *inputs))
    )
    around = ("one", "two", "last")
    return [row for row in quantizer.report() if row.module not in around]


def found(quantizer: Any, kind: str, constant: bool, **scales: float) -> str | None:
    """The code of the reason, or None where the product is quantized."""
    added = kind not in PLAIN
    product = lambda *t: getattr(torch, kind)(*t[0 if added else 1 :], **scales)  # noqa: E731
    (row,) = rows(quantizer, kind, constant, product)
    return None if row.reason is None else row.reason.code


CASES = [
    *(("xnnpack", kind, False, {}, "product-in-float") for kind in WITH_ADDITION),
    *(("xnnpack", kind, True, {}, "constant-factor") for kind in ADDED),
    ("xnnpack", "addmm", False, SCALED, "product-in-float"),
    *(("x86", kind, False, {}, "product-in-float") for kind in WITH_ADDITION),
    *(("x86", kind, True, SCALED, "needs-linear-layer") for kind in ADDED),
    ("x86", "addmm", False, SCALED, "product-in-float"),
    *(("weights", kind, True, SCALED, "constant-factor") for kind in ADDED),
    *(("weights", kind, False, {}, "no-weight") for kind in WITH_ADDITION),
    *(("onnx", kind, True, SCALED, "constant-factor") for kind in ADDED),
    *(("onnx", kind, False, {}, "product-with-addition") for kind in ADDED[1:]),
    *(("onnx", kind, False, SCALED, "scaled-product") for kind in ADDED[1:]),
    *(("tensorrt", kind, True, SCALED, "constant-factor") for kind in ADDED),
    *(("tensorrt", kind, False, {}, "no-int8-kernel") for kind in ADDED[1:]),
    ("x86", "bmm", True, {}, "needs-linear-layer"),
    ("x86", "matmul", True, {}, "needs-linear-layer"),
    ("x86", "bmm", False, {}, "product-in-float"),
    ("xnnpack", "bmm", True, {}, "constant-factor"),
    ("xnnpack", "matmul", True, {}, "constant-factor"),
    ("xnnpack", "bmm", False, {}, "product-in-float"),
    ("xnnpack", "matmul", False, {}, "computed-factors"),
]


@pytest.mark.parametrize(("name", "kind", "constant", "scales", "code"), CASES)
def test_the_reason_is_that_of_its_factors(
    name: str, kind: str, constant: bool, scales: dict[str, float], code: str
) -> None:
    assert found(MAKE[name](), kind, constant, **scales) == code


def test_a_product_of_activations_is_not_taken_for_a_computed_weight() -> None:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    assert found(XNNPACKQuantizer(config), "addmm", False) == "product-in-float"


def as_linear_layers(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    parts = [nn.functional.linear(x[i], weight[i].t()) for i in range(2)]
    return torch.stack(parts) + bias


@pytest.mark.parametrize("name", MAKE)
def test_a_constant_factor_is_quantized_as_the_advice_says(name: str) -> None:
    assert "a linear layer for each matrix" in REASONS["constant-factor"].advice
    assert REASONS["needs-linear-layer"].advice == REASONS["constant-factor"].advice
    found = rows(MAKE[name](), "baddbmm", True, as_linear_layers)
    linear = [row for row in found if "linear" in row.operator]
    assert len(linear) == 2 and all(row.quantized for row in linear)


def test_a_product_with_an_addition_is_quantized_as_the_advice_says() -> None:
    assert REASONS["product-with-addition"].advice == "write it as matmul and an addition"
    found = rows(MAKE["onnx"](), "addmv", False, lambda b, x, y: torch.matmul(x, y) + b)
    assert next(row for row in found if "matmul" in row.operator).quantized
