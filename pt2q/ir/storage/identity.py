"""Which memory a tensor lies in: the one place that says when two tensors share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pt2q.ir.torch_private import FakeTensor, storage_address


def has_storage(tensor: Tensor) -> bool:
    """Whether a tensor is a window on a storage: strided, and not one that wraps others."""
    return type(tensor) in (Tensor, nn.Parameter, FakeTensor) and tensor.layout is torch.strided


def storage_of(tensor: Tensor) -> int:
    """The same number for two tensors, while both live, exactly if they share storage.

    Args:
        tensor: one without a storage of its own is like itself alone.
    """
    return storage_address(tensor) if has_storage(tensor) else id(tensor)


def place_of(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors, while both live, exactly if they are the same view of one storage."""
    key = storage_of(tensor)
    if not has_storage(tensor):
        return (key,)
    window = int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())
    return key, *window, tensor.dtype


def span_of(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage between the first and the last element of a tensor.

    Args:
        tensor: an empty one spans nothing; one without a storage spans one byte of its own.
    """
    if not has_storage(tensor):
        return 0, 1
    if tensor.numel() == 0:
        return 0, 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((int(size) - 1) * int(step) for size, step in steps)
    start, item = int(tensor.storage_offset()), tensor.element_size()
    return start * item, (start + last + 1) * item


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share storage with each other as the tensors do.

    Args:
        tensors: by name; one tensor may have several names.
    """
    storages: dict[int, Tensor] = {}
    made: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in made:
            made[id(tensor)] = _copy(tensor, storages)
    return {name: made[id(tensor)] for name, tensor in tensors.items()}


def _copy(tensor: Tensor, storages: dict[int, Tensor]) -> Tensor:
    value = tensor.detach()
    if not has_storage(value):
        copied = value.clone()  # a subclass knows best what its copy is
    else:
        key = storage_of(value)
        if key not in storages:
            whole = torch.empty(0, dtype=torch.uint8, device=value.device)
            storages[key] = whole.set_(value.untyped_storage().clone())
        copied = value.new_empty(0).set_(
            storages[key].untyped_storage(), value.storage_offset(), value.shape, value.stride()
        )
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied
