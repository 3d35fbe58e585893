"""What a quantizer may ask for: contradictions are found when they are written down."""

from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch.fx import Graph

from pt2q import (
    DerivedQuantizationSpec,
    FakeQuantize,
    FixedQParamsQuantizationSpec,
    HistogramObserver,
    MinMaxObserver,
    NoopObserver,
    PartialWrapper,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from pt2q.errors import SpecError
from pt2q.spec.constructor import accepted

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


def some_eps() -> float:
    return 0.5


def some_function(**arguments) -> MinMaxObserver:
    return MinMaxObserver(**arguments)


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
def test_a_per_channel_scheme_has_an_axis(scheme: torch.qscheme) -> None:
    def make(observer=PerChannelMinMaxObserver, **axis) -> QuantizationSpec:
        return QuantizationSpec(torch.int8, observer, -127, 127, scheme, **axis)

    for axis in (0, 1, -1):
        assert make(ch_axis=axis).ch_axis == axis
    assert make() == make(ch_axis=0)
    along_one = PerChannelMinMaxObserver.with_args(ch_axis=1)
    assert make(along_one).ch_axis == 1
    assert make(functools.partial(PerChannelMinMaxObserver, ch_axis=1)).ch_axis == 1
    assert make(along_one, ch_axis=2).ch_axis == 2


@pytest.mark.parametrize("scheme", [AFFINE, torch.per_tensor_symmetric])
def test_an_axis_means_nothing_beside_a_per_tensor_scheme(scheme: torch.qscheme) -> None:
    with_axis = QuantizationSpec(torch.int8, MinMaxObserver, -127, 127, scheme, ch_axis=0)
    without = QuantizationSpec(torch.int8, MinMaxObserver, -127, 127, scheme)
    assert with_axis == without and hash(with_axis) == hash(without)
    assert with_axis.ch_axis is None


def test_float32_with_a_placeholder_leaves_in_float() -> None:
    for observer in (PlaceholderObserver, PlaceholderObserver.with_args(eps=1.0), NoopObserver):
        spec = QuantizationSpec(
            torch.float32, observer, is_dynamic=False, ch_axis=0, qscheme=AFFINE, quant_min=0
        )
        assert spec.stays_in_float
    assert not QuantizationSpec(torch.int8, PlaceholderObserver).stays_in_float


def test_scheme_axis_and_time_may_be_left_out() -> None:
    spec = QuantizationSpec(dtype=torch.uint8, observer_or_fake_quant_ctr=MinMaxObserver)
    assert (spec.qscheme, spec.ch_axis, spec.is_dynamic) == (None, None, False)
    assert QuantizationSpec(torch.quint8, MinMaxObserver) == spec


@pytest.mark.parametrize(
    "make",
    [
        lambda: functools.partial(MinMaxObserver, eps=0.5),
        lambda: PartialWrapper(functools.partial(MinMaxObserver, eps=0.5)),
        lambda: MinMaxObserver.with_args(eps=0.5),
        lambda: functools.partial(MinMaxObserver, eps=torch.tensor([0.5])),
        lambda: MinMaxObserver.with_callable_args(eps=some_eps),
        lambda: functools.partial(functools.partial(FakeQuantize, observer=MinMaxObserver), eps=1),
        lambda: FakeQuantize.with_args(observer=functools.partial(MinMaxObserver, eps=0.5)),
        lambda: MinMaxObserver,
        lambda: some_function,
    ],
)
def test_constructors_of_equal_content_make_equal_specs(make) -> None:
    one, other = (QuantizationSpec(torch.int8, make(), -8, 7, AFFINE) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != QuantizationSpec(torch.int8, HistogramObserver, -8, 7, AFFINE)
    assert pickle.loads(pickle.dumps(one)) == one
    made = one.observer_or_fake_quant_ctr(dtype=torch.int8, quant_min=-8, quant_max=7)
    assert (made.quant_min, made.quant_max) == (-8, 7)


def test_constructors_of_other_content_differ() -> None:
    makers = [
        functools.partial(MinMaxObserver, eps=0.5),
        functools.partial(MinMaxObserver, eps=0.25),
        functools.partial(MinMaxObserver, eps=torch.tensor([0.5, 0.5])),
        functools.partial(HistogramObserver, eps=0.5),
        functools.partial(MinMaxObserver, eps=0.5, dtype=torch.uint8),
        MinMaxObserver.with_callable_args(eps=some_eps),
    ]
    specs = [QuantizationSpec(torch.int8, make) for make in makers]
    assert all(one != other for i, one in enumerate(specs) for other in specs[:i])


def test_computed_arguments_are_computed_for_each_observer() -> None:
    eps = iter([0.5, 0.25])
    make = MinMaxObserver.with_callable_args(eps=lambda: next(eps)).with_args(dtype=torch.uint8)
    assert [float(make().eps) for _ in range(2)] == [0.5, 0.25]
    assert float(make.with_args(eps=1.0)().eps) == 1.0


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
    with pytest.raises(SpecError, match="one scale needs a per-tensor qscheme"):
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
    channels = torch.per_channel_affine
    assert DerivedQuantizationSpec([node], derive, torch.int32, qscheme=channels).ch_axis == 0


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


def test_a_constructor_without_a_hash_is_told_what_it_takes() -> None:
    @dataclass
    class Factory:
        kind: str = "least and greatest"

        def __call__(self, dtype: torch.dtype, ch_axis: int) -> tuple[str, torch.dtype, int]:
            return self.kind, dtype, ch_axis

    factory, given = Factory(), {"dtype": torch.int8, "ch_axis": 1, "quant_min": 0}
    for constructor in (factory, functools.partial(factory)):
        assert accepted(constructor, given) == {"dtype": torch.int8, "ch_axis": 1}
