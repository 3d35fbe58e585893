"""Several processes win accuracy back as one does: to the bit."""

from __future__ import annotations

import copy
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
    quantize_among,
    state_of,
)
from support.thread_ranks import in_threads
from support.threads import one_thread

from pt2q.algorithms import GPTQ, AdaRound, BatchNormStatistics, SmoothQuant
from pt2q.algorithms.layers import Use
from pt2q.algorithms.layerwise import Proposed, Work
from pt2q.algorithms.matrix import Product
from pt2q.algorithms.report import Report
from pt2q.algorithms.samples import Sample, Samples
from pt2q.algorithms.second_moments import Moments, moments
from pt2q.algorithms.task import GraphAlgorithm, Task
from pt2q.distributed import Ranks, calibrate
from pt2q.errors import BatchNormNotFoldedWarning, DistributedError
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


class Stopped(Exception):
    pass


@dataclass(frozen=True)
class Stopping(GPTQ):
    """Counts layers, and stops before one of them."""

    both_ways: bool = False
    stop: int = 99
    seen: list[str] = field(default_factory=list, repr=False)

    def propose(self, work: Work) -> Iterator[Proposed]:
        if len(self.seen) == self.stop:
            raise Stopped
        self.seen.append(work.layer.name)
        return super().propose(work)

    def __repr__(self) -> str:
        return "the same settings"


def test_a_stopped_run_goes_on_from_the_layer(tmp_path: Path, prepared: QuantGraphModule) -> None:
    batches = [batch_of(i) for i in range(COUNT)]
    stopped, resumed, unbroken = (copy.deepcopy(prepared) for _ in range(3))
    with pytest.raises(Stopped):
        Stopping(stop=2)(stopped, batches, resume=tmp_path)
    again = Stopping()
    report = again(resumed, batches, resume=tmp_path)
    assert again.seen == ["linear", "linear_1"]
    expected = Stopping()(unbroken, batches)
    rows = [[replace(row, seconds=0) for row in one.rows] for one in (report, expected)]
    assert rows[0] == rows[1]
    assert same(state_of(convert_pt2e(resumed)), state_of(convert_pt2e(unbroken)))
    with pytest.raises(DistributedError, match="another model, other data or other settings"):
        Stopping()(copy.deepcopy(prepared), batches, seed=1, resume=tmp_path)


@pytest.mark.parametrize(
    "algorithm", [AdaRound(steps=4), AdaRound(steps=4, block=2), SmoothQuant()], ids=str
)
def test_what_is_kept_is_taken(
    algorithm: GraphAlgorithm, tmp_path: Path, prepared: QuantGraphModule
) -> None:
    """Everything from the folder: no step is done again, and draws go on as they did."""
    batches = [batch_of(i) for i in range(COUNT)]
    first, second = copy.deepcopy(prepared), copy.deepcopy(prepared)
    report = algorithm(first, batches, resume=tmp_path)
    assert len(list(tmp_path.iterdir())) >= 2
    with pytest.MonkeyPatch.context() as patch:
        for place in ("SoftRounding.of", "AdaRound._minimise"):
            patch.setattr(f"pt2q.algorithms.adaround.{place}", None)
        patch.setattr("pt2q.algorithms.smooth_quant.StrengthSearch.__call__", None)
        again = algorithm(second, batches, resume=tmp_path)
    assert [row.layer for row in again.rows if row.kept] == [r.layer for r in report.rows if r.kept]
    assert same(state_of(convert_pt2e(first)), state_of(convert_pt2e(second)))


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


def exit_codes(folder: Path, dies: str) -> list[int | None]:
    """Three processes of which nobody but they themselves looks after the others."""
    context = mp.get_context("spawn")
    started = [
        context.Process(target=quantize_among, args=(rank, str(folder), 3, dies))
        for rank in range(3)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    return [process.exitcode for process in started]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning")
def test_a_killed_process_ends_all_and_the_run_goes_on(tmp_path: Path) -> None:
    """Killed while it calibrates, killed again at a layer, and then to the end."""
    for dies in ("calibrating", "improving"):
        assert exit_codes(tmp_path, dies) == [0, -signal.SIGKILL, 0]
        for rank in (0, 2):
            said = tmp_path / f"said-{rank}.pt"
            assert "another process is gone" in torch.load(said)
            said.unlink()
        assert not list(tmp_path.glob("made-*"))
    assert len(list((tmp_path / "kept" / "1-gptq").iterdir())) == 2
    assert exit_codes(tmp_path, "") == [0, 0, 0]
    with one_thread():
        unbroken = at_once(algorithms=[SmoothQuant(), GPTQ()])
    for rank in range(3):
        assert same(torch.load(tmp_path / f"made-{rank}.pt"), unbroken)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning")
def test_any_number_of_processes_makes_the_same(tmp_path: Path) -> None:
    with one_thread():
        alone = {str(a): improved(a) for a in ALGORITHMS}
        alone["best"] = at_once(effort="best")
    changed = {name: any(row[3] for row in found.get("said", ())) for name, found in alone.items()}
    assert [name for name, kept in changed.items() if not kept] == ["best"]
    mp.spawn(improve_in_groups, (str(tmp_path),), nprocs=4)
    for size in (2, 3, 4):
        for rank in range(size):
            found = torch.load(tmp_path / f"{size}-{rank}.pt")
            for name, expected in alone.items():
                assert same(found[name], expected), (size, rank, name)
