"""What several observers saw, put together, is what one would have seen: to the bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.observing import same
from torch import Tensor

import pt2q.observers
from pt2q.errors import MergeError
from pt2q.observers import (
    FakeQuantize,
    FakeQuantizeBase,
    FixedQParamsFakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    GroupFakeQuantize,
    HistogramObserver,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    PerGroupMinMaxObserver,
    RecordingObserver,
)

# Few values that are kept, many that are counted, and so many that samples are taken of them.
SIZES = (6, 600, 40_000)
OBSERVERS: dict[str, Callable[[], Any]] = {
    "histogram": HistogramObserver,
    "histogram, symmetric": lambda: HistogramObserver(qscheme=torch.per_tensor_symmetric),
    "histogram, 4 bits": lambda: HistogramObserver(quant_min=-8, quant_max=7),
    "smallest and largest": MinMaxObserver,
    "per channel": lambda: PerChannelMinMaxObserver(ch_axis=0),
    "moving average": lambda: MovingAverageMinMaxObserver(averaging_constant=0.1),
    "moving average per channel": lambda: MovingAveragePerChannelMinMaxObserver(ch_axis=0),
    "per group": lambda: PerGroupMinMaxObserver(group_size=3),
    "trained, watching": lambda: watching(FakeQuantize(MovingAverageMinMaxObserver)),
    "trained histogram, watching": lambda: watching(FakeQuantize(HistogramObserver)),
    "fused, watching": lambda: watching(FusedMovingAvgObsFakeQuantize()),
    "learned, watching": lambda: watching(LearnableFakeQuantize(MinMaxObserver)),
}


def watching(fake: FakeQuantizeBase) -> FakeQuantizeBase:
    fake.disable_fake_quant()
    return fake


def test_every_observer_is_here_or_has_nothing_to_merge() -> None:
    """One that is new to `pt2q.observers` has to be entered."""
    tried = {type(make()) for make in OBSERVERS.values()} | {RecordingObserver}
    found = {
        cls
        for cls in vars(pt2q.observers).values()
        if isinstance(cls, type) and issubclass(cls, ObserverBase | FakeQuantizeBase)
    }
    # Weights in groups are watched anew at each step, and what is fixed is not watched.
    found -= {GroupFakeQuantize, FixedQParamsFakeQuantize}
    left = {cls for cls in found - tried if not inspect.isabstract(cls)}
    assert {MinMaxObserver, FusedMovingAvgObsFakeQuantize} <= found
    assert [cls for cls in left if not getattr(cls, "stateless", False)] == []


def sizes_of(kind: str) -> tuple[int, ...]:
    """A weight keeps its shape."""
    return (600,) if kind == "per group" else SIZES


def drawn(index: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(2, size // 2, generator=generator) * (1 + index % 3)


def seen_by(make: Callable[[], Any], batches: dict[int, Tensor]) -> Any:
    observer = make()
    for index, batch in batches.items():
        observer.at_batch(index)
        observer(batch)
    return observer


def alike(one: Any, other: Any) -> bool:
    return same(one.calculate_qparams(), other.calculate_qparams())


@pytest.mark.parametrize("kind", OBSERVERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_partition_in_any_order(kind: str, data: st.DataObject) -> None:
    """Against one observer of everything; some of the processes may have seen nothing."""
    sizes = data.draw(st.lists(st.sampled_from(sizes_of(kind)), min_size=1, max_size=7))
    batches = {i: drawn(i, size) for i, size in enumerate(sizes)}
    owners = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    order = data.draw(st.permutations(range(4)))
    make = OBSERVERS[kind]
    parts = [
        seen_by(make, {i: b for i, b in batches.items() if owners[i] == rank}).statistics()
        for rank in order
    ]
    merged, alone = make(), seen_by(make, batches)
    merged.merge(parts)
    alone.merge([alone.statistics()])
    assert alike(merged, alone)
    plain = make()
    for batch in batches.values():
        plain(batch)
    assert alike(merged, plain)
    # What was merged goes on as one observer does.
    for observer in (merged, plain):
        observer.at_batch(None)
        observer(drawn(99, 600))
    assert alike(merged, plain)


def test_recordings_come_in_the_order_of_batches() -> None:
    parts = [seen_by(RecordingObserver, {i: torch.full((2,), float(i))}) for i in (2, 0, 1)]
    merged = RecordingObserver()
    merged.merge([part.statistics() for part in parts])
    assert [float(x[0]) for x in merged.get_tensor_value()] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("kind", OBSERVERS)
def test_what_is_kept_brings_back_the_same(kind: str) -> None:
    """As a checkpoint does: stored, restored, and gone on with."""
    sizes = sizes_of(kind)
    make, batches = OBSERVERS[kind], {i: drawn(i, sizes[i % len(sizes)]) for i in range(6)}
    half = seen_by(make, dict(list(batches.items())[:3]))
    restored = make()
    restored.restore(half.statistics())
    for index in range(3, 6):
        restored.at_batch(index)
        restored(batches[index])
    whole = seen_by(make, batches)
    for observer in (restored, whole):
        observer.merge([observer.statistics()])
    assert alike(restored, whole)


def test_an_observer_that_does_not_say_how_is_refused() -> None:
    class Own(ObserverBase):
        def forward(self, x: Tensor) -> Tensor:
            return x

        def calculate_qparams(self) -> tuple[Tensor, Tensor]:
            return torch.ones(1), torch.zeros(1)

    with pytest.raises(MergeError, match="Own does not say how"):
        Own().merge([])
