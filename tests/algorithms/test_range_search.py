"""Ranges of activations are found by what is computed from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.planted import calibrated, quality
from support.results import assert_same
from support.small_quantizers import SmallQuantizer
from torch import Tensor, nn

from pt2q import convert_pt2e
from pt2q.algorithms import ScaleSearch
from pt2q.algorithms.engine import Program
from pt2q.algorithms.engine.rounding import Grid, grid_of
from pt2q.algorithms.pinned import PinnedObserver
from pt2q.algorithms.range_search import range_of, search
from pt2q.algorithms.ranges import find_ranges
from pt2q.observers import MinMaxObserver

RANGES = ScaleSearch(weights=False)


class Gated(nn.Module):
    """What is far below zero is cut off: a range that covers it wastes its integers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(16, 32), nn.Linear(32, 8)
        with torch.no_grad():
            self.one.bias[::2] -= 30

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.other(nn.functional.silu(self.one(x)))
        return y


def batches(count: int = 8) -> list[Any]:
    return [(torch.randn(32, 16),) for _ in range(count)]


def searched(network: nn.Module, data: list[Any]) -> tuple[Any, Any, Any]:
    plain = calibrated(network, SmallQuantizer(), data)
    found = copy.deepcopy(plain)
    return plain, found, RANGES(found, data)


def test_a_side_that_an_activation_cuts_off_gets_no_integers() -> None:
    network, data = Gated().eval(), batches()
    plain, found, report = searched(network, data)
    row = next(row for row in report.rows if row.layer == "linear")
    assert row.kept and row.after > row.before + 3 and row.algorithm == "scale_search"
    fresh = batches()
    assert quality(network, found, fresh) > quality(network, plain, fresh) + 1


def _mean_square(x: Tensor, weights: Tensor) -> Callable[[Grid], float]:
    return lambda grid: float(((grid.round(x) - x) * weights).square().sum())


@pytest.mark.parametrize("scheme", [torch.per_tensor_symmetric, torch.per_tensor_affine])
def test_the_least_error_of_those_tried(scheme: torch.qscheme) -> None:
    """One value far out that nothing reads: the range goes to where the others are."""
    x = torch.cat([torch.randn(1000), torch.tensor([12.0])])
    weights = torch.ones_like(x)
    weights[-1] = 0.0
    observer = MinMaxObserver(dtype=torch.int8, qscheme=scheme, quant_min=-8, quant_max=7)
    observer(x)
    grid = grid_of(observer, 1)
    error = _mean_square(x, weights)
    best = search(grid, observer, error)
    assert error(best) < 0.5 * error(grid)
    assert float(best.scale) < 0.6 * float(grid.scale)
    span = range_of(best)
    assert span.low <= 0 <= span.high
    assert (best.quant_min, best.quant_max, best.dtype) == (-8, 7, torch.int8)


def test_values_that_share_a_range_keep_sharing() -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(16, 16), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.other(nn.functional.max_pool1d(self.one(x)[:, None], 2)[:, 0])
            return y

    from pt2q.quantizers import XNNPACKQuantizer

    network, data = Pools().eval(), batches()
    prepared = calibrated(network, XNNPACKQuantizer(), data)
    shared = [one for one in find_ranges(Program(prepared))[0] if len(one.nodes) > 1]
    RANGES(prepared, data)
    for one in shared:
        assert len({id(prepared.get_submodule(str(n.target))) for n in one.nodes}) == 1
    assert float(quality(network, prepared, data)) > 20


def test_the_same_twice_and_what_is_converted() -> None:
    network, data = Gated().eval(), batches()
    states = []
    for _ in range(2):
        prepared = calibrated(network, SmallQuantizer(), data)
        RANGES(prepared, data)
        kept = {
            float(m.calculate_qparams()[0])
            for m in prepared.modules()
            if isinstance(m, PinnedObserver)
        }
        converted = convert_pt2e(prepared)
        written = {a for n in converted.graph.nodes for a in n.args if isinstance(a, float)}
        assert kept <= written
        states.append(converted)
    assert_same(states[0](*data[0]), states[1](*data[0]))
    assert states[0].code == states[1].code
