"""The copies of two models that a comparison runs, and the state that they start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.debug.own_copy import load_state, own_copy, read_state
from pt2q.errors import ComparisonError
from pt2q.ir.graph import get_constant
from pt2q.ir.module import QuantGraphModule, Stage

Model: TypeAlias = ExportedProgram | GraphModule


@dataclass(frozen=True)
class Subjects:
    """Two copies of each model that keeps state; one of another is enough.

    Args:
        floating, quantized: run on their own values.
        shadow, forced: the same two, run on values that are put in.
        state: the buffers that the float model writes.
        common: those that the quantized model writes, too.
        notes: what is to be known of the two when reading the figures.
    """

    floating: QuantGraphModule
    quantized: QuantGraphModule
    shadow: QuantGraphModule
    forced: QuantGraphModule
    state: tuple[str, ...]
    common: tuple[str, ...]
    notes: tuple[str, ...]


def subjects_of(float_model: Model, quantized_model: Model) -> Subjects:
    """Copy both models; the quantized ones start from the buffers of the float model.

    Raises:
        NotExportedError: a model was not captured with ``torch.export``.
        ComparisonError: the first is no float model.
    """
    floating, state = own_copy(float_model)
    shadow = own_copy(float_model)[0] if state else floating
    quantized, written = own_copy(quantized_model)
    forced = own_copy(quantized_model)[0] if written else quantized
    notes = _stage_notes(floating, quantized)
    common = tuple(name for name in written if _is_common(floating, quantized, name))
    notes += [
        f"buffer {name}: the quantized model writes it and the float one has none of its shape "
        "and type, so it keeps what it holds"
        for name in written
        if name not in common
    ]
    load_state(quantized, read_state(floating, common))
    return Subjects(floating, quantized, shadow, forced, state, common, tuple(notes))


def _stage_notes(floating: QuantGraphModule, quantized: QuantGraphModule) -> list[str]:
    if floating.record.stage is not Stage.FLOAT:
        raise ComparisonError(
            f"the first model must be the float one, it is {floating.record.stage.value}"
        )
    if quantized.record.stage is not Stage.PREPARED:
        return []
    return ["the quantized model is prepared and not converted: its observers round nothing"]


def _is_common(floating: QuantGraphModule, quantized: QuantGraphModule, name: str) -> bool:
    """Whether the float model has such a buffer, too."""
    own, other = get_constant(quantized, name), _constant_or_none(floating, name)
    return other is not None and (own.shape, own.dtype) == (other.shape, other.dtype)


def _constant_or_none(model: QuantGraphModule, name: str) -> Tensor | None:
    try:
        return get_constant(model, name)
    except (AttributeError, TypeError):
        return None
