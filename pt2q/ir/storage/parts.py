"""Tensors without what else lies in their storage, to be written or sent; strides stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pt2q.ir.torch_private import pytree


class Part:
    """A tensor without the rest of its storage.

    Args:
        value: dense, with at least one element.
    """

    def __init__(self, value: Tensor) -> None:
        sizes = zip(value.shape, value.stride(), strict=True)
        span = 1 + sum((size - 1) * stride for size, stride in sizes)
        self.shape, self.stride = tuple(value.shape), value.stride()
        self.flat = value.as_strided((span,), (1,)).clone()

    def whole(self) -> Tensor:
        """The tensor, with its strides."""
        return self.flat.as_strided(self.shape, self.stride)


def packed(value: Any) -> Any:
    """A value that nobody writes into, its tensors without what else lies in their storage.

    Args:
        value: tensors in lists, tuples and dicts; anything else stays as it is.
    """
    return pytree.tree_map_only(Tensor, _part, value)


def _part(value: Tensor) -> Any:
    plain = type(value) is Tensor and value.layout is torch.strided and value.numel() > 0
    value = value.detach()
    if not plain or value.untyped_storage().nbytes() == value.numel() * value.element_size():
        return value
    return Part(value)


def unpacked(value: Any) -> Any:
    """What `packed` was given.

    Args:
        value: what it returned.
    """
    return pytree.tree_map_only(Part, Part.whole, value)
