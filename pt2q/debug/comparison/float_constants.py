"""The constants of a float model, by who reads them and by name."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from pt2q.debug.comparison.stored_weight import StoredWeight
from pt2q.debug.error_sums import mismatch
from pt2q.debug.identity import Origin, value_nodes
from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import get_constant, origin_name
from pt2q.ir.module import QuantGraphModule


class FloatConstants:
    """The constants of a float model, by who reads them and by name.

    Args:
        model: the float model, or the one with its batch norms folded.
    """

    def __init__(self, model: QuantGraphModule) -> None:
        self._modules = dict(named_graph_modules(model))
        self._constants = {
            path: Constants(module)
            for path, module in self._modules.items()
            if isinstance(module, QuantGraphModule)
        }
        self._nodes = {key: place for place, key in value_nodes(model).items()}

    def is_batch_norm(self, path: str, node: Node) -> bool:
        """Whether a node of the quantized model gives the value of a batch norm here."""
        place = self._nodes.get(Origin(origin_name(node), path))
        return place is not None and ops.is_op(place[1], ops.BATCH_NORM_ANY)

    def find(
        self, path: str, node: Node, name: str, stored: StoredWeight
    ) -> tuple[Tensor | None, Tensor]:
        """The float constant, and the form of the quantized one that it is to be held against."""
        found = self._argument(path, node, name)
        if found is not None and not mismatch(found, stored.read):
            return found, stored.read
        try:
            target = stored.target.removesuffix("_quantized")
            return get_constant(self._modules[path], target).detach(), stored.plain
        except (AttributeError, KeyError, TypeError):
            return None, stored.plain

    def _argument(self, path: str, node: Node, name: str) -> Tensor | None:
        place = self._nodes.get(Origin(origin_name(node), path))
        if place is None or place[1].target != node.target:
            return None
        found = dict(ops.tensor_arguments(place[1])).get(name)
        if found is None or not self._constants[place[0]].is_constant(found):
            return None
        value = self._constants[place[0]].value(found)
        return value if isinstance(value, Tensor) else None
