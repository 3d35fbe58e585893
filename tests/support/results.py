"""What calls give back: the tensors of it, and whether two results agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def leaves(result: Any) -> list[Tensor]:
    """The tensors of a result, flat."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def assert_same(one: Any, other: Any, atol: float = 0.0) -> None:
    """Two results agree: exactly, or within ``atol`` absolute and relative."""
    first, second = leaves(one), leaves(other)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=atol)
