"""Small tensors take a short way into a histogram; what is found is what the long way finds."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pt2q.errors import NonFiniteActivationError
from pt2q.observers import HistogramObserver

SIZES = st.sampled_from([1, 3, 32, 700, 2048, 16384, 16385, 20_000])


class LongWay(HistogramObserver):
    """A subclass that looks at every tensor itself is asked about every tensor."""

    def _observe(self, x: Tensor) -> None:
        super()._observe(x)


def same(one: HistogramObserver, other: HistogramObserver) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@given(st.lists(st.tuples(SIZES, st.floats(-4, 4)), min_size=1, max_size=12), st.booleans())
def test_both_ways_find_the_same(steps: list[tuple[int, float]], numbered: bool) -> None:
    short, long = HistogramObserver(), LongWay()
    for seed, (size, shift) in enumerate(steps):
        x = torch.randn(size, generator=torch.Generator().manual_seed(seed)) + shift
        for observer in (short, long):
            if numbered and seed == 0:
                observer.at_batch(3)
            assert observer(x) is x
    assert short.histogram.turn == long.histogram.turn
    copied = copy.deepcopy(short)
    assert same(short, long) and same(copied, long)
    assert all(map(torch.equal, short.calculate_qparams(), long.calculate_qparams()))


@pytest.mark.parametrize("prepare", [torch.t, torch.Tensor.double, torch.Tensor.requires_grad_])
def test_what_is_not_plain_goes_the_long_way(prepare: object) -> None:
    short, long = HistogramObserver(), LongWay()
    for observer in (short, long):
        observer(prepare(torch.linspace(-1, 2, 60).reshape(6, 10)))  # type: ignore[operator]
    assert same(short, long)


def test_what_was_seen_is_not_changed_by_writing_over_it() -> None:
    x, observer = torch.linspace(-1, 1, 100), HistogramObserver()
    observer(x)
    x.fill_(7.0)
    assert observer.histogram.state_dict()["few"].abs().max() == 1


def test_masks_and_nan_are_seen() -> None:
    observer = HistogramObserver()
    observer(torch.tensor([1.0, -2.0, float("-inf"), torch.finfo(torch.float32).min]))
    assert (observer.min_val, observer.max_val) == (-2, 1)
    with pytest.raises(NonFiniteActivationError):
        observer(torch.tensor([1.0, float("nan")]))


def test_in_inference_mode_statistics_are_ordinary_tensors() -> None:
    observer = HistogramObserver()
    with torch.inference_mode():
        observer(torch.randn(8))
    observer(torch.randn(8))
    assert not any(value.is_inference() for value in observer.state_dict().values())
