"""Ranges of integers that cannot hold what they are for are refused where they are given."""

from __future__ import annotations

import pytest
import torch
from support.small_quantizers import FunctionQuantizer
from torch import nn
from torch.fx import Node

import pt2q
from pt2q import (
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
)
from pt2q.errors import AnnotationError, SpecError
from pt2q.observers import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

ONE_SIDED = [(0, 127), (-128, 0), (5, 100), (-100, -5)]


@pytest.mark.parametrize("bounds", ONE_SIDED)
@pytest.mark.parametrize("scheme", [torch.per_tensor_symmetric, torch.per_channel_symmetric])
def test_symmetric_schemes_of_signed_integers_need_both_signs(
    bounds: tuple[int, int], scheme: torch.qscheme
) -> None:
    with pytest.raises(SpecError, match="holds no integers on one side"):
        QuantizationSpec(torch.int8, MinMaxObserver, *bounds, scheme)
    QuantizationSpec(torch.int8, MinMaxObserver, *bounds, torch.per_tensor_affine)
    QuantizationSpec(torch.uint8, MinMaxObserver, 0, 127, torch.per_tensor_symmetric)
    observer = (
        HistogramObserver if scheme is torch.per_tensor_symmetric else PerChannelMinMaxObserver
    )
    with pytest.raises(SpecError, match="holds no integers on one side"):
        observer(dtype=torch.int8, quant_min=bounds[0], quant_max=bounds[1], qscheme=scheme)


def test_configurations_refuse_them_too() -> None:
    with pytest.raises(SpecError, match=r"\[0, 127\]"):
        get_symmetric_quantization_config(weight_qmin=0, weight_qmax=127)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(128, 255, torch.uint8), (5, 100, torch.int8), (-100, -5, torch.int8)],
)
@pytest.mark.parametrize("sign", [-1.0, 0.0, 1.0])
def test_a_histogram_finds_parameters_for_a_range_without_0(
    low: int, high: int, dtype: torch.dtype, sign: float
) -> None:
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    x = x if sign == 0 else sign * x.abs()
    observer = HistogramObserver(
        dtype=dtype, quant_min=low, quant_max=high, qscheme=torch.per_tensor_affine
    )
    observer(x)
    scale, zero_point = (v.item() for v in observer.calculate_qparams())
    assert low <= zero_point <= high
    rounded = ((x / scale).round() + zero_point).clamp(low, high)
    assert pt2q.sqnr(x, (rounded - zero_point) * scale) > 30


def test_a_derived_zero_point_outside_of_its_range_is_named() -> None:
    act = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.target is not torch.ops.aten.relu.default:
            return None
        source = node.args[0]
        assert isinstance(source, Node)
        derived = DerivedQuantizationSpec(
            derived_from=((source, node),),
            derive_qparams_fn=lambda found: (torch.tensor([0.1]), torch.tensor([300])),
            dtype=torch.int8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
        )
        return QuantizationAnnotation({source: act}, derived)

    x = torch.randn(4, 4)
    prepared = prepare_pt2e(
        torch.export.export(nn.Sequential(nn.ReLU(), nn.Tanh()), (x,)), FunctionQuantizer(annotate)
    )
    prepared(x)
    with pytest.raises(AnnotationError, match=r"zero points in \[-128, 127\], found 300"):
        convert_pt2e(prepared)


@pytest.mark.usefixtures("no_gradients")
def test_an_operator_in_place_on_a_parameter_passes_verification() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.linear = nn.Parameter(torch.ones(4)), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.linear(x) * self.weight.mul_(2)
            return found

    x = torch.randn(2, 4)
    prepared = prepare_pt2e(torch.export.export(Growing().eval(), (x,)), XNNPACKQuantizer())
    prepared(x)
    converted = convert_pt2e(prepared)
    pt2q.verify(prepared)
    pt2q.verify(converted)
    before = converted.get_parameter("weight").clone()
    converted(x)
    assert torch.equal(converted.get_parameter("weight"), 2 * before)
