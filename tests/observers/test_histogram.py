"""Histograms: how values are counted and tails restored."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pt2q.numerics.histogram import counted, exponent_for, exponent_tensor, widened
from pt2q.numerics.sampling import (
    BLOCK,
    WHOLE,
    blocks_of,
    extremes_of,
    flattened,
    sample_positions,
    stratum_of,
    summarise,
    tail_counts,
)
from pt2q.observers.histogram.streaming import StreamingHistogram

BINS = 256


@given(st.floats(1e-30, 1e30))
@settings(max_examples=60, deadline=None)
def test_exponent_is_the_smallest_that_fits(largest: float) -> None:
    exponent = exponent_for(largest, BINS)
    assert largest < BINS / 2 * 2.0**exponent
    assert exponent == -126 or largest >= BINS / 4 * 2.0**exponent
    if float(torch.tensor(largest)) == largest:
        assert int(exponent_tensor(torch.tensor(largest), BINS)) == exponent


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_widening_counts_is_counting_in_wider_bins(values: list[float], doublings: int) -> None:
    x = torch.tensor(values)
    fine = counted(x.clone(), [len(values)], 1.0, BINS)
    coarse = counted(x.clone(), [len(values)], 2.0**-doublings, BINS)
    assert torch.equal(widened(fine, doublings), coarse)


def test_counts_go_by_parts() -> None:
    x = torch.tensor([0.0, -0.9, 0.9, 1.0, -1.0, 5.5])
    counts = counted(x.clone(), [3, 6], 1.0, 64)
    assert counts[0].nonzero().flatten().tolist() == [32] and int(counts[0, 32]) == 3
    assert counts[1].nonzero().flatten().tolist() == [31, 33, 37]


@pytest.mark.parametrize("size", [WHOLE + 1, 20_000, BLOCK * 1000, 300_001])
def test_summary_of_a_large_tensor(size: int) -> None:
    x = torch.randn(size)
    low, high = extremes_of(x)
    blocks = blocks_of(size)
    body = x[: blocks * BLOCK].view(BLOCK, blocks)
    assert low.shape == high.shape == (blocks,)
    assert float(low.min()) == float(x.min()) and float(high.max()) == float(x.max())
    assert bool((low <= body.amin(0)).all()) and bool((high >= body.amax(0)).all())
    positions = sample_positions(size, 0, x.device)
    stratum = stratum_of(size)
    assert torch.equal(positions // stratum, torch.arange(size // stratum, dtype=torch.int32))
    assert not torch.equal(positions, sample_positions(size, 1, x.device))


@pytest.mark.parametrize("width", [64, 384, 768, 3072])
def test_an_outlier_channel_shows_in_all_blocks(width: int) -> None:
    x = torch.zeros(width * 520)
    x[5::width] = 1.0
    _, high = extremes_of(x)
    assert float(high.sum()) > 0.8 * min(520, high.shape[0] * (1 - math.exp(-BLOCK / width)))


def test_flattening_does_not_copy_dense_tensors() -> None:
    x = torch.randn(2, 3, 4, 5)
    for view in (x, x.transpose(1, 2), x.to(memory_format=torch.channels_last), x[:1]):
        assert flattened(view).data_ptr() == view.data_ptr()
        assert torch.equal(flattened(view).sort().values, view.reshape(-1).sort().values)
    for view in (x[:, :, ::2], x[:, :1].expand(2, 3, 4, 5)):
        assert torch.equal(flattened(view), view.reshape(-1))


def test_when_the_histogram_is_counted_makes_no_difference() -> None:
    batches = [torch.randn(size) * (i + 1) for i, size in enumerate((50, 40_000, 3, 40_000, 900))]
    late, early = StreamingHistogram(BINS), StreamingHistogram(BINS)
    for x in batches:
        for histogram in (late, early):
            histogram.add(summarise(x, histogram.totals.calls), float(x.abs().max()))
        early.flush()
    late.flush()
    assert int(late.exponent) == int(early.exponent) and late.totals == early.totals
    assert torch.equal(late.counts, early.counts) and torch.equal(late.zeros, early.zeros)


@pytest.mark.parametrize("sizes", [(50,), (50, 900, 300), (40_000,), (40_000, 50, 40_000), ()])
@pytest.mark.parametrize("flushed", [0, 1, 3])
def test_all_is_counted_apart(sizes: tuple[int, ...], flushed: int) -> None:
    histogram = StreamingHistogram(BINS)
    for i, size in enumerate(sizes):
        x = torch.randn(size, generator=torch.Generator().manual_seed(i)) * (i + 1)
        largest = float(x.abs().max())
        if size <= 900:
            histogram.add_whole(x, largest)
        else:
            histogram.add(summarise(x, histogram.totals.calls), largest)
        if i < flushed:
            histogram.flush()
    expected, before = copy.deepcopy(histogram), copy.deepcopy(histogram)
    expected.flush()
    expected.count_kept()
    found = histogram.all_counted()
    for name, buffer in expected.named_buffers():
        assert torch.equal(found.get_buffer(name), buffer), name
    for name, buffer in before.named_buffers():
        assert torch.equal(histogram.get_buffer(name), buffer), name
    assert histogram.totals == before.totals == found.totals
    histogram.flush()
    histogram.count_kept()
    assert torch.equal(histogram.counts, expected.counts)


def test_tails_are_restored_from_block_extremes() -> None:
    size = BLOCK * 8000
    blocks = blocks_of(size)
    x = torch.distributions.Laplace(0.0, 4.0).sample((size,)).abs()
    true = torch.bincount(x.int(), minlength=128).double().view(1, -1)
    positions = sample_positions(size, 0, x.device)
    weight = stratum_of(size)
    sampled = torch.bincount(x[positions].int(), minlength=128).double().view(1, -1) * weight
    maxima = torch.bincount(extremes_of(x)[1].int(), minlength=128).double().view(1, -1)
    fraction = torch.tensor([[1.0 / weight]]).double()
    falling = (sampled.flip(1), maxima.flip(1))
    count = torch.tensor([[float(blocks)]]).double()
    restored = tail_counts(*falling, fraction, count).flip(1)
    tail = slice(25, 45)  # 0.2 % of the values lie beyond 25

    def error(counts: Tensor) -> float:
        above, expected = (c.flip(1).cumsum(1).flip(1)[0, tail] for c in (counts, true))
        return float(((above - expected) / expected.sqrt()).square().mean())

    assert error(restored) < 0.2 * error(sampled)
    assert float(restored.sum()) == pytest.approx(size, rel=0.01)


def test_clustered_values_are_left_to_the_samples() -> None:
    sampled = torch.zeros(1, 16).double()
    sampled[0, 0], sampled[0, 10] = 90_000, 10_000
    extremes = torch.zeros(1, 16).double()
    extremes[0, 10] = 3  # ten thousand values in three blocks
    counts = tail_counts(
        sampled.flip(1),
        extremes.flip(1),
        torch.tensor([[0.05]]).double(),
        torch.tensor([[800.0]]).double(),
    ).flip(1)
    assert float(counts[0, 10]) == pytest.approx(10_000, rel=0.2)
