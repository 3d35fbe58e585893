"""Parameters of many observers at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from pt2q.observers.base.observer_base import ObserverBase


def batched_qparams(observers: Sequence[ObserverBase]) -> list[tuple[Tensor, Tensor]]:
    """Return ``calculate_qparams()`` of each observer, those of one kind found together.

    The same numbers as one by one. Errors are those of the first observer that has one.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    groups: dict[Hashable, list[int]] = {}
    for index, observer in enumerate(observers):
        kind = observer.together_with
        if kind is None:
            found[index] = observer.calculate_qparams()
            continue
        observer.check_data()
        groups.setdefault(kind, []).append(index)
    for members in groups.values():
        chosen = [observers[index] for index in members]
        found.update(zip(members, chosen[0].calculate_together(chosen), strict=True))
    return [found[index] for index in range(len(observers))]
