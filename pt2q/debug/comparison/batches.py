"""The batches of a comparison, and copies of their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from pt2q.errors import ComparisonError


def batches_of(inputs: Any) -> Iterator[Any]:
    """The batches that a user gave: one call's arguments, or an iterable of batches.

    Raises:
        ComparisonError: it is neither.
    """
    if isinstance(inputs, Tensor | tuple | Mapping):
        yield inputs
    elif isinstance(inputs, Iterable):
        yield from inputs
    else:
        raise ComparisonError(
            f"inputs must be a tuple of arguments or an iterable of batches, found "
            f"{type(inputs).__name__}"
        )


def own_inputs(leaves: list[Any]) -> list[Any]:
    """Copies, because a model may write into its inputs."""
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
