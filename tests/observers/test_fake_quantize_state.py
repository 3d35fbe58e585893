"""Fake quantizers switched, saved, copied; without data."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import pt2q
from pt2q.errors import NoDataError, SpecError
from pt2q.numerics import rounding
from pt2q.observers import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    GroupFakeQuantize,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)

AFFINE = {"qscheme": torch.per_tensor_affine, "quant_min": -128, "quant_max": 127}


CHANNEL = {
    "qscheme": torch.per_channel_symmetric,
    "ch_axis": 0,
    "quant_min": -127,
    "quant_max": 127,
}


@pytest.mark.parametrize("kind", [FakeQuantize, FusedMovingAvgObsFakeQuantize])
def test_switches(kind: type) -> None:
    fake = kind(**AFFINE)
    x = torch.randn(50)
    fake.apply(pt2q.disable_observer)
    assert fake(x) is x  # nothing is known yet
    fake.apply(pt2q.enable_observer).apply(pt2q.disable_fake_quant)
    assert fake(x) is x
    scale = fake.scale.clone()
    assert scale != 1
    fake.apply(pt2q.enable_fake_quant).apply(pt2q.disable_observer)
    assert not torch.equal(fake(x * 2), x * 2)
    assert torch.equal(fake.scale, scale)
    assert fake.observer_enabled == 0 and fake.fake_quant_enabled == 1


def test_no_data_is_an_error_that_names_the_node() -> None:
    fake = FusedMovingAvgObsFakeQuantize(**AFFINE)
    fake.node_name = "relu_3"
    assert not fake.has_data
    with pytest.raises(NoDataError, match="relu_3"):
        fake.calculate_qparams()


def test_constructors_are_hashable_and_comparable() -> None:
    one = FakeQuantize.with_args(observer=MinMaxObserver, eps=2**-12)
    assert one == FakeQuantize.with_args(eps=2**-12, observer=MinMaxObserver)
    assert hash(one) == hash(FakeQuantize.with_args(eps=2**-12, observer=MinMaxObserver))
    assert one != FakeQuantize.with_args(observer=MinMaxObserver)
    assert isinstance(one(**AFFINE), FakeQuantize)


def test_wrong_observers_are_refused() -> None:
    with pytest.raises(SpecError, match="moving-average"):
        FusedMovingAvgObsFakeQuantize(observer=MinMaxObserver, **AFFINE)
    with pytest.raises(SpecError, match="learned"):
        LearnableFakeQuantize(is_dynamic=True, **AFFINE)


def test_fixed_parameters_stay() -> None:
    fake = FixedQParamsFakeQuantize(
        scale=1 / 256, zero_point=0, quant_min=0, quant_max=255, dtype=torch.uint8
    )
    x = torch.rand(100)
    assert torch.equal(fake(x), rounding.round_trip(x, 1 / 256, 0, 0, 255, torch.uint8))
    assert float(fake.calculate_qparams()[0]) == 1 / 256


@pytest.mark.parametrize(
    "make",
    [
        lambda: FusedMovingAvgObsFakeQuantize(MovingAveragePerChannelMinMaxObserver, **CHANNEL),
        lambda: FusedMovingAvgObsFakeQuantize(**AFFINE),
        lambda: FakeQuantize(PerChannelMinMaxObserver, **CHANNEL),
        lambda: LearnableFakeQuantize(PerChannelMinMaxObserver, channel_len=5, **CHANNEL),
        lambda: GroupFakeQuantize(4),
    ],
)
def test_checkpoints_and_copies_continue(make) -> None:
    fake = make()
    fake(torch.randn(5, 8))
    keys = {"scale", "zero_point", "fake_quant_enabled", "observer_enabled"}
    assert keys <= set(fake.state_dict())
    fresh = make()
    fresh.load_state_dict(fake.state_dict())
    others = [fresh, copy.deepcopy(fake), pickle.loads(pickle.dumps(fake))]
    x = torch.randn(5, 8)
    expected = fake(x)
    for other in others:
        assert torch.equal(other(x), expected)
        assert torch.equal(other.scale, fake.scale)
    fake.apply(pt2q.disable_fake_quant)
    fresh.load_state_dict(fake.state_dict())
    assert fresh(x) is x
