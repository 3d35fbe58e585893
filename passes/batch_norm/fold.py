"""Fold batch norms into the convolution or linear layer before them, for inference.

The equations are in `pt2q.passes.batch_norm.folded_tensors`. Done only where this is the same
function; what stays has its reason on record.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.batch_norm import (
    BatchNorm,
    Layer,
    batch_norms,
    constants_reason,
    is_training,
    layer_before_moves,
    pair_reason,
)
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import (
    delete_constant,
    get_constant,
    is_parameter,
    set_constant,
    stand_for,
)
from pt2q.ir.modes import counter_name
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import written_constants
from pt2q.passes.batch_norm.folded_tensors import (
    all_finite,
    factor_and_shift,
    folded_name,
    folded_weight,
)

PASS = "conv_bn_fold"


@dataclass(frozen=True)
class FoldConvBatchNorm:
    """Fold every batch norm that can be folded; note the reason for every other.

    New tensors are stored in the module; those of the module it was copied from stay as they are.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Fold; see the class.

        Args:
            model: changed in place.

        Returns:
            Whether a batch norm was folded.
        """
        norms = batch_norms(model)
        return bool(norms) and _Folder(model, norms).run()


class _Folder:
    """One run of the pass."""

    def __init__(self, model: QuantGraphModule, norms: list[BatchNorm]) -> None:
        self.model = model
        self.norms = norms
        self.written = written_constants(model.graph)
        self.emit = Emitter(model, PASS)
        self.constants: dict[str, list[Node]] = {}
        for node in model.graph.find_nodes(op="get_attr"):
            self.constants.setdefault(str(node.target), []).append(node)

    def run(self) -> bool:
        stale: set[str] = set()
        folded = False
        for bn in self.norms:
            layer, reason = self.match(bn)
            if layer is not None and not reason:
                reason = self.fold(layer, bn)
            if reason:
                self.model.record.note(PASS, bn.node.name, reason)
                continue
            folded = True
            stale |= {str(n.target) for n in bn.constants}
            counter = counter_name(bn.node)
            stale |= {counter} if counter is not None else set()
            self.erase(bn)
        self.drop(stale)
        return folded

    def match(self, bn: BatchNorm) -> tuple[Layer | None, str]:
        """The layer to fold into, or the reason why there is none."""
        if bn.running_mean is None or bn.running_var is None:
            return None, "it has no running statistics: it normalizes with those of its input"
        layer, reason = pair_reason(bn)
        layer = layer_before_moves(bn) if layer is None else layer
        if layer is None:
            return None, reason
        if is_training(bn):
            return None, (
                "it is in training mode; export the model in evaluation mode, or call "
                "move_exported_model_to_eval(model) first"
            )
        return layer, constants_reason(self.model, layer, bn, self.written)

    @torch.no_grad()
    def fold(self, layer: Layer, bn: BatchNorm) -> str:
        """Store the folded tensors; returns the reason if the numbers do not allow it."""
        factor, shift = factor_and_shift(self.model, bn, layer.bias)
        weight = get_constant(self.model, layer.weight)
        folded = {"weight": folded_weight(layer, factor, weight), "bias": shift.to(weight.dtype)}
        if not all(all_finite(value) for value in folded.values()):
            return f"the folded weight of {layer.node.name} would not be finite in {weight.dtype}"
        trained = is_parameter(self.model, str(layer.weight.target))
        grad = weight.requires_grad
        for name, value in folded.items():
            new = torch.nn.Parameter(value, requires_grad=grad) if trained else value
            self.store(layer, name, new)
        return ""

    def store(self, layer: Layer, name: str, value: torch.Tensor) -> None:
        """Put a folded tensor where the old one was, or under a new name if others read that."""
        weight, old = layer.weight, ops.argument(layer.node, name)
        if old is not None and self.readers(str(old.target)) == {layer.node}:
            set_constant(self.model, str(old.target), value)
            return
        self.emit.before(layer.node, origin=weight if old is None else old)
        new = self.emit.constant(folded_name(weight, old, name), value)
        ops.set_argument(layer.node, name, new)
        self.constants[str(new.target)] = [new]

    def readers(self, target: str) -> set[Node]:
        return {user for node in self.constants.get(target, ()) for user in node.users}

    def erase(self, bn: BatchNorm) -> None:
        layer = ops.argument(bn.node, "input")
        stand_for(layer, bn.output, PASS)
        bn.output.replace_all_uses_with(layer)
        for node in dict.fromkeys((bn.output, bn.node)):
            self.model.graph.erase_node(node)

    def drop(self, stale: set[str]) -> None:
        """Remove the constants of folded batch norms that no node reads any more."""
        for target in sorted(stale):
            if self.readers(target):
                continue
            for node in self.constants.get(target, ()):
                self.model.graph.erase_node(node)
            delete_constant(self.model, target)
