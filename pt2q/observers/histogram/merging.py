"""One histogram of what several have seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pt2q.numerics.histogram import widened
from pt2q.observers.histogram.streaming import MOST_KEPT, StreamingHistogram

State = dict[str, Tensor]


def merged(states: Sequence[State]) -> State:
    """Return the state of a histogram that has seen what several have seen.

    All that histograms store is whole numbers, and what they keep as it is has no order: the result
    does not depend on who saw what.

    Args:
        states: ``state_dict()`` of `StreamingHistogram`s of one number of bins, on the host.
    """
    totals = torch.stack([state["saved_totals"] for state in states]).sum(0)
    all_kept = all(state["counts"].shape[0] == 0 for state in states)
    few = torch.cat([state["few"] for state in states])
    if not (all_kept and few.shape[0] <= MOST_KEPT):
        states, few = [_counted(state) for state in states], few[:0]
    exponent = torch.stack([state["exponent"] for state in states]).amax()
    rows = max(state["counts"].shape[0] for state in states)
    counts = torch.zeros(rows, states[0]["counts"].shape[1], dtype=torch.int64)
    for state in states:
        wide = widened(state["counts"], exponent - state["exponent"])
        counts[: wide.shape[0]] += wide
    zeros = torch.stack([state["zeros"] for state in states]).sum(0)
    return {
        "counts": counts,
        "exponent": exponent,
        "zeros": zeros,
        "few": few,
        "saved_totals": totals,
    }


def _counted(state: State) -> State:
    """A histogram's state with nothing in it that was not counted."""
    histogram = StreamingHistogram(state["counts"].shape[1])
    histogram.load_state_dict(state)
    histogram.count_kept()
    return dict(histogram.state_dict())
