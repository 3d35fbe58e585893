"""What observers keep: saved, reset, switched off, many at once, on accelerators."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.observing import COLLECTING, batches, same, seen
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pt2q.errors import NoDataError, NonFiniteActivationError
from pt2q.observers import (
    HistogramObserver,
    MinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    batched_qparams,
    disable_observer,
    enable_observer,
)

INF = float("inf")


@pytest.mark.parametrize("cls", COLLECTING)
def test_calibration_goes_on_from_saved_state_bit_for_bit(cls) -> None:
    data = batches()
    through = cls()
    for done, batch in enumerate(data):
        through(batch)
        buffer = io.BytesIO()
        torch.save(through.state_dict(), buffer)
        buffer.seek(0)
        loaded = cls()
        loaded.load_state_dict(torch.load(buffer))
        others = [loaded, copy.deepcopy(through), pickle.loads(pickle.dumps(through))]
        for other in others:
            for rest in data[done + 1 :]:
                other(rest)
        through_rest = copy.deepcopy(through)
        for rest in data[done + 1 :]:
            through_rest(rest)
        assert all(
            same(other.calculate_qparams(), through_rest.calculate_qparams()) for other in others
        )


@pytest.mark.parametrize("cls", COLLECTING)
def test_saved_state_is_a_snapshot_and_reset_forgets(cls) -> None:
    first, *rest = batches()
    observer = cls()
    expected = seen(observer, first)
    state = observer.state_dict()
    seen(observer, *rest)
    fresh = cls()
    fresh.load_state_dict(state)
    assert same(fresh.calculate_qparams(), expected)
    observer.reset()
    assert not observer.has_data
    assert same(seen(observer, first), expected)


def test_switches() -> None:
    model = nn.Sequential(MinMaxObserver(), nn.ReLU(), HistogramObserver())
    model.apply(disable_observer)
    model(torch.randn(5))
    assert not model[0].has_data and not model[2].has_data
    model.apply(enable_observer)
    model(torch.randn(5))
    assert model[0].has_data and model[2].has_data


def test_constant_input_is_observed_once_and_again_when_it_changes() -> None:
    observer = PerChannelMinMaxObserver(qscheme=torch.per_channel_symmetric)
    observer.constant_input = True
    looks = []
    observe = observer._observe
    observer._observe = lambda x: (looks.append(1), observe(x))[1]
    weight = nn.Parameter(torch.randn(3, 4))
    for _ in range(3):
        observer(weight)
    assert len(looks) == 1
    with torch.no_grad():
        weight.mul_(0.1)
    changed = seen(observer, weight)
    assert len(looks) == 2
    fresh = PerChannelMinMaxObserver(qscheme=torch.per_channel_symmetric)
    assert same(changed, seen(fresh, weight))


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    observers: list[ObserverBase] = [
        HistogramObserver(dtype=dtype, qscheme=scheme, quant_min=low, quant_max=high)
        for dtype, low, high in ((torch.int8, -128, 127), (torch.uint8, 0, 15))
        for scheme in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        for _ in range(3)
    ]
    observers += [MinMaxObserver(), HistogramObserver(dtype=torch.int32)]
    for index, observer in enumerate(observers):
        observer(torch.randn(50 if index % 2 else 20_000) * (1 + index))
    together = batched_qparams(observers)
    assert all(
        same(found, observer.calculate_qparams())
        for found, observer in zip(together, observers, strict=True)
    )
    with pytest.raises(NoDataError):
        batched_qparams([*observers, HistogramObserver()])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), min_size=1, max_size=5
    ),
    st.permutations(range(5)),
)
def test_the_order_of_batches_makes_no_difference(data, order) -> None:
    for cls in (MinMaxObserver, HistogramObserver):
        forward, mixed = cls(), cls()
        for values in data:
            forward(torch.tensor(values))
        for index in order:
            if index < len(data):
                mixed(torch.tensor(data[index]))
        assert same(forward.calculate_qparams(), mixed.calculate_qparams())


class NoQuestions(TorchDispatchMode):
    """Fails on what would make the host wait for an accelerator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asking = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount")
        assert func.overloadpacket.__name__ not in asking, func
        return func(*args, **(kwargs or {}))


def test_the_way_for_accelerators_asks_nothing_and_finds_the_same(monkeypatch) -> None:
    host, device = HistogramObserver(), HistogramObserver()
    data = batches()
    expected = seen(host, *data)

    def counted_on_device(values, ends, inverse_width, bins):
        index = (values * inverse_width).to(torch.int32).add_(bins // 2).clamp_(0, bins - 1)
        for end in ends[:-1]:
            index[end:].add_(bins)
        counts = torch.zeros(bins * len(ends), dtype=torch.int64)
        return counts.index_add_(0, index, torch.ones_like(index).long()).view(-1, bins)

    monkeypatch.setattr("pt2q.observers.histogram.streaming.counted", counted_on_device)
    with NoQuestions():
        for x in data:
            masked = torch.cat([x.flatten(), torch.tensor([-INF])])
            device._observe_on_device(masked if x.numel() < 1000 else x.flatten())
        device.histogram.flush()
    assert same(device.calculate_qparams(), expected)
    device._observe_on_device(torch.tensor([1.0, float("nan")]))
    with pytest.raises(NonFiniteActivationError):
        device.calculate_qparams()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("cls", COLLECTING)
def test_on_an_accelerator_without_synchronisation(cls) -> None:
    host, device = cls(), cls()
    data = batches()
    moved = [x.cuda() for x in data]
    for x in moved:  # caches are filled once
        device(x)
    device.reset()
    torch.cuda.set_sync_debug_mode("error")
    for x in moved:
        device(x)
    torch.cuda.set_sync_debug_mode("default")
    found = device.calculate_qparams()
    assert found[0].is_cuda
    expected = seen(host, *data)
    assert same((found[0].cpu(), found[1].cpu()), expected)
    device(torch.tensor([[float("nan")]] * 4).cuda())
    with pytest.raises(NonFiniteActivationError):
        device.calculate_qparams()
