"""Control-flow operators as plain Python functions with the same meaning.

A prepared model runs these: observers inside see every call, and gradients flow as in any code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pt2q.ir.record import record_of


def run_cond(
    predicate: Tensor | bool, true_body: Any, false_body: Any, operands: Sequence[Any] = ()
) -> Any:
    """``true_body(*operands)`` if ``predicate`` else ``false_body(*operands)``."""
    return _run(true_body if bool(predicate) else false_body, *operands)


def run_while_loop(
    condition: Any, body: Any, carried: Sequence[Any], additional: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """Replace ``carried`` by ``body(*carried, *additional)`` while ``condition`` holds of them."""
    values = tuple(carried)
    while bool(_single(_run(condition, *values, *additional))):
        values = tuple(_run(body, *values, *additional))
    return values


def run_scan(
    body: Any, initial: Sequence[Any], sliced: Sequence[Tensor], additional: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """Fold ``body`` over the first dimension; returns the last carry and the stacked results."""
    carry = tuple(initial)
    rows = []
    for step in range(sliced[0].shape[0]):
        results = tuple(_run(body, *carry, *(x[step] for x in sliced), *additional))
        carry, row = results[: len(carry)], results[len(carry) :]
        rows.append(row)
    return (*carry, *(torch.stack(column) for column in zip(*rows, strict=True)))


def run_map(body: Any, sliced: Sequence[Tensor], additional: Sequence[Any] = ()) -> Any:
    """Apply ``body`` to each slice of the first dimension and stack the results."""
    rows = [
        tuple(_run(body, *(x[step] for x in sliced), *additional))
        for step in range(sliced[0].shape[0])
    ]
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _run(body: Any, *operands: Any) -> Any:
    """Call a body, and note that it ran: its observers may be those of others, which saw data."""
    record = record_of(body)
    if record is not None:
        record.ran = True
    return body(*operands)


def _single(result: Any) -> Any:
    return result[0] if isinstance(result, tuple | list) else result
