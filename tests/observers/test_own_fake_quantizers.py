"""Fake quantizers of one's own: trained, switched, copied, saved, converted."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from support.own_observers import ActivationAndWeight, Percentile, Rounding, inputs, prepared_net

import pt2q
from pt2q.ir import ops
from pt2q.ir.qparams import read_qparams

OWN = {
    "a class": Rounding,
    "with_args": Rounding.with_args(observer=pt2q.MinMaxObserver, gain=1.0),
    "a partial": functools.partial(Rounding, gain=1.0),
    "a function": lambda **arguments: Rounding(pt2q.MinMaxObserver, **arguments),
    "ours over an observer of one's own": pt2q.FakeQuantize.with_args(observer=Percentile),
    "learnable": pt2q.LearnableFakeQuantize.with_args(observer=pt2q.MinMaxObserver),
}


def prepared(name: str):
    spec = pt2q.QuantizationSpec(
        torch.int8, OWN[name], -128, 127, torch.per_tensor_affine, ch_axis=0
    )
    return prepared_net(ActivationAndWeight(spec, spec), qat=True)


def trained(name: str):
    model = prepared(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs()).square().sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", OWN)
def test_what_was_trained_is_what_is_converted(name: str) -> None:
    model = trained(name)
    model.apply(pt2q.disable_observer)
    expected = model(inputs()).detach()
    converted = pt2q.convert_pt2e(model)
    torch.testing.assert_close(converted(inputs()), expected, atol=1e-5, rtol=1e-5)
    assert sum(ops.is_op(n, ops.DEQUANTIZE) for n in converted.graph.nodes) == 6
    assert pt2q.verify(converted).ok


def test_it_is_asked_for_its_parameters() -> None:
    model = trained("a class")
    first = next(m for m in model.modules() if isinstance(m, Rounding))
    first.gain = 2.0
    scale = float(first.calculate_qparams()[0])
    converted = pt2q.convert_pt2e(model)
    found = [read_qparams(n) for n in converted.graph.nodes if ops.is_op(n, ops.DEQUANTIZE)]
    assert scale in [params.scale for params in found]


def test_switches_reach_it() -> None:
    model = trained("a class")
    fakes = [m for m in model.modules() if isinstance(m, Rounding)]
    model.apply(pt2q.disable_fake_quant).apply(pt2q.disable_observer)
    assert all(m.fake_quant_enabled == 0 and m.observer_enabled == 0 for m in fakes)
    model.apply(pt2q.enable_fake_quant).apply(pt2q.enable_observer)
    assert all(m.fake_quant_enabled == 1 and m.observer_enabled == 1 for m in fakes)


@pytest.mark.parametrize("name", ["with_args", "learnable"])
def test_copies_pickles_and_state_dicts(name: str) -> None:
    model = trained(name).apply(pt2q.disable_observer)
    expected = model(inputs())
    fresh = prepared(name)
    fresh.load_state_dict(model.state_dict())
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(inputs()), expected)


def test_writing_into_the_switches_counts() -> None:
    fake = pt2q.FakeQuantize(pt2q.MinMaxObserver)
    x = torch.randn(50)
    fake(x)
    fake.fake_quant_enabled[0] = 0
    assert fake(x) is x
    other = copy.deepcopy(fake)
    other.fake_quant_enabled[0] = 1
    assert not torch.equal(other(x), x) and fake(x) is x
    scale = other.scale.clone()
    other.observer_enabled[0] = 0
    other(x * 10)
    assert torch.equal(other.scale, scale)


def test_the_defaults_by_name() -> None:
    fake = pt2q.default_fake_quant()
    assert isinstance(fake, pt2q.FakeQuantizeBase)
    assert (fake.dtype, fake.quant_min, fake.quant_max) == (torch.uint8, 0, 255)
    dynamic = pt2q.default_dynamic_fake_quant()
    assert dynamic.is_dynamic
    for x in (torch.rand(40), torch.rand(40) * 9):
        dynamic(x)
        assert float(dynamic.scale) == pytest.approx(float(x.amax() / 255), rel=1e-6)


def test_the_protocol_tells_observers_from_other_modules() -> None:
    for made in (pt2q.MinMaxObserver(), Percentile(), Rounding(), pt2q.RecordingObserver()):
        assert isinstance(made, pt2q.ObserverOrFakeQuantize)
    assert not isinstance(torch.nn.ReLU(), pt2q.ObserverOrFakeQuantize)
