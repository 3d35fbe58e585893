"""One set of ranges for all processes of a data-parallel training or calibration."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pt2q.numerics.histogram import widened
from pt2q.observers.base.observer_base import ObserverBase
from pt2q.observers.fake_quantizers.fake_quantizer import FakeQuantize
from pt2q.observers.histogram.streaming import StreamingHistogram

Gathered = list[dict[str, Any]]


def synchronize_observers(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Give every process the union of what all processes observed.

    The smallest minimum and the largest maximum count, histograms are added up, and fake
    quantizers take their parameters from that. Call it in all processes alike: at the end of an
    epoch, before observers are frozen, or before conversion. One collective call, whatever the
    number of observers.

    Args:
        model: the prepared module, or that in ``DistributedDataParallel``.
        group: the processes; None for all.
    """
    observers = [m for m in model.modules() if _has_range(m)]
    states: list[Gathered] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(states, [_state(m) for m in observers], group=group)
    for observer, found in zip(observers, zip(*states, strict=True), strict=True):
        _merge(observer, list(found))
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            _take_parameters(module)


def _has_range(module: nn.Module) -> bool:
    return isinstance(module, ObserverBase) and hasattr(module, "min_val")


def _state(observer: Any) -> dict[str, Any]:
    return {name: value.cpu() for name, value in observer.state_dict().items()}


def _merge(observer: Any, states: Gathered) -> None:
    # A process that saw nothing has one infinite value, which broadcasts.
    low = [state["min_val"] for state in states]
    high = [state["max_val"] for state in states]
    device = observer.min_val.device
    observer.min_val = torch.stack(torch.broadcast_tensors(*low)).amin(0).to(device)
    observer.max_val = torch.stack(torch.broadcast_tensors(*high)).amax(0).to(device)
    histogram = getattr(observer, "histogram", None)
    if isinstance(histogram, StreamingHistogram):
        histogram.load_state_dict(_added([_part(state) for state in states]))


def _part(state: dict[str, Any]) -> dict[str, Tensor]:
    prefix = "histogram."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _added(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The histogram of everything that several histograms have seen."""
    with_data = [state for state in states if int(state["saved_totals"][0])]
    # Single values are kept only while one process has them all.
    if len(with_data) == 1:
        return with_data[0]
    states = [_counted(state) for state in states]
    exponent = max(int(state["exponent"]) for state in states)
    rows = max(state["counts"].shape[0] for state in states)
    counts = torch.zeros(rows, states[0]["counts"].shape[1], dtype=torch.int64)
    for state in states:
        wide = widened(state["counts"], exponent - int(state["exponent"]))
        counts[: wide.shape[0]] += wide
    return {
        "counts": counts,
        "exponent": torch.tensor(exponent, dtype=torch.int32),
        "zeros": torch.stack([state["zeros"] for state in states]).sum(0),
        "few": torch.zeros(0),
        "saved_totals": torch.stack([state["saved_totals"] for state in states]).sum(0),
    }


def _counted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A histogram's state with nothing in it that was not counted."""
    histogram = StreamingHistogram(state["counts"].shape[1])
    histogram.load_state_dict(state)
    histogram.count_kept()
    return histogram.state_dict()


@torch.no_grad()
def _take_parameters(module: FakeQuantize) -> None:
    observer = module.activation_post_process
    # Where the observer is off, parameters are frozen, or learned and kept alike by the optimizer.
    if _has_range(observer) and observer.has_data and bool(module.observer_enabled):
        module.take_parameters()
