"""Give a module tensors of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import copies, release, span_of, spilled, storage_of


@dataclass(frozen=True)
class OwnTensors:
    """Clone parameters and buffers; those that were one tensor, or overlapped, do so again.

    A converted model must not move when the model that it was made from is trained on.

    Args:
        storages: what is to be left to others, see `pt2q.ir.storage.storage_of`; None is all. What
            is quantized is new, and need not be cloned again.
    """

    storages: frozenset[int] | None = None

    def __call__(self, model: QuantGraphModule) -> bool:
        """Clone; the graph is never modified."""
        places = [
            (held, name, tensor)
            for module in model.modules()
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
            if tensor is not None and self._is_others(tensor)
        ]
        new = _cloned({id(tensor): tensor for _, _, tensor in places})
        for held, name, tensor in places:
            held[name] = new[id(tensor)]  # type: ignore[assignment]
        return False

    def _is_others(self, tensor: Tensor) -> bool:
        return self.storages is None or storage_of(tensor) in self.storages


def _cloned(tensors: dict[int, Tensor]) -> dict[int, Tensor]:
    """Clones by the identity of what they are clones of."""
    by_storage: dict[int, list[Tensor]] = {}
    for tensor in tensors.values():
        by_storage.setdefault(storage_of(tensor), []).append(tensor)
    found: dict[int, Tensor] = {}
    for group in by_storage.values():
        # Only where they overlap is the storage cloned whole: it may be a file of all weights.
        if _overlap(group):
            found.update({int(k): v for k, v in copies({str(id(t)): t for t in group}).items()})
        else:
            found.update({id(tensor): _clone(tensor) for tensor in group})
    return found


def _overlap(group: Iterable[Tensor]) -> bool:
    reach = -1
    for start, end in sorted(map(span_of, group)):
        if start < reach:
            return True
        reach = max(reach, end)
    return False


def _clone(tensor: Tensor) -> Tensor:
    value = spilled(tensor.detach().clone())
    release()
    if not isinstance(tensor, torch.nn.Parameter):
        return value
    return torch.nn.Parameter(value, requires_grad=tensor.requires_grad)
