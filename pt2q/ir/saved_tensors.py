"""What autograd keeps of a forward pass, in fewer bytes where not a bit is lost by it.

A tensor that is kept for the backward pass is kept whole, though what was rounded has 256 values
and of the output of a ReLU only the signs are asked for. Here both are kept as one byte an element
and made anew when the backward pass wants them, so only one is whole at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from pt2q.ir.torch_private import (
    is_saved_by_its_maker,
    saved_tensors_hooks,
    saves_with_hooks,
    version_of,
)

_BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}

# Below this, a look costs more than the bytes.
_FEW = 2**14


class SmallForm(ABC):
    """How a tensor is put into fewer bytes, and made of them again with the same values."""

    @abstractmethod
    def shrunk(self, tensor: Tensor) -> Tensor:
        """The small form of a tensor."""

    @abstractmethod
    def restored(self, small: Tensor) -> Tensor:
        """The tensor of a small form."""


@dataclass(eq=False)
class _Described:
    """What is known of a tensor: its form, which holds until it is written; where it is kept."""

    form: SmallForm
    version: int | None
    kept: ReferenceType[_Kept] | None = None


@dataclass(eq=False)
class _Kept:
    """One tensor as it is kept; ``version`` guards what is no copy."""

    stored: Any
    form: SmallForm | None = None
    version: int | None = None


class _Signs(SmallForm):
    """Which elements of a ReLU's output are not zero: the whole of what its gradient asks."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def shrunk(self, tensor: Tensor) -> Tensor:
        """1 where the bits, read as an integer, are positive: above zero, or NaN."""
        return tensor.view(_BITS[self.dtype]).clamp(0, 1).to(torch.int8)

    def restored(self, small: Tensor) -> Tensor:
        """1.0 and 0.0."""
        return small.to(self.dtype)


Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]
"""What packs a tensor that is saved, and what unpacks it."""


class _Keeper:
    """The hooks of one call; what others wanted to see saved is handed on to them.

    Args:
        outer: the hooks that were there before, such as those of a checkpoint.
    """

    def __init__(self, outer: Hooks | None) -> None:
        self.outer = outer
        self.described = WeakTensorKeyDictionary()

    def pack(self, tensor: Tensor) -> _Kept:
        """Keep a tensor."""
        if tensor.numel() < _FEW:
            return self._whole(tensor)
        described = self.described.get(tensor)
        if described is not None and described.version == version_of(tensor):
            return self._rounded(tensor.detach(), described)
        if is_saved_by_its_maker(tensor, "ReluBackward0") and tensor.dtype in _BITS:
            return self._small(tensor.detach(), _Signs(tensor.dtype))
        return self._whole(tensor)

    def _whole(self, tensor: Tensor) -> _Kept:
        if self.outer is not None:
            return _Kept(self.outer[0](tensor))
        return _Kept(tensor.detach(), version=version_of(tensor))

    def _rounded(self, tensor: Tensor, described: _Described) -> _Kept:
        """What several operators read is kept once."""
        kept = None if described.kept is None else described.kept()
        if kept is None or self.outer is not None:
            kept = self._small(tensor, described.form)
            described.kept = ref(kept)
        return kept

    def _small(self, tensor: Tensor, form: SmallForm) -> _Kept:
        small = form.shrunk(tensor)
        return _Kept(small if self.outer is None else self.outer[0](small), form)

    def unpack(self, kept: _Kept) -> Tensor:
        """Make a kept tensor anew."""
        stored: Tensor = kept.stored if self.outer is None else self.outer[1](kept.stored)
        if kept.form is not None:
            return kept.form.restored(stored)
        if self.outer is None and kept.version != version_of(stored):
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a tensor of shape {list(stored.shape)} is at version "
                f"{version_of(stored)}; expected version {kept.version}"
            )
        return stored


_keeping: ContextVar[_Keeper | None] = ContextVar("keeping", default=None)


@contextmanager
def saved_small() -> Iterator[None]:
    """Within it, what operators save is kept in its small form, where it has one.

    Gradients have the same bits. Not for what a compiler traces, which saves in its own way.
    """
    outer = saved_tensors_hooks()
    if not saves_with_hooks() or _stands_aside(outer):
        yield
        return
    keeper = _Keeper(outer)
    token = _keeping.set(keeper)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keeper.pack, keeper.unpack):
            yield
    finally:
        _keeping.reset(token)


def _stands_aside(outer: Hooks | None) -> bool:
    """Whether there is nothing to add to hooks: those of this module, and those of a checkpoint.

    A checkpoint saves nothing. It computes all of it again, where observers have moved on, so that
    what it finds is not of the form that was described.
    """
    if outer is None:
        return False
    keeps = isinstance(getattr(outer[0], "__self__", None), _Keeper)
    return keeps or getattr(outer[0], "__module__", "") == checkpoint.__module__


def describe(tensor: Tensor, form: Callable[[], SmallForm | None]) -> None:
    """Say how a tensor, as it is now, can be kept in fewer bytes; of use within `saved_small`.

    Args:
        tensor: what an operator may save for the backward pass.
        form: makes the form, or None if there is none; called if somebody wants it.
    """
    keeper = _keeping.get()
    if keeper is None or tensor.numel() < _FEW:
        return
    found = form()
    if found is not None:
        keeper.described[tensor] = _Described(found, version_of(tensor))
