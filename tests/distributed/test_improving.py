"""Several processes win accuracy back as one does: to the bit."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from support.improving_ranks import (
    ALGORITHMS,
    COUNT,
    at_once,
    batch_of,
    four_bits,
    improve_in_groups,
    improved,
    program,
    state_of,
)
from support.thread_ranks import in_threads

from pt2q.algorithms import GPTQ, BatchNormStatistics, SmoothQuant
from pt2q.algorithms.layers import Use
from pt2q.algorithms.matrix import Product
from pt2q.algorithms.report import Report
from pt2q.algorithms.samples import Sample, Samples
from pt2q.algorithms.second_moments import Moments, moments
from pt2q.algorithms.task import GraphAlgorithm, Task
from pt2q.distributed import Ranks, calibrate
from pt2q.errors import BatchNormNotFoldedWarning
from pt2q.flow import convert_pt2e, prepare_pt2e
from pt2q.ir.module import QuantGraphModule


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k]
        for k, v in one.items()
    )


@pytest.fixture(scope="module")
def prepared() -> QuantGraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BatchNormNotFoldedWarning)
        made = prepare_pt2e(program(), four_bits())
    calibrate(made, [batch_of(i) for i in range(COUNT)])
    return made


@pytest.mark.parametrize(
    "algorithm", [SmoothQuant(insert=False), GPTQ(), BatchNormStatistics()], ids=lambda a: a.name
)
def test_three_do_what_one_does(algorithm: GraphAlgorithm, prepared: QuantGraphModule) -> None:
    batches = [batch_of(i) for i in range(COUNT)]
    copies = [copy.deepcopy(prepared) for _ in range(4)]

    def work(ranks: Ranks) -> Report:
        return algorithm.improve(Task(copies[ranks.rank + ranks.size // 3], batches, ranks=ranks))

    (alone,) = in_threads(1, work)
    assert any(row.kept for row in alone.rows)
    for report in in_threads(3, work):
        assert [replace(r, seconds=0) for r in report.rows] == [
            replace(r, seconds=0) for r in alone.rows
        ]
    # A weight's observer looks again when the weight has changed, at conversion at the latest.
    expected, *found = (state_of(convert_pt2e(copied)) for copied in copies)
    assert all(same(one, expected) for one in found)
    assert not same(state_of(convert_pt2e(prepared)), expected)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_second_moments_of_any_partition(data: st.DataObject) -> None:
    """Sums over calls, however they are shared out and ordered; and near the plain sums."""
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    owners = data.draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    order = data.draw(st.permutations(range(len(sizes))))
    generator = torch.Generator().manual_seed(len(sizes))
    scales = torch.tensor([1e-6, 1.0, 3e4, 0.0])
    pairs = [torch.randn(2, n, 4, generator=generator) * scales for n in sizes]
    form = Product(transposed=False)
    use = Use(None, None, None, None, None, form)  # type: ignore[arg-type]
    calls = [Sample(use, one, other, i) for i, (one, other) in enumerate(pairs)]

    def seen(ranks: Ranks) -> Moments:
        own = [calls[i] for i in order if ranks.size == 1 or owners[i] == ranks.rank]
        return moments(Samples(tuple(own), (), ranks=ranks))

    (alone,) = in_threads(1, seen)
    for found in in_threads(3, seen):
        assert torch.equal(found.within, alone.within) and torch.equal(found.across, alone.across)
    x, d = (
        torch.cat(parts).double() for parts in zip(*((b, a - b) for a, b in pairs), strict=True)
    )
    size = x.square().sum(0).sqrt()
    error = (alone.within[0] - x.t() @ x).abs()
    assert bool((error <= 1e-6 * size[:, None] * size).all())
    torch.testing.assert_close(alone.across[0], d.t() @ x, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning")
def test_any_number_of_processes_makes_the_same(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each of the others has
    try:
        alone = {str(a): improved(a) for a in ALGORITHMS}
        alone["best"] = at_once(effort="best")
    finally:
        torch.set_num_threads(before)
    changed = {name: any(row[3] for row in found.get("said", ())) for name, found in alone.items()}
    assert [name for name, kept in changed.items() if not kept] == ["best"]
    mp.spawn(improve_in_groups, (str(tmp_path),), nprocs=4)
    for size in (2, 3, 4):
        for rank in range(size):
            found = torch.load(tmp_path / f"{size}-{rank}.pt")
            for name, expected in alone.items():
                assert same(found[name], expected), (size, rank, name)
