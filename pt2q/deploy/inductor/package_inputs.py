"""What a compiled package takes: its machine code reads memory as if every call fitted.

Sizes, types and strides of the inputs are compiled in, and nothing checks them: a call that
differs computes from foreign memory. So they are written into the package, compared with each
call, and tensors in another memory order are copied into the one that was compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pt2q.deploy.given_tensors import why_no_memory
from pt2q.errors import InputShapeError

Size = int | tuple[str, int, int | None] | None


@dataclass(frozen=True)
class PackageInput:
    """One input of a package.

    Args:
        name: as exported.
        dtype: such as ``float32``; "" for an input that is no tensor, and is compiled in.
        sizes: per dimension a number; a name with the least and the largest size, the same in
            all dimensions of that name; or None for a size that is computed from others.
        order: the dimensions from the largest stride to the smallest.
        value: what an input that is no tensor was exported with, as text.
        written: the model writes into it.
    """

    name: str
    dtype: str = ""
    sizes: tuple[Size, ...] = ()
    order: tuple[int, ...] = ()
    value: str = ""
    written: bool = False

    def fitted(self, given: Any, seen: dict[str, int]) -> Any:
        """The input as the code reads it: itself, or a copy in the memory order of the code.

        Args:
            given: what the call has.
            seen: sizes by name, found so far in this call; added to.

        Raises:
            InputShapeError: its kind, type or shape is another.
        """
        if not self.dtype:
            return self._constant(given)
        if not isinstance(given, Tensor):
            raise InputShapeError(
                f"input {self.name!r} is a tensor of {self.dtype}, found {type(given).__name__}"
            )
        if wrong := why_no_memory(given):
            raise InputShapeError(f"input {self.name!r} {wrong}")
        found = str(given.dtype).removeprefix("torch.")
        if found != self.dtype:
            raise InputShapeError(f"input {self.name!r} is of type {self.dtype}, found {found}")
        self._check_sizes(given, seen)
        return _in_order(given, self.order)

    def _constant(self, given: Any) -> Any:
        if repr(given) != self.value:
            raise InputShapeError(
                f"input {self.name!r} was compiled in as {self.value}, found {given!r}"
            )
        return given

    def _check_sizes(self, given: Tensor, seen: dict[str, int]) -> None:
        if given.dim() != len(self.sizes):
            raise InputShapeError(
                f"input {self.name!r} has {len(self.sizes)} dimensions, found shape "
                f"{tuple(given.shape)}"
            )
        for axis, (expected, found) in enumerate(zip(self.sizes, given.shape, strict=True)):
            wanted = _why_not(expected, found, seen)
            if wanted:
                raise InputShapeError(
                    f"input {self.name!r} has size {wanted} in dimension {axis}, found shape "
                    f"{tuple(given.shape)}"
                )


def _why_not(expected: Size, found: int, seen: dict[str, int]) -> str:
    """What a size should be; "" if it is."""
    if expected is None:
        return ""
    if isinstance(expected, int):
        return "" if found == expected else str(expected)
    name, least, most = expected
    if found < least or (most is not None and found > most):
        return f"from {least} to {most}" if most is not None else f"{least} or more"
    other = seen.setdefault(name, found)
    return "" if other == found else f"{other}, as another input,"


def _in_order(given: Tensor, order: Sequence[int]) -> Tensor:
    strides, step = [0] * given.dim(), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= given.shape[dim]
    dims = range(given.dim())
    if all(given.shape[d] == 1 or given.stride(d) == strides[d] for d in dims):
        return given
    return torch.empty_strided(given.shape, tuple(strides), dtype=given.dtype).copy_(given)


def dense(given: Any) -> Any:
    """An example input without gaps or overlaps in memory, in the order that it has."""
    if not isinstance(given, Tensor):
        return given
    return _in_order(given, memory_order(given.stride()))


def memory_order(strides: Sequence[int]) -> tuple[int, ...]:
    """The dimensions from the largest stride to the smallest."""
    return tuple(sorted(range(len(strides)), key=lambda dim: (-strides[dim], dim)))
