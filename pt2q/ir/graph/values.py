"""What export records of a node's value, and how new values of that kind are made."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from pt2q.ir.torch_private import FakeTensor, disable_current_modes


def value_of(node: Node) -> Any:
    """The fake value recorded for a node by export, or None."""
    return node.meta.get("val")


def is_float_tensor(node: object) -> bool:
    """Whether a node's output is one floating point tensor (not a tuple, scalar or integer)."""
    if not isinstance(node, Node):
        return False
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def fake_like(value: Any, dtype: torch.dtype) -> Any:
    """The fake value of ``value`` stored as another dtype.

    Args:
        value: a fake tensor, or anything else (given back unchanged).
        dtype: the new dtype; shape, strides and device stay.
    """
    if not isinstance(value, torch.Tensor) or value.dtype == dtype:
        return value
    if not isinstance(value, FakeTensor):
        return torch.empty_like(value, dtype=dtype, device="meta")
    # Built directly: dispatching `to` through the fake mode costs 10 to 20 times as much.
    with disable_current_modes():
        element = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device="meta")
    return FakeTensor(value.fake_mode, element, value.device)


def fake_constant(value: torch.Tensor, like: Any) -> Any:
    """A fake value for a new constant, in the fake mode that ``like`` belongs to.

    Args:
        value: the real tensor.
        like: a fake tensor of the same graph; without one the meta tensor is used.
    """
    with disable_current_modes():
        element = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if not isinstance(like, FakeTensor):
        return element
    return FakeTensor(like.fake_mode, element, value.device)
