"""Fake quantizers that learn: the call, the switches, the gradients and the state of the field."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import LearnableFakeQuantize as Peer
from torchao.quantization.pt2e import (
    MovingAverageMinMaxObserver as PeerAverage,
)
from torchao.quantization.pt2e import (
    MovingAveragePerChannelMinMaxObserver as PeerChannels,
)

import pt2q
from pt2q.errors import SpecError
from pt2q.numerics.rounding import round_trip

OURS = {
    False: (pt2q.LearnableFakeQuantize, pt2q.MovingAverageMinMaxObserver, {}),
    True: (pt2q.LearnableFakeQuantize, pt2q.MovingAveragePerChannelMinMaxObserver, {"ch_axis": 0}),
}
THEIRS = {False: (Peer, PeerAverage, {}), True: (Peer, PeerChannels, {"ch_axis": 0})}


def switches(fake) -> tuple[int, int, int]:
    return (
        int(fake.learning_enabled[0]),
        int(fake.observer_enabled[0]),
        int(fake.fake_quant_enabled[0]),
    )


def test_what_it_is_when_made() -> None:
    fake = pt2q.LearnableFakeQuantize(pt2q.MovingAverageMinMaxObserver)
    assert (fake.quant_min, fake.quant_max, fake.dtype) == (0, 255, torch.uint8)
    assert fake.scale is None and fake.zero_point is None
    assert switches(fake) == (0, 1, 1)
    given = pt2q.LearnableFakeQuantize(pt2q.MinMaxObserver, 0, 15, 0.5, 8.0, 3, True)
    assert torch.equal(given.scale, torch.full((3,), 0.5))
    assert torch.equal(given.zero_point, torch.full((3,), 8.0))
    assert given.use_grad_scaling and (given.quant_min, given.quant_max) == (0, 15)


@pytest.mark.parametrize("arguments", [{"quant_min": 0, "quant_max": 255}, {}])
def test_a_range_that_int8_does_not_hold_is_stored_as_uint8(arguments) -> None:
    fake = pt2q.LearnableFakeQuantize(
        pt2q.MinMaxObserver, **{"quant_min": 0, "quant_max": 255, **arguments}, dtype=torch.int8
    )
    assert (fake.dtype, fake.quant_min, fake.quant_max) == (torch.uint8, 0, 255)
    x = torch.rand(50) * 2
    expected = round_trip(x, x.amax() / 255, 0, 0, 255, torch.uint8)
    assert torch.equal(fake(x).detach(), expected)


def test_learning_and_observing_exclude_each_other() -> None:
    fake = pt2q.LearnableFakeQuantize(pt2q.MovingAverageMinMaxObserver)
    fake.enable_range_learning()
    assert switches(fake) == (1, 0, 1) and fake.scale is None
    fake(torch.randn(4, 4))  # the first call gives the initial parameters
    assert fake.scale.requires_grad and fake.zero_point.requires_grad
    fake.disable_range_learning()
    assert switches(fake) == (0, 0, 1)
    assert not fake.scale.requires_grad and not fake.zero_point.requires_grad
    fake.enable_range_learning()
    fake.enable_observer()
    assert switches(fake) == (0, 1, 1) and not fake.scale.requires_grad
    assert fake.static_enabled is fake.observer_enabled


def test_switches_by_their_other_names() -> None:
    fake = pt2q.LearnableFakeQuantize(pt2q.MinMaxObserver, scale=0.1)
    for switch, expected in (
        (fake.enable_param_learning, (1, 0, 1)),
        (fake.enable_static_estimate, (0, 1, 1)),
        (fake.enable_static_observation, (0, 1, 0)),
    ):
        assert switch() is fake
        assert switches(fake) == expected
        assert fake.scale.requires_grad == bool(expected[0])
    fake.apply(pt2q.enable_range_learning)
    assert switches(fake)[0] == 1
    fake.apply(pt2q.disable_range_learning)
    assert switches(fake)[0] == 0


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_values_and_gradients_are_those_of_the_peer(channels, scaled, symmetric) -> None:
    torch.manual_seed(0)
    kind = "channel" if channels else "tensor"
    options = {
        "qscheme": getattr(torch, f"per_{kind}_{'symmetric' if symmetric else 'affine'}"),
        "dtype": torch.int8 if symmetric else torch.uint8,
        "quant_min": -127 if symmetric else 0,
        "quant_max": 127 if symmetric else 255,
        "use_grad_scaling": scaled,
    }
    fakes = []
    for cls, observer, more in (OURS[channels], THEIRS[channels]):
        fake = cls(observer, **options, **more)
        fake(torch.randn(4, 50, generator=torch.Generator().manual_seed(1)))
        fake.enable_range_learning()
        fakes.append(fake)
    ours, theirs = fakes
    torch.testing.assert_close(ours.scale, theirs.scale)
    theirs.scale.data.mul_(0.7)  # some values are clipped, so that both gradients are there
    ours.scale.data.copy_(theirs.scale)
    ours.zero_point.data.copy_(theirs.zero_point)
    weights = torch.randn(4, 50)
    x = torch.randn(4, 50)
    found = []
    for fake in fakes:
        leaf = x.clone().requires_grad_()
        y = fake(leaf)
        (y * weights).sum().backward()
        found.append([y.detach(), leaf.grad, fake.scale.grad])
        found[-1] += [] if symmetric else [fake.zero_point.grad]
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [False, True])
def test_state_dicts_have_the_keys_of_the_peer_and_can_be_exchanged(channels: bool) -> None:
    x = torch.randn(4, 50)
    (cls, observer, more), (peer, watched, _) = OURS[channels], THEIRS[channels]
    theirs = peer(watched, **more)
    theirs(x)
    theirs.enable_range_learning()
    ours = cls(observer, **more)
    ours(x)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    fresh = cls(observer, **more)
    fresh.load_state_dict(theirs.state_dict())
    assert switches(fresh) == switches(theirs) == (1, 0, 1)
    assert torch.equal(fresh.scale, theirs.scale) and fresh.scale.requires_grad
    torch.testing.assert_close(fresh(x), theirs(x))
    for mine, other in zip(fresh.calculate_qparams(), theirs.calculate_qparams(), strict=True):
        assert torch.equal(mine, other)
    theirs.load_state_dict(ours.state_dict())


def test_copies_and_pickles_go_on_learning() -> None:
    fake = pt2q.LearnableFakeQuantize(pt2q.MovingAverageMinMaxObserver)
    fake(torch.randn(30))
    fake.enable_range_learning()
    for other in (copy.deepcopy(fake), pickle.loads(pickle.dumps(fake))):
        assert switches(other) == (1, 0, 1)
        other(torch.randn(30)).sum().backward()
        assert other.scale.grad is not None and fake.scale.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    fake = pt2q.LearnableFakeQuantize(pt2q.MovingAverageMinMaxObserver)
    assert fake(torch.randn(20).to(dtype)).dtype == dtype


def test_an_optimizer_moves_the_parameters() -> None:
    model = nn.Sequential(
        nn.Linear(10, 5), pt2q.LearnableFakeQuantize(pt2q.MovingAverageMinMaxObserver)
    )
    model[1].enable_range_learning()
    x = torch.randn(4, 10)
    model(x)
    before = model[1].scale.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].scale, before)


def test_another_number_of_channels_is_named() -> None:
    fake = pt2q.LearnableFakeQuantize(
        pt2q.MovingAveragePerChannelMinMaxObserver, ch_axis=0, channel_len=3
    )
    with pytest.raises(SpecError, match=r"found 4 channels and has 3 scales; call set_channels"):
        fake(torch.randn(4, 8))
