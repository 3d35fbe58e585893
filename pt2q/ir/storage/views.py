"""Which tensors of a model share storage, to be told after they were pickled one by one.

``torch.save`` keeps views of one storage together; plain ``pickle`` gives each its own copy of the
whole storage, and what is written through one is no longer seen through the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pt2q.ir.storage.identity import has_storage, storage_of


@dataclass(frozen=True)
class View:
    """A tensor in the storage of another one.

    Args:
        at: its position in the list of tensors.
        owner: the position of the first tensor with that storage.
        offset: in elements of its dtype.
        shape, stride: as `torch.as_strided` takes them.
    """

    at: int
    owner: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def views_among(tensors: Sequence[Tensor]) -> tuple[View, ...]:
    """The tensors that share storage with an earlier one without being that one.

    Args:
        tensors: in an order that can be told again; one tensor may be in it several times.
    """
    owners: dict[int, int] = {}
    seen: set[int] = set()
    found = []
    for at, tensor in enumerate(tensors):
        if id(tensor) in seen or not _has_data(tensor):
            continue
        seen.add(id(tensor))
        owner = owners.setdefault(storage_of(tensor), at)
        if owner != at:
            shape, stride = tuple(tensor.shape), tuple(tensor.stride())
            found.append(View(at, owner, int(tensor.storage_offset()), shape, stride))
    return tuple(found)


def _has_data(tensor: Tensor) -> bool:
    return has_storage(tensor) and tensor.device.type != "meta" and tensor.numel() > 0


def restore_views(tensors: Sequence[Tensor], views: Sequence[View]) -> None:
    """Put tensors back into the storages they shared; nothing is done where they share them still.

    Args:
        tensors: those of `views_among`, in the same order, with the same values.
        views: what it gave.
    """
    with torch.no_grad():
        for view in views:
            storage = tensors[view.owner].untyped_storage()
            tensors[view.at].set_(storage, view.offset, view.shape, view.stride)
