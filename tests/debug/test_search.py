"""The search against all choices measured one by one."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import joblib
import pytest
import torch
from support import minilm
from support.planted_faults import config, everywhere, rows, scaled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.engine.walk import FLOAT, ROUNDED
from pt2q.debug import (
    Bound,
    Change,
    QuantizerSetup,
    SearchResult,
    Sensitivity,
    SensitivityRow,
    search,
    sensitivity,
)
from pt2q.debug.recipe_search.measuring import changes_of, shares
from pt2q.debug.recipe_search.table import Unit, best, cheapest, cost_of, noise_of
from pt2q.demo.digits import load_digits
from pt2q.demo.net import load_checkpoint
from pt2q.errors import DataError, SearchError
from pt2q.ir.module import QuantGraphModule
from pt2q.numerics.sqnr import sqnr
from pt2q.quantizers import Report

FORMS = ("float", "int8", "int4")


class Four(nn.Module):
    """Four layers of different size and fault."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.three, self.four = nn.Linear(16, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.two(F.relu(self.one(x))))
        return self.four(F.relu(self.three(x)))


class Counting(QuantizerSetup):
    """Counts how often the model is quantized."""

    made = 0

    def prepared(self, changes: Sequence[Change] = ()) -> tuple[QuantGraphModule, Report]:
        type(self).made += 1
        return super().prepared(changes)


@pytest.fixture(scope="module")
def setup() -> QuantizerSetup:
    torch.manual_seed(0)
    model = Four()
    scaled(model, "one", "two", torch.tensor([60.0, *[1.0] * 15]))  # type: ignore[arg-type]
    program = torch.export.export(model.eval(), rows(1)[0])
    return Counting(program, everywhere(), rows(6))


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor]]:
    return rows(2, seed=2)


@pytest.fixture(scope="module")
def found(setup: QuantizerSetup, batches: list[tuple[Tensor]]) -> SearchResult:
    return search(setup, batches, Bound(min_sqnr=30.0))


def measured(
    setup: QuantizerSetup, batches: list[tuple[Tensor]], changes: Sequence[Change]
) -> float:
    model, _ = setup.prepared(changes)
    with Walk(model, batches, [Lane.floating(), Lane.rounding()]) as walk:
        results = walk.finish()
    one, other = (
        torch.cat([leaf.flatten() for leaf in tree_leaves(results[lane])])
        for lane in (FLOAT, ROUNDED)
    )
    return float(sqnr(one, other))


def test_the_bound_is_met_by_the_cheapest_choice(
    setup: QuantizerSetup, batches: list[tuple[Tensor]], found: SearchResult
) -> None:
    assert found.met and found.chosen.value >= 30.0
    assert len(found.trials) <= math.ceil(math.log2(len(found.units) + 1))
    assert measured(setup, batches, found.changes) == pytest.approx(found.chosen.value, abs=1e-3)
    costs = []
    for forms in itertools.product(("float", "int8"), repeat=len(found.units)):
        assignment = dict(zip((u.name for u in found.units), forms, strict=True))
        if set(forms) == {"float"}:
            continue  # it loses nothing, and costs most
        if measured(setup, batches, changes_of(found.units, assignment)) >= 30.0:
            costs.append(cost_of(found.units, assignment, "macs"))
    assert found.chosen.cost <= 1.3 * min(costs)
    assert "float" in found.chosen.assignment.values() and found.share < 0.7


def test_units_are_layers_with_what_is_fused_to_them(found: SearchResult) -> None:
    by_name = {unit.name: unit for unit in found.units}
    assert set(by_name) == {"linear", "linear_1", "linear_2", "linear_3"}
    assert by_name["linear"].nodes == ("linear", "relu")
    assert (by_name["linear_2"].macs, by_name["linear_2"].numbers) == (32 * 16 * 64, 16 * 64)
    assert by_name["linear_2"].module == "three"


def test_a_new_budget_measures_no_layer_again(
    setup: QuantizerSetup, batches: list[tuple[Tensor]], found: SearchResult
) -> None:
    before = Counting.made
    for share in (0.3, 0.6, 1.0):
        result = search(setup, batches, Bound(max_cost=share), units=found.units)
        assert result.met and result.share <= share + 1e-9
        assert len(result.trials) == 1
    assert Counting.made - before == 6  # the float results and the choice, each time
    cheap = search(setup, batches, Bound(max_cost=0.01), units=found.units)
    assert not cheap.met and set(cheap.chosen.assignment.values()) == {"int8"}


def test_it_says_no_with_the_best_it_found(
    setup: QuantizerSetup, batches: list[tuple[Tensor]]
) -> None:
    result = search(setup, batches, Bound(min_sqnr=60.0), candidates=("int8", "int4"))
    assert not result.met
    assert result.chosen.value == max(trial.value for trial in result.trials) > 5
    assert "cannot be met" in result.text(80)
    assert json.loads(result.to_json())["met"] is False


def test_a_metric_may_drop_by_so_much(setup: QuantizerSetup, batches: list[tuple[Tensor]]) -> None:
    def spread(results: Sequence[Tensor], positions: Sequence[int]) -> float:
        return -sum(float((r - r.mean()).abs().mean()) for r in results) / len(results)

    result = search(
        setup, batches, Bound(max_drop=0.5), metric=spread, candidates=FORMS, evaluations=3
    )
    assert result.met and result.measure == "metric" and len(result.trials) <= 3
    assert result.share < 0.5


def test_what_the_backend_does_not_run_is_passed_over(
    setup: QuantizerSetup, batches: list[tuple[Tensor]]
) -> None:
    result = search(setup, batches, Bound(min_sqnr=10.0), candidates=("int16", *FORMS), minutes=5)
    assert set(result.units[0].noise) == set(FORMS)
    assert max(map(len, result.text(80).splitlines())) <= 80


def test_what_cannot_be_searched_is_said(
    setup: QuantizerSetup, batches: list[tuple[Tensor]]
) -> None:
    with pytest.raises(SearchError, match="one bound"):
        Bound()
    with pytest.raises(SearchError, match=r"found \['int7'\]"):
        search(setup, batches, Bound(min_sqnr=1.0), candidates=("int7",))
    with pytest.raises(SearchError, match="macs, bytes"):
        search(setup, batches, Bound(min_sqnr=1.0), cost="hours")
    with pytest.raises(SearchError, match="goes with a metric"):
        search(setup, batches, Bound(max_drop=1.0))
    with pytest.raises(DataError, match="no batch"):
        search(setup, [], Bound(min_sqnr=1.0))


def test_the_integer_program_is_that_of_all_choices() -> None:
    generator = torch.Generator().manual_seed(3)
    units = []
    for index in range(5):
        noise = torch.rand(2, generator=generator)
        macs = int(torch.randint(1, 50, (1,), generator=generator))
        losses = {"float": 0.0, "int8": float(noise[0]), "int4": float(noise.sum())}
        units.append(Unit(f"u{index}", (), "", macs, 8 * macs, losses))
    names = [unit.name for unit in units]
    every = [dict(zip(names, f, strict=True)) for f in itertools.product(FORMS, repeat=5)]
    for most in (0.0, 0.4, 1.5, 99.0):
        allowed = [a for a in every if noise_of(units, a) <= most]
        made = cheapest(units, "bytes", most)
        assert made is not None
        least = min(cost_of(units, a, "bytes") for a in allowed)
        assert cost_of(units, made, "bytes") == pytest.approx(least, rel=1e-3)
    budget = 0.5 * cost_of(units, dict.fromkeys(names, "float"), "macs")
    made = best(units, "macs", budget)
    assert made is not None and cost_of(units, made, "macs") <= budget
    least = min(noise_of(units, a) for a in every if cost_of(units, a, "macs") <= budget)
    assert noise_of(units, made) == pytest.approx(least, rel=1e-3, abs=1e-4)
    assert best(units, "macs", 1.0) is None


def against_first_and_last(
    setup: QuantizerSetup, batches: list[Any], cost: str
) -> tuple[SearchResult, float]:
    """The search for what leaving the first and the last layer in float keeps, and its cost."""
    ranked = search(setup, batches, Bound(max_cost=1.0), cost=cost)
    names = [unit.name for unit in ranked.units]
    ends = {n: "float" if n in (names[0], names[-1]) else "int8" for n in names}
    usual = measured(setup, batches, changes_of(ranked.units, ends))
    found = search(setup, batches, Bound(min_sqnr=usual), units=ranked.units, cost=cost)
    return found, cost_of(ranked.units, ends, cost)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 4])
def test_digits_with_less_in_float_than_first_and_last_layer(bits: int) -> None:
    images = load_digits().train[:48].split(4)
    low = -(2 ** (bits - 1))
    chosen = config(weight_qmin=low + 1, weight_qmax=-low - 1)  # stored as int8, on any kernel
    program = torch.export.export(load_checkpoint().eval(), (images[0],))
    setup = QuantizerSetup(program, everywhere(chosen), [(x,) for x in images[:8]])
    found, usual = against_first_and_last(setup, [(x,) for x in images[8:]], "macs")
    assert found.met and found.chosen.cost < usual


@pytest.mark.slow
def test_minilm_with_less_in_float_than_first_and_last_layer() -> None:
    texts = minilm.encode(minilm.sentences()[:20], 16)
    program = minilm.export(minilm.load(), texts[0])
    setup = QuantizerSetup(program, everywhere(), texts[:12])
    found, usual = against_first_and_last(setup, texts[12:16], "macs")
    assert found.met and found.chosen.cost < usual


def test_shares_of_a_ranking_are_put_together(
    setup: QuantizerSetup, batches: list[tuple[Tensor]], found: SearchResult
) -> None:
    with joblib.parallel_config(backend="sequential"):
        shared = search(setup, batches, Bound(min_sqnr=30.0), processes=3)
    assert shared.to_json() == found.to_json()


@pytest.mark.slow
def test_several_processes_find_what_one_finds(
    setup: QuantizerSetup, batches: list[tuple[Tensor]]
) -> None:
    prepared, _ = setup.prepared()
    one = sensitivity(prepared, batches, passes=None)
    told: list[tuple[int, int]] = []
    several = sensitivity(
        prepared, batches, passes=None, processes=3, progress=lambda *at: told.append(at[:2])
    )
    assert several.to_json() == one.to_json()
    assert [done for done, _ in told][-1] == len(one) and len(told) == 3


def test_layers_share_the_noise_of_all() -> None:
    figures = [("a", 20.0, 30.0), ("b", 30.0, 20.0), ("c", 40.0, 17.0)]
    rows = [SensitivityRow((n,), (), "layer", one, other, 1) for n, one, other in figures]
    found = shares(Sensitivity(tuple(rows), 18.0, "SQNR in dB", 1, 1.0))
    assert sum(found.values()) == pytest.approx(10**-1.8)
    # Of a: the mean of 0.01 and 0.01585 - 0.001; c only makes it better.
    assert found["a"] / found["b"] == pytest.approx(
        (0.01 + 0.014849) / (0.001 + 0.005849), rel=1e-3
    )
    assert found["c"] == 0
    lost = Sensitivity(tuple(rows), -1.0, "SQNR in dB", 1, 1.0)
    assert shares(lost) == pytest.approx({"a": 0.01, "b": 0.001, "c": 0.0001})
