"""What a quantizer may ask for: contradictions are found when they are written down."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph

from pt2q import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from pt2q.errors import SpecError

AFFINE = torch.per_tensor_affine
PER_CHANNEL = [
    torch.per_channel_affine,
    torch.per_channel_symmetric,
    torch.per_channel_affine_float_qparams,
]
EVERYTHING = {
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
    torch.int16: (-32768, 32767),
    torch.uint16: (0, 65535),
    torch.int32: (-(2**31), 2**31 - 1),
}


@pytest.fixture
def node():
    return Graph().placeholder("x")


@pytest.mark.parametrize("dtype", EVERYTHING)
def test_the_range_must_lie_inside_the_dtype(dtype: torch.dtype) -> None:
    low, high = EVERYTHING[dtype]
    QuantizationSpec(dtype, MinMaxObserver, low, high, AFFINE)
    QuantizationSpec(dtype, MinMaxObserver, low, low + 1)
    QuantizationSpec(dtype, MinMaxObserver)
    for wrong in [(low - 1, high), (low, high + 1)]:
        with pytest.raises(SpecError, match="does not fit"):
            QuantizationSpec(dtype, MinMaxObserver, *wrong)
    for empty in [(low, low), (high, low)]:
        with pytest.raises(SpecError, match="must be below"):
            QuantizationSpec(dtype, MinMaxObserver, *empty)


def test_both_ends_of_the_range_or_none() -> None:
    with pytest.raises(SpecError, match="both quant_min and quant_max"):
        QuantizationSpec(torch.int8, MinMaxObserver, quant_min=-128)
    with pytest.raises(SpecError, match="both quant_min and quant_max"):
        QuantizationSpec(torch.int8, MinMaxObserver, quant_max=127)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_dtypes_that_nothing_is_quantized_to(dtype: torch.dtype) -> None:
    with pytest.raises(SpecError, match="cannot be quantized to"):
        QuantizationSpec(dtype, MinMaxObserver)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_narrow_floats_are_allowed(dtype: torch.dtype) -> None:
    assert QuantizationSpec(dtype, PlaceholderObserver).dtype is dtype


@pytest.mark.parametrize("scheme", PER_CHANNEL)
def test_per_channel_needs_its_axis(scheme: torch.qscheme) -> None:
    for axis in (0, 1, -1):
        spec = QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -127, 127, scheme, axis)
        assert spec.ch_axis == axis
    with pytest.raises(SpecError, match="needs ch_axis"):
        QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -127, 127, scheme)


@pytest.mark.parametrize("scheme", [AFFINE, torch.per_tensor_symmetric, None])
def test_an_axis_needs_per_channel(scheme: torch.qscheme | None) -> None:
    with pytest.raises(SpecError, match="needs a per-channel qscheme"):
        QuantizationSpec(torch.int8, MinMaxObserver, -127, 127, scheme, ch_axis=0)


def test_fixed_parameters_are_checked() -> None:
    spec = FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0, 0, 255, AFFINE)
    assert (spec.scale, spec.zero_point) == (1 / 256, 0)
    FixedQParamsQuantizationSpec(torch.int16, 1.0, -32768)
    for zero_point in (-1, 256):
        with pytest.raises(SpecError, match="zero_point"):
            FixedQParamsQuantizationSpec(torch.uint8, 1.0, zero_point)
    with pytest.raises(SpecError, match=r"zero_point 5 is outside \[0, 4\]"):
        FixedQParamsQuantizationSpec(torch.uint8, 1.0, 5, 0, 4)
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SpecError, match="finite and positive"):
            FixedQParamsQuantizationSpec(torch.uint8, scale, 0)
    with pytest.raises(SpecError, match="does not fit"):
        FixedQParamsQuantizationSpec(torch.uint8, 1.0, 0, -1, 255)
    with pytest.raises(SpecError, match="needs ch_axis"):
        FixedQParamsQuantizationSpec(torch.int8, 1.0, 0, qscheme=torch.per_channel_affine)


def test_derived_specs_are_checked(node) -> None:
    def derive(observers):
        return torch.ones(1), torch.zeros(1, dtype=torch.int64)

    spec = DerivedQuantizationSpec([node], derive, torch.int32, -8, 7, AFFINE)
    assert spec.derived_from == (node,)
    assert hash(spec) == hash(DerivedQuantizationSpec((node,), derive, torch.int32, -8, 7, AFFINE))
    with pytest.raises(SpecError, match="names no tensor"):
        DerivedQuantizationSpec([], derive, torch.int32)
    with pytest.raises(SpecError, match="must be below"):
        DerivedQuantizationSpec([node], derive, torch.int32, 7, 7)
    with pytest.raises(SpecError, match="needs ch_axis"):
        DerivedQuantizationSpec([node], derive, torch.int32, qscheme=torch.per_channel_affine)


def test_equal_specs_are_equal_and_hash_alike(node) -> None:
    def make(eps: float) -> QuantizationSpec:
        constructor = HistogramObserver.with_args(eps=eps, bins=512)
        return QuantizationSpec(torch.int8, constructor, -128, 127, AFFINE)

    assert make(0.5) == make(0.5)
    assert hash(make(0.5)) == hash(make(0.5))
    assert make(0.5) != make(0.25)
    assert len({make(0.5), make(0.5), make(0.25)}) == 2
    fixed = {FixedQParamsQuantizationSpec(torch.uint8, 0.5, 0) for _ in range(2)}
    assert len(fixed) == 1
    assert SharedQuantizationSpec(node) == SharedQuantizationSpec(node)
    assert SharedQuantizationSpec((node, node)) != SharedQuantizationSpec(node)


def test_with_args_is_a_value() -> None:
    one = MinMaxObserver.with_args(eps=1.0).with_args(quant_min=0)
    other = MinMaxObserver.with_args(quant_min=0, eps=1.0)
    assert one == other
    assert hash(one) == hash(other)
    assert one.with_args(eps=2.0) != other
    assert one != HistogramObserver.with_args(quant_min=0, eps=1.0)
    made = one(dtype=torch.int8, quant_max=7, quant_min=-8)
    assert (made.quant_min, made.quant_max, made.eps) == (-8, 7, 1.0)


def test_specs_are_frozen() -> None:
    spec = QuantizationSpec(torch.int8, MinMaxObserver)
    with pytest.raises(AttributeError):
        spec.dtype = torch.uint8  # type: ignore[misc]


def test_annotations_start_empty_and_apart() -> None:
    one, other = QuantizationAnnotation(), QuantizationAnnotation()
    assert one.input_qspec_map == {} and one.output_qspec is None
    assert one.allow_implicit_sharing
    assert one.input_qspec_map is not other.input_qspec_map


def test_a_quantizer_must_annotate_and_validate() -> None:
    class Half(Quantizer):
        def annotate(self, model):
            return model

    with pytest.raises(TypeError, match="validate"):
        Half()  # type: ignore[abstract]
