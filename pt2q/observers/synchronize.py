"""One set of ranges for all processes of a data-parallel training or calibration."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pt2q.observers.base.observer_base import ObserverBase
from pt2q.observers.fake_quantizers.fake_quantizer import FakeQuantize

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
    observers: list[Any] = [m for m in model.modules() if _has_range(m)]
    states: list[Gathered] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(states, [m.statistics() for m in observers], group=group)
    for observer, found in zip(observers, zip(*states, strict=True), strict=True):
        observer.merge(found)
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            _take_parameters(module)


def _has_range(module: nn.Module) -> bool:
    return isinstance(module, ObserverBase) and hasattr(module, "min_val")


@torch.no_grad()
def _take_parameters(module: FakeQuantize) -> None:
    observer = module.activation_post_process
    # Where the observer is off, parameters are frozen, or learned and kept alike by the optimizer.
    if _has_range(observer) and observer.has_data and bool(module.observer_enabled):
        module.take_parameters()
