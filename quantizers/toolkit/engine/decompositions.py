"""Which operators a quantizer takes apart before it annotates, so that their parts quantize."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import GraphModule

from pt2q.ir.module import QuantGraphModule
from pt2q.passes.transform.attention import ORIGIN as ATTENTION
from pt2q.passes.transform.attention import DecomposeAttention
from pt2q.passes.transform.recurrent import ORIGIN as RECURRENT
from pt2q.passes.transform.recurrent import DecomposeRecurrent
from pt2q.quantizers.toolkit.reasons import NOT_TAKEN_APART, Reason


@dataclass(frozen=True)
class Decompositions:
    """The settings of `TableQuantizer.set_decompositions`.

    Args:
        attention: useful where the backend multiplies two activations in integers; elsewhere the
            fused operator is faster.
        recurrent: useful where the backend has no recurrent operator of its own.
        max_steps: the longest sequence over which a recurrent layer is unrolled.
    """

    attention: bool = False
    recurrent: bool = False
    max_steps: int = 64

    def passes(self) -> list[Callable[[GraphModule], bool]]:
        """The passes asked for."""
        found: list[Callable[[GraphModule], bool]] = (
            [DecomposeAttention()] if self.attention else []
        )
        return [*found, DecomposeRecurrent(self.max_steps)] if self.recurrent else found


def why_not_decomposed(model: GraphModule) -> dict[str, Reason]:
    """The reasons of operators that were to be taken apart and were not, by node name."""
    if not isinstance(model, QuantGraphModule):
        return {}
    notes = (note for note in model.record.notes if note.origin in (ATTENTION, RECURRENT))
    return {note.node: NOT_TAKEN_APART.filled(why=note.text) for note in notes}
