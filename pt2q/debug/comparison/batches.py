"""The inputs of a comparison: batches, and the flat inputs of one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from pt2q.errors import ComparisonError
from pt2q.ir.module import InputCheck
from pt2q.ir.torch_private import pytree


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


def flat_inputs(batch: Any, check: InputCheck) -> list[Any]:
    """The inputs of one call, flat.

    Args:
        batch: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        check: what the model was exported with.

    Raises:
        ComparisonError: the model takes another number of inputs.
        InputShapeError: an input has another size.
    """
    args, kwargs = _arguments(batch, check)
    leaves = pytree.tree_leaves((args, kwargs))
    if len(leaves) != len(check.names):
        raise ComparisonError(
            f"the model takes {len(check.names)} input(s) {list(check.names)}, a batch holds "
            f"{len(leaves)}. A tuple is the arguments of one call; several batches come as a list "
            "of tuples"
        )
    check(None, args, kwargs)  # type: ignore[arg-type]
    return leaves


def _arguments(batch: Any, check: InputCheck) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(batch, Mapping):
        return tuple(batch) if isinstance(batch, tuple) else (batch,), {}
    for names in (check.keywords, check.names):
        if set(batch) == set(names):
            return (), {name: batch[name] for name in names}
    return (), dict(batch)


def own_inputs(leaves: list[Any]) -> list[Any]:
    """Copies, because a model may write into its inputs."""
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
