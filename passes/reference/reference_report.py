"""What the rewrite to the reference form did, and what it could not do."""

from __future__ import annotations

from dataclasses import dataclass

from pt2q.ir.qparams import QParams
from pt2q.listing import listed


@dataclass(frozen=True)
class ReferenceReport:
    """What `RewriteToReference` did; kept in the module's record.

    Args:
        integer: the names of the calls that are integer arithmetic now.
        left: those that stay in float.
        stored: the values that are integers with known parameters.
    """

    integer: tuple[str, ...]
    left: tuple[LeftInFloat, ...]
    stored: tuple[StoredValue, ...] = ()

    def __str__(self) -> str:
        return listed(
            f"{len(self.integer)} calls in integers, {len(self.left)} left in float", self.left
        )


@dataclass(frozen=True)
class StoredValue:
    """A value of the model that is a tensor of integers now.

    Args:
        node: the node that gives the integers.
        origin: the node of the exported program whose value they are.
        handle: its numeric debug handle, if it had one.
        params: what the integers stand for.
    """

    node: str
    origin: str
    handle: int | None
    params: QParams


@dataclass(frozen=True)
class LeftInFloat:
    """A call that reads quantized values and has no integer form.

    Args:
        node: its name.
        operator: what it calls.
        reason: why it stays.
        between: whether all it reads and its result are quantized.
    """

    node: str
    operator: str
    reason: str
    between: bool

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}): {self.reason}"
