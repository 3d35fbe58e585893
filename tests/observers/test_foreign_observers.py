"""Observers and fake quantizers of the peer are replaced by equal ones of ours."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchao.quantization.pt2e as peer
from support.foreign_quantizer import EPS

from pt2q import observers
from pt2q.observers.foreign import replacement_for
from pt2q.spec import PartialWrapper

SAME = [
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "HistogramObserver",
    "PlaceholderObserver",
]


@pytest.mark.parametrize("name", SAME)
def test_observers_are_replaced_with_their_arguments(name) -> None:
    theirs, ours = getattr(peer, name), getattr(observers, name)
    assert replacement_for(theirs) == PartialWrapper(ours)
    made = replacement_for(theirs.with_args(eps=EPS, dtype=torch.qint8).with_args(eps=1e-3))
    assert made == ours.with_args(eps=1e-3, dtype=torch.int8)


def test_equal_arguments_make_equal_constructors() -> None:
    # Theirs compare by identity: equal specs on one value would get an observer each.
    one, other = (peer.HistogramObserver.with_args(eps=EPS) for _ in range(2))
    assert one != other
    assert replacement_for(one) == replacement_for(other)


@pytest.mark.parametrize(
    "ctr",
    [
        peer.MinMaxObserver.with_args(reduce_range=True),
        peer.HistogramObserver.with_args(upsample_rate=2),
        peer.FixedQParamsObserver.with_args(scale=1.0, zero_point=0),
        peer.MinMaxObserver.with_callable_args(factory_kwargs=dict),
        peer.FakeQuantize.with_args(observer=peer.MinMaxObserver.with_args(reduce_range=True)),
        lambda **kwargs: None,
        partial(peer.MinMaxObserver, torch.uint8),
    ],
)
def test_what_is_not_understood_stays_as_it_is(ctr) -> None:
    assert replacement_for(ctr) is ctr


def test_a_subclass_is_not_its_base() -> None:
    class Own(peer.MinMaxObserver):
        pass

    assert replacement_for(Own) is Own


def test_fake_quantizers_are_replaced_with_their_observer() -> None:
    moving = peer.MovingAverageMinMaxObserver.with_args(averaging_constant=0.1)
    made = replacement_for(peer.FakeQuantize.with_args(observer=moving, eps=EPS))
    assert made.func is observers.FakeQuantize
    ours = observers.MovingAverageMinMaxObserver.with_args(averaging_constant=0.1)
    assert made.keywords == {"eps": EPS, "observer": ours}
    fused = replacement_for(peer.FusedMovingAvgObsFakeQuantize)
    assert fused.func is observers.FusedMovingAvgObsFakeQuantize


SCHEMES = [
    ("MinMaxObserver", torch.int8, (-128, 127), torch.per_tensor_affine),
    ("MinMaxObserver", torch.int8, (-127, 127), torch.per_tensor_symmetric),
    ("MinMaxObserver", torch.uint8, (0, 255), torch.per_tensor_symmetric),
    ("MinMaxObserver", torch.int16, (-32768, 32767), torch.per_tensor_affine),
    ("MinMaxObserver", torch.int8, (-8, 7), torch.per_tensor_symmetric),
    ("MovingAverageMinMaxObserver", torch.uint8, (0, 255), torch.per_tensor_affine),
    ("PerChannelMinMaxObserver", torch.int8, (-127, 127), torch.per_channel_symmetric),
    ("PerChannelMinMaxObserver", torch.uint8, (0, 255), torch.per_channel_affine),
]


@pytest.mark.parametrize("name, dtype, limits, scheme", SCHEMES)
def test_replacements_find_the_same_parameters(name, dtype, limits, scheme) -> None:
    arguments = dict(dtype=dtype, quant_min=limits[0], quant_max=limits[1], qscheme=scheme, eps=EPS)
    theirs = getattr(peer, name)(**arguments)
    ours = replacement_for(getattr(peer, name))(**arguments)
    for seed in range(3):
        x = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed)) + 0.3
        theirs(x)
        ours(x)
    expected, found = theirs.calculate_qparams(), ours.calculate_qparams()
    # A symmetric scale is reach / 127.5 there and reach / 127 here: ours uses all integers.
    levels = limits[1] - limits[0]
    symmetric = "symmetric" in str(scheme)
    tolerance = 1.01 / levels if symmetric else 1e-6
    torch.testing.assert_close(found[0], expected[0].float().reshape(-1), rtol=tolerance, atol=0)
    # The middle of an unsigned range is 128 here; there it is 127 if the range is given.
    middle = int(symmetric and dtype is torch.uint8)
    assert (found[1] - expected[1].reshape(-1)).tolist() == [middle] * found[1].numel()
