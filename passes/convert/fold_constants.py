"""Store constants quantized, and let go of the float ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants, chain_to_constant, drop_assertions
from pt2q.ir.dtypes import CAST_DTYPES
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import carry, delete_constant, is_constant, is_persistent
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.qparams import qparams_key, read_qparams
from pt2q.ir.storage import place_of, release, spilled
from pt2q.numerics.rounding import quantize


@dataclass(frozen=True)
class FoldQuantizedConstants:
    """Replace each quantize of a constant by its result; so, too, casts to a narrower float.

    The quantize operators are run one by one and nothing else is: no dequantize, no float
    computation that is not needed. A constant that is quantized twice with equal parameters
    (a tied weight) is stored once. Float tensors nobody reads any more are dropped from the
    module as soon as their last reader is gone, so that they are not held longer than needed.
    """

    def __call__(self, model: QuantGraphModule) -> bool:
        """Fold; returns whether anything was."""
        constants = Constants(model)
        erased = drop_assertions(model, constants)
        found = [n for n in model.graph.nodes if _is_stored(n, constants)]
        folder = _Folder(model, constants)
        for node in found:
            folder.fold(node)
        return bool(found or erased)


_CAST = frozenset({ops.TO_DTYPE})
_AFFINE = frozenset({ops.qd.quantize_per_tensor.default, ops.qd.quantize_per_channel.default})


def _is_stored(node: Node, constants: Constants) -> bool:
    """Whether a node is a quantize, or a cast, of a constant."""
    if ops.quantizes_elsewhere(node):
        return all(constants.is_constant(source) for source in node.all_input_nodes)
    return (ops.is_op(node, ops.QUANTIZE) or _is_storage_cast(node)) and constants.is_constant(node)


def _is_storage_cast(node: Node) -> bool:
    """The first of the two casts that a float16 or bfloat16 spec is turned into."""
    if not ops.is_op(node, _CAST) or node.args[1] not in CAST_DTYPES:
        return False
    return all(ops.is_op(user, _CAST) and len(user.args) == 2 for user in node.users)


class _Folder:
    def __init__(self, model: QuantGraphModule, constants: Constants) -> None:
        self.model = model
        self.constants = constants
        self.emit = Emitter(model, "pt2q.fold_constants")
        self.stored: dict[Any, str] = {}
        self.readers: dict[str, int] = {}
        for node in model.graph.nodes:
            if is_constant(node):
                target = str(node.target)
                self.readers[target] = self.readers.get(target, 0) + 1

    def fold(self, node: Node) -> None:
        target = self._store(node)
        self.readers[target] = self.readers.get(target, 0) + 1
        new = self.emit.before(node).read(target)
        carry(new, *reversed(chain_to_constant(node)))
        node.replace_all_uses_with(new)
        self._erase(node)

    def _store(self, node: Node) -> str:
        """The name under which the result of a quantize is kept."""
        key = self._key(node)
        if not self.readers.get(self.stored.get(key, "")):  # new, or quantized anew and dropped
            base = self._base_name(node)
            self.stored[key] = self.emit.keep(
                f"{base.removesuffix('_quantized')}_quantized",
                spilled(self._quantized(node)),
                persistent=is_persistent(self.model, base),
            )
        return self.stored[key]

    def _quantized(self, node: Node) -> torch.Tensor:
        """The result of a quantize: by `numerics.quantize`, which works in place, if it can."""
        if node.target not in _AFFINE:
            result: torch.Tensor = self.constants.value(node)
            return result
        value = self.constants.value(ops.data_input(node))
        params = read_qparams(node, self.constants.value)
        bounds = params.quant_min, params.quant_max
        with torch.no_grad():
            return quantize(value, *params.known, *bounds, params.dtype, params.axis)

    def _key(self, node: Node) -> Any:
        """Equal for quantizes with an equal result: same tensor, same parameters."""
        value = self._identity(ops.data_input(node))
        if ops.is_op(node, ops.QUANTIZE):
            return value, qparams_key(node, self._identity)
        # A cast, or a quantize of another library.
        rest = [self._identity(a) if isinstance(a, Node) else a for a in node.args[1:]]
        return value, node.target, *rest, *node.kwargs.items()

    def _identity(self, argument: Node) -> Any:
        if not is_constant(argument):
            return argument
        tensor = self.constants.value(argument)
        if tensor.numel() <= 1 << 16 and tensor.dim() <= 1:
            # Scales are small: equal numbers are the same parameters.
            return str(tensor.dtype), tuple(tensor.reshape(-1).tolist()), tensor.dim()
        return place_of(tensor)

    def _base_name(self, node: Node) -> str:
        start = chain_to_constant(node)[-1]
        return str(start.target) if is_constant(start) else node.name

    def _erase(self, node: Node) -> None:
        """Erase a node and the constants that only it read."""
        waiting = [node]
        seen: set[Node] = set()
        while waiting:
            at = waiting.pop()
            if at in seen or at.users or at.op not in ("get_attr", "call_function"):
                continue
            seen.add(at)
            waiting.extend(at.all_input_nodes)
            self.model.graph.erase_node(at)
            if at.op == "get_attr":
                self._forget(str(at.target))

    def _forget(self, target: str) -> None:
        self.readers[target] = self.readers.get(target, 1) - 1
        if self.readers[target] > 0:
            return
        delete_constant(self.model, target)
        release()
