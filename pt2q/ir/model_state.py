"""What a model remembers from call to call: the buffers that its graph writes into.

A key-value cache or a running sum moves with every call. Calibrating is calling, so a prepared
model has such buffers to itself: the float model's stay where they were, and `convert_pt2e` starts
from the values that they had when the model was prepared. Tensors that share storage go on sharing
it. Weights and all that is only read stay shared with the float model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pt2q.ir.graph import named_tensors, replace_tensor
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import copies, storage_of, written_constants


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


def unite_kept_state(models: Sequence[QuantGraphModule]) -> None:
    """Let models that hold one tensor for a buffer note one value for it.

    Args:
        models: what `keep_state` was called with.
    """
    noted = [model.record.get(KeptState) for model in models]
    first: dict[str, Tensor] = {}
    for model, kept in zip(models, noted, strict=True):
        if kept is not None:
            values = {name: first.setdefault(name, value) for name, value in kept.values.items()}
            model.record.put(KeptState(values))


def restore_state(model: QuantGraphModule) -> None:
    """Go back to the values that `keep_state` noted, in tensors of the model's own.

    Args:
        model: a copy of a prepared model, which is left as it is; the note is dropped here.
    """
    noted = model.record.take(KeptState)
    if noted is not None:
        _store(model, copies(noted.values))


def _written(model: QuantGraphModule) -> dict[str, Tensor]:
    """Tensors that the graph writes into, and all that share storage with one of them."""
    targets = written_constants(model.graph)
    if not targets:
        return {}
    tensors = named_tensors(model)
    storages = {storage_of(tensors[name]) for name in targets if name in tensors}
    return {name: tensor for name, tensor in tensors.items() if storage_of(tensor) in storages}


def _store(model: QuantGraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in their places; a pass may have taken one out with all that read it."""
    for name, tensor in tensors.items():
        replace_tensor(model, name, tensor)
