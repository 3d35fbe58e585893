"""Which data a change is computed from, and which it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from pt2q.algorithms.engine import Walk
from pt2q.ir.torch_private import pytree

CHECKED = 4
"""One batch in so many, or one row of a single batch, is kept to judge by."""


def is_check(batch: int, count: int) -> bool:
    """Whether a batch is kept to judge by: every fourth, and of fewer than four the last."""
    return batch % CHECKED == CHECKED - 1 or (count < CHECKED and batch == count - 1)


def fit_rows(size: int) -> int:
    """How many rows of a single batch are to compute from; those behind them judge."""
    return size - max(1, size // CHECKED)


@dataclass(frozen=True)
class Parting:
    """Which batches are for what.

    Args:
        fit: those to compute from.
        check: those to judge by; of a single batch both are this one.
        rows: how many rows the inputs of a single batch have, where these can be parted.
    """

    fit: tuple[int, ...]
    check: tuple[int, ...]
    rows: int | None = None

    @classmethod
    def of(cls, walk: Walk) -> Parting:
        """That of a walk that stands at its beginning."""
        if walk.count == 1:
            return cls((0,), (0,), _rows(walk))
        check = tuple(b for b in range(walk.count) if is_check(b, walk.count))
        return cls(tuple(b for b in range(walk.count) if b not in check), check)

    @property
    def apart(self) -> bool:
        """Whether nothing that is computed from judges."""
        return self.rows is not None or not set(self.fit) & set(self.check)

    @property
    def checked(self) -> int:
        """How many rows of a batch judge apart from each other; 1 where whole batches do."""
        return 1 if self.rows is None else self.rows - fit_rows(self.rows)

    def to_fit(self, x: Tensor) -> Tensor:
        """What to compute from, of a value of one of the batches for that."""
        end = self._end(x)
        return x if end is None else x[:end]

    def to_check(self, x: Tensor) -> Tensor:
        """What to judge by, of a value of one of the batches for that."""
        end = self._end(x)
        return x if end is None else x[end:]

    def _end(self, x: Tensor) -> int | None:
        """Where rows to judge by begin; rows may stand several together, as tokens do.

        None where there are none: of what has no rows, all of it is for both.
        """
        rows = self.rows
        if rows is None or x.dim() == 0 or x.shape[0] % rows:
            return None
        return fit_rows(rows) * (x.shape[0] // rows)


def _rows(walk: Walk) -> int | None:
    """The size of the first dimension of all inputs, if it is the same and more than one."""
    inputs = [n for n in walk.schedule.nodes if n.op == "placeholder" and n.users]
    values = (
        pytree.tree_leaves(list(walk.values(name, node)))
        for name in list(walk.lanes)[:1]
        for node in inputs
    )
    own = {x.shape[0] for x in chain(*values) if isinstance(x, Tensor) and x.dim() > 0}
    sizes = set().union(*walk.ranks.gather(own))
    return sizes.pop() if len(sizes) == 1 and max(sizes) > 1 else None
