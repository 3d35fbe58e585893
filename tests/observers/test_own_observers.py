"""Observers of one's own go all the way: prepare, calibrate, convert, copies, pickles, state."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from support.own_observers import (
    ActivationAndWeight,
    EveryBatch,
    Groups,
    Halving,
    Percentile,
    inputs,
    prepared_net,
    small_net,
)
from torch import Tensor, nn

import pt2q
from pt2q.errors import AnnotationError, NoDataError
from pt2q.ir import ops
from pt2q.ir.qparams import read_qparams

AFFINE = torch.per_tensor_affine


def make_percentile(**arguments) -> Percentile:
    return Percentile(0.99)


OWN = {
    "a class": Percentile,
    "with_args": Percentile.with_args(share=0.9),
    "a partial": functools.partial(Percentile, share=0.9),
    "a partial wrapped": pt2q.PartialWrapper(functools.partial(Percentile, 0.9)),
    "a function": make_percentile,
    "a function without arguments": lambda: Percentile(),
    "a function of some": lambda dtype, qscheme=None: EveryBatch(dtype=dtype, qscheme=AFFINE),
    "with computed arguments": Percentile.with_callable_args(share=lambda: 0.9),
    "for integers": EveryBatch,
    "for integers, with_args": EveryBatch.with_args(eps=1e-3),
}


def quantizer(constructor, **fields) -> ActivationAndWeight:
    spec = pt2q.QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=constructor,
        quant_min=-128,
        quant_max=127,
        **fields,
    )
    return ActivationAndWeight(spec, spec)


def quantized(name: str):
    prepared = prepared_net(quantizer(OWN[name], qscheme=AFFINE, ch_axis=0))
    prepared(inputs())
    return prepared, pt2q.convert_pt2e(prepared)


@pytest.mark.parametrize("name", OWN)
def test_any_constructor_makes_observers_that_calibrate_and_convert(name: str) -> None:
    prepared, converted = quantized(name)
    observers = [m for m in prepared.modules() if isinstance(m, (Percentile, EveryBatch))]
    # Input, two weights, between the layers on either side of the relu, and the output.
    assert len(observers) == 6
    assert {(o.dtype, o.quant_min, o.quant_max, o.qscheme) for o in observers} == {
        (torch.int8, -128, 127, AFFINE)
    }
    nodes = [n for n in converted.graph.nodes if ops.is_op(n, ops.DEQUANTIZE)]
    assert len(nodes) == 6
    assert pt2q.sqnr(small_net()(inputs()), converted(inputs())) > 5
    assert pt2q.verify(converted).ok


def test_the_parameters_are_those_it_calculates() -> None:
    _, converted = quantized("a class")
    x = inputs()
    first = next(n for n in converted.graph.nodes if ops.is_op(n, ops.QUANTIZE))
    scale, zero_point = ops.argument(first, "scale"), ops.argument(first, "zero_point")
    assert (scale, zero_point) == (float(x.abs().amax() / 127), 0)


@pytest.mark.parametrize("name", ["with_args", "for integers"])
def test_copies_pickles_and_state_dicts(name: str) -> None:
    prepared, converted = quantized(name)
    x = inputs()
    expected = converted(x)
    fresh = prepared_net(quantizer(OWN[name], qscheme=AFFINE))
    fresh.load_state_dict(prepared.state_dict())
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared)), fresh):
        assert torch.equal(pt2q.convert_pt2e(other)(x), expected)
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert torch.equal(other(x), expected)


def test_conversion_leaves_what_was_observed() -> None:
    prepared, converted = quantized("a class")
    before = {k: v.clone() for k, v in prepared.state_dict().items()}
    again = pt2q.convert_pt2e(prepared)
    assert all(torch.equal(v, before[k]) for k, v in prepared.state_dict().items())
    assert torch.equal(again(inputs()), converted(inputs()))


def test_an_observer_with_a_range_that_saw_nothing_is_named() -> None:
    prepared = prepared_net(quantizer(EveryBatch, qscheme=AFFINE))
    with pytest.raises(NoDataError, match="no data was observed at input"):
        pt2q.convert_pt2e(prepared)


def test_a_constructor_that_makes_no_observer_is_named() -> None:
    with pytest.raises(AnnotationError, match="made a ReLU; it must make a module"):
        prepared_net(quantizer(lambda **_: nn.ReLU()))


@pytest.mark.parametrize("put_in", [Percentile, EveryBatch.with_args(dtype=torch.int8), Halving])
def test_the_callback_may_put_in_any_of_these(put_in) -> None:
    spec = pt2q.QuantizationSpec(torch.int8, pt2q.MinMaxObserver, -8, 7, AFFINE)
    prepared = prepared_net(ActivationAndWeight(spec, spec, put_in))
    assert not any(isinstance(m, pt2q.MinMaxObserver) for m in prepared.modules())
    prepared(inputs())
    converted = pt2q.convert_pt2e(prepared)
    ranges = {
        (ops.argument(n, "quant_min"), ops.argument(n, "quant_max"))
        for n in converted.graph.nodes
        if ops.is_op(n, ops.DEQUANTIZE)
    }
    # What an observer does not say is the spec's; what it says counts.
    expected = {Percentile: {(-8, 7)}, Halving: set()}.get(put_in, {(-128, 127)})
    assert ranges == expected


# ------------------------------------------------------------------ granularities


@pytest.mark.parametrize("group_size", [4, 8])
def test_groups_in_the_words_of_affine_quantization(group_size: int) -> None:
    weight = pt2q.QuantizationSpec(
        torch.int8,
        Groups.with_args(
            mapping_type=pt2q.MappingType.SYMMETRIC,
            target_dtype=torch.int8,
            granularity=pt2q.PerGroup(group_size),
            quant_min=-8,
            quant_max=7,
        ),
    )
    prepared = prepared_net(ActivationAndWeight(None, weight))
    prepared(inputs())
    converted = pt2q.convert_pt2e(prepared)
    dequantizes = [n for n in converted.graph.nodes if ops.is_op(n, ops.DEQUANTIZE)]
    assert [ops.argument(n, "group_size") for n in dequantizes] == [group_size] * 2
    layer = small_net()[0]
    grouped = layer.weight.detach().unflatten(1, (-1, group_size))
    scale = grouped.abs().amax(-1, keepdim=True) / 7
    rounded = ((grouped / scale).round().clamp(-8, 7) * scale).flatten(1)
    expected = nn.functional.linear(inputs(), rounded, layer.bias).relu()
    shown = converted.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    found = torch.fx.Interpreter(converted, garbage_collect_values=False)
    found.run(inputs())
    torch.testing.assert_close(found.env[shown[0]], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "granularity, scales",
    [
        (pt2q.PerTensor(), (1,)),
        (pt2q.PerAxis(0), (8,)),
        (pt2q.PerRow(), (8,)),
        (pt2q.PerRow(0), (16,)),
        (pt2q.PerBlock((1, 4)), (8, 4)),
    ],
)
def test_every_granularity_that_has_an_operator(granularity, scales: tuple[int, ...]) -> None:
    class Fixed(pt2q.AffineQuantizedObserverBase):
        def forward(self, x):
            self.shape = x.shape
            return x

        def calculate_qparams(self):
            block = pt2q.get_block_size(self.shape, self.granularity)
            shape = [size // by for size, by in zip(self.shape, block, strict=True)]
            shape = [size for size in shape if size > 1] or [1]
            return torch.full(shape, 0.01), torch.zeros(shape, dtype=torch.int64)

    made = Fixed.with_args(
        mapping_type=pt2q.MappingType.SYMMETRIC, target_dtype=torch.int8, granularity=granularity
    )
    prepared = prepared_net(ActivationAndWeight(None, pt2q.QuantizationSpec(torch.int8, made)))
    converted = pt2q.convert_pt2e(prepared)
    first = next(n for n in converted.graph.nodes if ops.is_op(n, ops.DEQUANTIZE))
    scale = read_qparams(first, lambda node: converted.get_buffer(node.target)).scale
    assert (1,) if isinstance(scale, float) else tuple(scale.shape) == scales
    assert pt2q.verify(converted).ok


def test_a_granularity_without_operators_names_the_way_out() -> None:
    made = Groups.with_args(
        mapping_type=pt2q.MappingType.SYMMETRIC,
        target_dtype=torch.int8,
        granularity=pt2q.PerBlock((2, 4)),
    )
    prepared = prepared_net(ActivationAndWeight(None, pt2q.QuantizationSpec(torch.int8, made)))
    with pytest.raises(AnnotationError, match=r"PerBlock\(block_size=\(2, 4\)\).*convert\(model"):
        pt2q.convert_pt2e(prepared)


# ------------------------------------------------------------------ observers that convert


def test_convert_is_called_once_for_each_call() -> None:
    spec = pt2q.QuantizationSpec(torch.float16, Halving)
    prepared = prepared_net(ActivationAndWeight(spec, spec))
    calls = [n.name for n in prepared.graph.nodes if n.op == "call_module"]
    prepared(inputs())
    observers = {m for m in prepared.modules() if isinstance(m, Halving)}
    converted = pt2q.convert_pt2e(prepared)
    called = [name for observer in observers for name in observer.calls]
    assert sorted(called) == sorted(calls) and len(set(called)) == len(called)
    casts = [n for n in converted.graph.nodes if n.target is ops.TO_DTYPE]
    # Two for each, but weights are stored cast.
    assert len(casts) == 2 * len(calls) - 2
    net, x = small_net(), inputs()
    half = [layer.weight.detach().half().float() for layer in (net[0], net[2])]
    first = nn.functional.linear(x.half().float(), half[0], net[0].bias)
    second = nn.functional.linear(first.half().float().relu().half().float(), half[1], net[2].bias)
    assert torch.equal(converted(x), second.half().float())


# ------------------------------------------------------------------ left in float


def test_a_float32_spec_leaves_its_tensor_in_float() -> None:
    activation = pt2q.QuantizationSpec(torch.int8, pt2q.MinMaxObserver, -128, 127, AFFINE)
    left = pt2q.QuantizationSpec(
        dtype=torch.float32, observer_or_fake_quant_ctr=pt2q.PlaceholderObserver
    )
    prepared = prepared_net(ActivationAndWeight(activation, left))
    prepared(inputs())
    converted = pt2q.convert_pt2e(prepared)
    quantizes = [n for n in converted.graph.nodes if ops.is_op(n, ops.QUANTIZE)]
    assert quantizes and all(n.args[0].op != "get_attr" for n in quantizes)
    assert "float32" in " ".join(note.text for note in prepared.record.notes)


@pytest.mark.parametrize("observer", [pt2q.RecordingObserver, pt2q.ReuseInputObserver])
def test_observers_that_change_nothing_are_left_out(observer) -> None:
    spec = pt2q.QuantizationSpec(torch.int8, observer)
    prepared = prepared_net(ActivationAndWeight(spec))
    x = inputs()
    expected = small_net()(x)
    assert torch.equal(prepared(x), expected)
    recorded = [m for m in prepared.modules() if isinstance(m, pt2q.RecordingObserver)]
    for module in recorded:
        assert len(module.get_tensor_value()) == 1
    converted = pt2q.convert_pt2e(prepared)
    assert torch.equal(converted(x), expected)
    assert not any(ops.is_op(n, ops.QUANTIZE) for n in converted.graph.nodes)


def test_an_override_may_look_once_and_call_what_it_overrides() -> None:
    class Once(pt2q.PerChannelMinMaxObserver):
        calibrated = False

        def forward(self, x: Tensor) -> Tensor:
            if self.calibrated:
                return x
            self.calibrated = True
            return self._forward(x)

    observer = Once(dtype=torch.int8, quant_min=-128, quant_max=127, ch_axis=0)
    observer(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    observer(torch.full((2, 2), 9.0))
    assert observer.max_val.tolist() == [2.0, 4.0]
