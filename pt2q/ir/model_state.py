"""What a model remembers from call to call: the buffers that its graph writes into.

A key-value cache or a running sum moves with every call. Calibrating is calling, so a prepared
model has such buffers to itself: the float model's stay where they were, and `convert_pt2e` starts
from the values that they had when the model was prepared. Tensors that share storage go on sharing
it. Weights and all that is only read stay shared with the float model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.graph import is_constant, named_tensors, replace_tensor
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import StorageMap
from pt2q.ir.torch_private import storage_address


@dataclass(frozen=True)
class KeptState:
    """The values that written tensors had when the model was prepared, by name."""

    values: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        """The values, in the order of their names."""
        return [self.values[name] for name in sorted(self.values)]


def keep_state(model: QuantGraphModule) -> tuple[str, ...]:
    """Give a model its own copies of the buffers that it writes into, and note their values.

    Args:
        model: what `import_exported` gave; changed in place.

    Returns:
        The names of the copied tensors: those written, and those that share storage with them.
    """
    found = _written(model)
    if found:
        _store(model, copies(found))
        model.record.put(KeptState(copies(found)))
    return tuple(found)


def restore_state(model: QuantGraphModule) -> None:
    """Go back to the values that `keep_state` noted, in tensors of the model's own.

    Args:
        model: a copy of a prepared model, which is left as it is; the note is dropped here.
    """
    noted = model.record.take(KeptState)
    if noted is not None:
        _store(model, copies(noted.values))


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share storage with each other as the tensors do.

    Args:
        tensors: by name; one tensor may have several names.
    """
    storages: dict[int, Tensor] = {}
    made: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in made:
            made[id(tensor)] = _copy(tensor, storages)
    return {name: made[id(tensor)] for name, tensor in tensors.items()}


def _copy(tensor: Tensor, storages: dict[int, Tensor]) -> Tensor:
    value = tensor.detach()
    if type(value) is not Tensor or value.layout is not torch.strided:
        copied = value.clone()  # a subclass knows best what its copy is
    else:
        key = storage_address(value)
        if key not in storages:
            whole = torch.empty(0, dtype=torch.uint8, device=value.device)
            storages[key] = whole.set_(value.untyped_storage().clone())
        copied = value.new_empty(0).set_(
            storages[key].untyped_storage(), value.storage_offset(), value.shape, value.stride()
        )
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied


def _written(model: QuantGraphModule) -> dict[str, Tensor]:
    """Tensors that the graph writes into, and all that share storage with one of them."""
    storage = StorageMap.of(model.graph)
    constants = [node for node in model.graph.nodes if is_constant(node)]
    targets = {str(node.target) for node in constants if storage.is_mutated(node)}
    targets |= {str(node.target) for node in _moving_statistics(model)}
    if not targets:
        return {}
    tensors = named_tensors(model)
    roots = {_key(tensors[name]) for name in targets if name in tensors}
    return {name: tensor for name, tensor in tensors.items() if _key(tensor) in roots}


def _moving_statistics(model: QuantGraphModule) -> list[Node]:
    """What batch norms in training mode write into, though their schema does not say so."""
    norms = [n for n in model.graph.nodes if ops.is_op(n, ops.BATCH_NORM)]
    training = [n for n in norms if ops.argument(n, "training")]
    statistics = [
        ops.argument(n, name) for n in training for name in ("running_mean", "running_var")
    ]
    return [node for node in statistics if is_constant(node)]


def _key(tensor: Tensor) -> int:
    strided = tensor.layout is torch.strided and type(tensor) in (Tensor, nn.Parameter)
    return storage_address(tensor) if strided else id(tensor)


def _store(model: QuantGraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in their places; a pass may have taken one out with all that read it."""
    for name, tensor in tensors.items():
        replace_tensor(model, name, tensor)
