"""The range that a histogram gives is near the best."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchao.quantization.pt2e.observer import HistogramObserver as PeerObserver

from pt2q.numerics.grid_error import Grid, HistogramTable, ValueTable
from pt2q.numerics.grid_search import best_grid
from pt2q.numerics.rounding import round_trip
from pt2q.numerics.sqnr import sqnr
from pt2q.observers import HistogramObserver


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_exact_error_is_that_of_the_values(data: st.DataObject) -> None:
    """Against double precision sums over values spread evenly in each bin."""
    seed = data.draw(st.integers(0, 1000))
    scale = data.draw(st.floats(0.5, 12.0))
    point = data.draw(st.integers(-8, 7))
    torch.manual_seed(seed)
    counts = torch.randint(0, 4, (1, 64)).double()
    fine = 400
    places = (torch.arange(64 * fine) + 0.5).double() / fine - 32
    weights = counts.repeat_interleave(fine, 1)[0] / fine
    levels = ((places / scale).round() + point).clamp(-8, 7)
    expected = (weights * (places - (levels - point) * scale).square()).sum()
    got = HistogramTable(counts).errors(
        torch.tensor([[scale]]).double(), torch.tensor([[point]]), Grid(-8, 7)
    )
    assert float(got) == pytest.approx(float(expected), rel=1e-3)


@given(st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_what_clipping_costs_is_that_of_the_values(seed: int) -> None:
    torch.manual_seed(seed)
    values = (torch.randn(2, 64) * 40).clamp(-500, 500).round()
    lows, highs = -100 * torch.rand(2, 5).double(), 100 * torch.rand(2, 5).double()
    low, high, x = lows.unsqueeze(2), highs.unsqueeze(2), values.double().unsqueeze(1)
    below = (low - x).clamp(min=0).square().sum(2)
    above = (x - high).clamp(min=0).square().sum(2)
    got = ValueTable(values).clipped(lows, highs)
    assert torch.allclose(got[0], below, rtol=1e-4) and torch.allclose(got[1], above, rtol=1e-4)
    # A bin holds what lies within half a bin of a whole number, evenly spread; half are here.
    counts = torch.zeros(2, 1024).double()
    for shift in (-1, 0):
        counts.scatter_add_(1, values.long() + 512 + shift, torch.full_like(counts, 0.5)[:, :64])
    from_bins = HistogramTable(counts).clipped(lows, highs)
    for found, exact in zip(from_bins, (below, above), strict=True):
        assert torch.allclose(found, exact, rtol=0.02, atol=64.0)


def brute_force(x: Tensor, grid: Grid) -> float:
    """The best SQNR over a dense set of ranges, on the raw data."""
    best = -math.inf
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    ratios = [0.97**i for i in range(90)]
    for i in ratios:
        for j in ratios if grid.zero_point is None else [0.0]:
            if grid.zero_point is None:
                scale = (high * j - low * i) / grid.steps
                point = round(grid.quant_min - low * i / scale)
            else:
                scale, point = i * max(-low, high) * 2 / grid.steps, grid.zero_point
            got = ((x / scale).round() + point).clamp(grid.quant_min, grid.quant_max)
            best = max(best, float(sqnr(x, (got - point) * scale)))
    return best


DATA = {
    "gaussian": lambda x: x,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "tails": lambda x: x.sign() * x.abs() ** 3,
    "outliers": lambda x: torch.where(torch.rand_like(x) < 1e-3, 100 * x, x),
    "bimodal": lambda x: torch.where(x > 0, 0.1 * x - 1, 0.1 * x + 3),
}


GRIDS = {
    "int8": (torch.int8, Grid(-128, 127)),
    "int8 symmetric": (torch.int8, Grid(-128, 127, 0)),
    "4 bits": (torch.int8, Grid(-8, 7)),
    "4 bits symmetric": (torch.int8, Grid(-8, 7, 0)),
    "uint8": (torch.uint8, Grid(0, 255)),
}


def found(cls: type, x: list[Tensor], dtype: torch.dtype, grid: Grid) -> float:
    affine = grid.zero_point is None
    observer = cls(
        dtype=dtype,
        quant_min=grid.quant_min,
        quant_max=grid.quant_max,
        qscheme=torch.per_tensor_affine if affine else torch.per_tensor_symmetric,
    )
    for batch in x:
        observer(batch)
    scale, point = observer.calculate_qparams()
    seen = torch.cat(x)
    value = round_trip(seen, float(scale), int(point), grid.quant_min, grid.quant_max, dtype)
    return float(sqnr(seen, value))


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size, batches", [(64, 1), (1000, 3), (30_000, 1), (100_000, 2)])
def test_quality_is_not_below_the_peer(kind, grid, size, batches) -> None:
    x = [DATA[kind](torch.randn(size)) for _ in range(batches)]
    dtype, integers = GRIDS[grid]
    assert found(HistogramObserver, x, dtype, integers) > (
        found(PeerObserver, x, dtype, integers) - 0.1
    )


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("grid", ["int8 symmetric", "4 bits", "4 bits symmetric"])
def test_quality_is_near_the_optimum(kind, grid) -> None:
    x = DATA[kind](torch.randn(2000))
    dtype, integers = GRIDS[grid]
    assert found(HistogramObserver, [x], dtype, integers) > brute_force(x, integers) - 0.3


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint16])
@pytest.mark.parametrize("kind", ["gaussian", "relu", "outliers"])
def test_sixteen_bits(dtype, kind) -> None:
    x = DATA[kind](torch.randn(5000))
    info = torch.iinfo(dtype)
    full = (float(x.max().clamp(min=0)) - float(x.min().clamp(max=0))) / (info.max - info.min)
    even = 10 * math.log10(float(x.square().mean()) / (full**2 / 12))
    assert found(HistogramObserver, [x], dtype, Grid(info.min, info.max)) > even - 0.5


def test_scaling_by_a_power_of_two_changes_the_scale_alone() -> None:
    x = torch.randn(3000)
    scales, points = [], []
    for factor in (2.0**-90, 1.0, 2.0**90):
        observer = HistogramObserver(eps=0.0)
        observer(x * factor)
        scale, point = observer.calculate_qparams()
        scales.append(float(scale) / factor)
        points.append(int(point))
    assert len(set(scales)) == 1 and len(set(points)) == 1


def test_zero_counts_do_not_matter() -> None:
    torch.manual_seed(1)
    x = torch.randn(4000)
    plain, padded = HistogramObserver(), HistogramObserver()
    plain(x)
    padded(torch.cat([x, torch.zeros(4000)]))
    assert torch.equal(plain.calculate_qparams()[0], padded.calculate_qparams()[0])


def test_search_takes_one_histogram_or_many() -> None:
    counts = torch.rand(5, 512).double() * 100
    low, high = torch.full((5,), -250.0).double(), torch.full((5,), 200.0).double()
    floor = torch.full((5,), 1e-9).double()
    together = best_grid(HistogramTable(counts), low, high, floor, Grid(-128, 127))
    for i in range(5):
        part, *rest = (v[i : i + 1] for v in (counts, low, high, floor))
        one = best_grid(HistogramTable(part), *rest, Grid(-128, 127))
        assert torch.equal(one[0], together[0][i : i + 1])
        assert torch.equal(one[1], together[1][i : i + 1])


@pytest.mark.parametrize("size", [64, 300, 4000, 60_000])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("integers", [(-128, 127), (0, 255)])
def test_a_bounded_activation_fills_the_integers(size, sign, integers) -> None:
    # Backends fuse a clamp into the operator before it only if it is what the integers do anyway.
    observer = HistogramObserver(
        dtype=torch.int8 if integers[0] else torch.uint8, quant_min=integers[0]
    )
    for seed in range(4):
        x = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        observer(sign * (4 * x).clamp(0, 6))
    scale, point = observer.calculate_qparams()
    zero, bound = integers if sign > 0 else integers[::-1]
    assert int(point) == zero
    assert (int(point) + round(sign * 6 / float(scale)) - bound) * sign >= 0
