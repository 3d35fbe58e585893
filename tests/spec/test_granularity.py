"""Granularity: the words, the sizes they mean, and the one form that everything resolves to."""

from __future__ import annotations

import functools

import pytest
import torch
from torchao.quantization import granularity as peer
from torchao.quantization.utils import get_block_size as peer_block_size

import pt2q
from pt2q.errors import SpecError
from pt2q.observers import PerGroupMinMaxObserver
from pt2q.spec import granularity_of
from pt2q.spec.resolved_granularity import simplest

PER_CHANNEL = torch.per_channel_symmetric
PER_TOKEN = pt2q.PlaceholderObserver.with_args(per_token=True)
GROUPS = PerGroupMinMaxObserver.with_args(group_size=8)


@pytest.mark.parametrize("shape", [(8, 16), (2, 4, 16), (3, 2, 4, 8)])
@pytest.mark.parametrize(
    "name, arguments",
    [
        ("PerTensor", ()),
        ("PerAxis", (0,)),
        ("PerAxis", (1,)),
        ("PerAxis", (-1,)),
        ("PerGroup", (4,)),
        ("PerRow", ()),
        ("PerRow", (0,)),
        ("PerToken", ()),
        ("PerBlock", ((1, 4),)),
        ("PerBlock", ((2, 4),)),
    ],
)
def test_parts_are_those_of_the_field(name, arguments, shape) -> None:
    ours, theirs = getattr(pt2q, name)(*arguments), getattr(peer, name)(*arguments)
    assert pt2q.get_block_size(shape, ours) == tuple(peer_block_size(shape, theirs))
    assert vars(ours) == vars(theirs)
    assert ours == getattr(pt2q, name)(*arguments) and hash(ours) == hash(
        getattr(pt2q, name)(*arguments)
    )


@pytest.mark.parametrize(
    "granularity, shape",
    [
        (pt2q.PerGroup(3), (4, 8)),
        (pt2q.PerBlock((2, 3)), (4, 8)),
        (pt2q.PerBlock((1, 2, 2)), (4, 8)),
        (pt2q.PerAxis(2), (4, 8)),
        (pt2q.PerRow(-3), (4, 8)),
    ],
)
def test_what_does_not_divide_is_named(granularity, shape) -> None:
    with pytest.raises(SpecError, match=r"does not divide a tensor of shape \(4, 8\)"):
        pt2q.get_block_size(shape, granularity)


@pytest.mark.parametrize("size", [0, -1, True, "32", 2.0])
def test_sizes_are_positive_whole_numbers(size) -> None:
    with pytest.raises(SpecError, match="positive whole numbers"):
        pt2q.PerGroup(size)
    with pytest.raises(SpecError, match="positive whole numbers"):
        pt2q.PerBlock((1, size))


@pytest.mark.parametrize(
    "constructor, scheme, axis, expected",
    [
        (pt2q.MinMaxObserver, torch.per_tensor_affine, None, pt2q.PerTensor()),
        (pt2q.MinMaxObserver, None, None, pt2q.PerTensor()),
        (pt2q.PerChannelMinMaxObserver, PER_CHANNEL, 1, pt2q.PerAxis(1)),
        (pt2q.PerChannelMinMaxObserver, None, None, pt2q.PerAxis(0)),
        (pt2q.PerChannelMinMaxObserver, None, 1, pt2q.PerAxis(1)),
        (PER_TOKEN, torch.per_tensor_affine, None, pt2q.PerToken()),
        (functools.partial(pt2q.PlaceholderObserver, per_token=True), None, None, pt2q.PerToken()),
        (GROUPS, PER_CHANNEL, 0, pt2q.PerGroup(8)),
        (pt2q.GroupFakeQuantize, PER_CHANNEL, 0, pt2q.PerGroup(32)),
        (pt2q.GroupFakeQuantize.with_args(group_size=4), PER_CHANNEL, 0, pt2q.PerGroup(4)),
        (pt2q.FakeQuantize.with_args(observer=GROUPS), PER_CHANNEL, 0, pt2q.PerGroup(8)),
        (pt2q.FakeQuantize, None, None, pt2q.PerTensor()),
        (lambda **_: None, PER_CHANNEL, 1, pt2q.PerAxis(1)),
        (
            pt2q.AffineQuantizedObserverBase.with_args(granularity=peer.PerBlock((2, 2))),
            None,
            None,
            pt2q.PerBlock((2, 2)),
        ),
    ],
)
def test_specs_resolve_to_one_form(constructor, scheme, axis, expected) -> None:
    spec = pt2q.QuantizationSpec(torch.int8, constructor, -8, 7, scheme, ch_axis=axis)
    assert granularity_of(spec) == expected


def test_observers_resolve_to_the_form_of_their_spec() -> None:
    for made, expected in (
        (pt2q.MinMaxObserver(), pt2q.PerTensor()),
        (pt2q.PerChannelMinMaxObserver(ch_axis=1), pt2q.PerAxis(1)),
        (PER_TOKEN(), pt2q.PerToken()),
        (pt2q.PlaceholderObserver(granularity=pt2q.PerToken()), pt2q.PerToken()),
        (GROUPS(), pt2q.PerGroup(8)),
        (PerGroupMinMaxObserver(granularity=pt2q.PerGroup(4)), pt2q.PerGroup(4)),
        (pt2q.GroupFakeQuantize(4), pt2q.PerGroup(4)),
        (pt2q.FakeQuantize(), pt2q.PerTensor()),
    ):
        assert granularity_of(made) == expected


def test_words_with_a_common_one() -> None:
    assert simplest(pt2q.PerRow(-1), 2) == pt2q.PerAxis(0)
    assert simplest(pt2q.PerRow(0), 2) == pt2q.PerAxis(1)
    assert simplest(pt2q.PerRow(-1), 3) == pt2q.PerRow(-1)
    assert simplest(pt2q.PerBlock((1, 8)), 2) == pt2q.PerGroup(8)
    assert simplest(pt2q.PerBlock((2, 8)), 2) == pt2q.PerBlock((2, 8))
