"""What observers keep between batches lies side by side, and no more is kept than that."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor

from pt2q.observers import HistogramObserver
from pt2q.observers.histogram.side_by_side import kept

MEBIBYTE = 2**20


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_small_tensors_share_storage_and_large_ones_do_not() -> None:
    given = [torch.randn(n) for n in (1, 4096, 100, 2**16)]
    found = [kept(x) for x in given]
    assert all(torch.equal(a, b) for a, b in zip(found, given, strict=True))
    assert not {address(x) for x in found} & {address(x) for x in given}
    assert len({address(x) for x in found[:3]}) <= 2  # a block may be full in between
    assert found[3].untyped_storage().nbytes() == 4 * 2**16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_cloned(dtype: torch.dtype) -> None:
    x = torch.randn(8).to(dtype)
    assert torch.equal(kept(x), x) and kept(x).untyped_storage().nbytes() < 128


def test_blocks_are_filled() -> None:
    parts = [kept(torch.full((4096,), float(i))) for i in range(500)]
    blocks = {address(part): part.untyped_storage().nbytes() for part in parts}
    assert len(blocks) in (8, 9) and set(blocks.values()) == {MEBIBYTE}
    assert all((part == i).all() for i, part in enumerate(parts))


def watching(count: int) -> list[HistogramObserver]:
    observers = [HistogramObserver() for _ in range(count)]
    for turn in range(2):
        for observer in observers:
            observer(torch.randn(50_000 + turn))
    return observers


def test_many_observers_keep_a_few_blocks() -> None:
    waiting = [o.histogram._waiting for o in watching(40)]
    lists = [(*w.values, *w.minima, *w.maxima) for w in waiting]
    parts = [part for one in lists for part in one]
    owned = {address(part): part.untyped_storage().nbytes() for part in parts}
    wanted = sum(part.numel() * part.element_size() for part in parts)
    assert sum(owned.values()) <= 1.2 * wanted + 2 * MEBIBYTE


def test_a_copy_and_a_pickle_hold_the_values_alone() -> None:
    (observer,) = watching(1)
    stored = io.BytesIO()
    torch.save(observer, stored)
    assert stored.tell() < 120_000
    stored.seek(0)
    others = copy.deepcopy(observer), torch.load(stored, weights_only=False)
    x = torch.randn(50_000)
    for one in (observer, *others):
        one(x)
    expected = observer.calculate_qparams()
    for other in others:
        found = other.calculate_qparams()
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
