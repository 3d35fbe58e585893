"""Keep written buffers as integers, where all that goes in and out is quantized."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import (
    fake_like,
    get_constant,
    is_constant,
    is_float_tensor,
    replace_tensor,
    value_of,
)
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.qparams import QParams, read_qparams
from pt2q.ir.storage import StorageMap
from pt2q.numerics.rounding import quantize

PASS_NAME = "pt2q.store_state"
ORIGIN = "store_state"
_QUANTIZE = frozenset({ops.qd.quantize_per_tensor.default})
_DEQUANTIZE = frozenset({ops.qd.dequantize_per_tensor.default})


@dataclass(frozen=True)
class StoreStateQuantized:
    """Store written buffers quantized: a cache of keys and values takes a quarter of its memory.

    A buffer qualifies if every value written into it comes from a dequantize and every value read
    from it goes into a quantize, all per tensor with the same parameters. As quantizing a
    dequantized value gives back its integers, the function stays the same to the last bit. For
    each buffer that stays in float ``record.notes`` says why, and of each that does not, how it is
    stored.

    Args:
        in_float: buffers to leave in float, with the reason, by name.
    """

    in_float: tuple[tuple[str, str], ...] = ()

    def __call__(self, model: QuantGraphModule) -> bool:
        """Store what qualifies; returns whether there was any."""
        storage = StorageMap.of(model.graph)
        changed, left = False, dict(self.in_float)
        for root, aliases in _written_buffers(model, storage).items():
            found = left.get(str(root.target)) or _examine(root, aliases, storage)
            if isinstance(found, str):
                model.record.note(ORIGIN, str(root.target), f"stays in float: {found}")
                continue
            _rewrite(model, found, storage)
            changed = True
        return changed


def kept_in_float(model: QuantGraphModule) -> dict[str, str]:
    """The written buffers that do not qualify, with the reason.

    Args:
        model: converted; it is not changed.
    """
    storage = StorageMap.of(model.graph)
    found = {
        str(root.target): _examine(root, aliases, storage)
        for root, aliases in _written_buffers(model, storage).items()
    }
    return {target: why for target, why in found.items() if isinstance(why, str)}


@dataclass
class _Buffer:
    """What happens to one buffer.

    Args:
        aliases: the nodes that are the buffer or a part of it.
        parameters: scale, zero point, least and greatest integer, dtype.
        written: a dequantize and the operator that writes its result.
        read: the quantizes.
    """

    aliases: list[Node]
    parameters: QParams | None = None
    written: list[tuple[Node, Node]] = field(default_factory=list)
    read: list[Node] = field(default_factory=list)

    def agrees(self, node: Node) -> bool:
        """Whether a quantize or dequantize has the parameters of all others."""
        given = read_qparams(node)
        self.parameters = self.parameters or given
        return self.parameters.same(given)


def _written_buffers(model: QuantGraphModule, storage: StorageMap) -> dict[Node, list[Node]]:
    found: dict[Node, list[Node]] = {}
    for node in model.graph.nodes:
        root = storage.root[node]
        if is_constant(root) and storage.is_mutated(root) and is_float_tensor(root):
            found.setdefault(root, []).append(node)
    return found


def _examine(root: Node, aliases: list[Node], storage: StorageMap) -> _Buffer | str:
    """What happens to a buffer, or why it cannot be stored quantized."""
    if any(is_constant(n) and n.target != root.target for n in aliases):
        return "another buffer shares its storage"
    buffer = _Buffer(aliases)
    for node in aliases:
        reason = _examine_node(node, buffer, storage)
        if reason is not None:
            return reason
    if buffer.parameters is None:
        return "nothing around it is quantized"
    return buffer


def _examine_node(node: Node, buffer: _Buffer, storage: StorageMap) -> str | None:
    if node.op == "call_function" and not ops.is_op(node, ops.STORES | ops.SHAPE):
        return f"{node.name} ({node.target}) computes with it in place"
    if ops.is_op(node, ops.STORES):
        for source in (s for s in node.all_input_nodes if is_float_tensor(s)):
            if source in buffer.aliases and source is node.args[0]:
                continue
            if not ops.is_op(source, _DEQUANTIZE) or not buffer.agrees(source):
                return f"what {node.name} writes is not quantized with the buffer's parameters"
            buffer.written.append((source, node))
    for user in node.users:
        if storage.root[user] is storage.root[node]:
            continue
        if not ops.is_op(user, _QUANTIZE) or not buffer.agrees(user):
            return f"{user.name} reads it in other parameters, or in float"
        buffer.read.append(user)
    return None


def _rewrite(model: QuantGraphModule, buffer: _Buffer, storage: StorageMap) -> None:
    params = buffer.parameters
    assert params is not None and isinstance(params.scale, float)
    for node in buffer.aliases:
        node.meta["val"] = fake_like(value_of(node), params.dtype)
    for value, writer in buffer.written:
        writer.replace_input_with(value, ops.data_input(value))
        _erase_unused(model, value)
    for node in buffer.read:
        _replace_read(model, node, storage)
    target = str(buffer.aliases[0].target)
    with torch.no_grad():
        stored = get_constant(model, target)
        bounds = params.quant_min, params.quant_max
        stored = quantize(stored, *params.known, *bounds, params.dtype)
    replace_tensor(model, target, stored)
    dtype = str(params.dtype).removeprefix("torch.")
    text = f"stored as {dtype}, scale {params.scale:g}, zero point {params.zero_point}"
    model.record.note(ORIGIN, target, text)


def _replace_read(model: QuantGraphModule, node: Node, storage: StorageMap) -> None:
    """Read the integers themselves, or if they change later a copy from this moment."""
    source = ops.data_input(node)
    if storage.last_write(source) > storage.position[node]:
        emit = Emitter(model, PASS_NAME).before(node)
        source = emit.call_giving(value_of(node), ops.aten.clone.default, source)
    node.replace_all_uses_with(source)
    model.graph.erase_node(node)


def _erase_unused(model: QuantGraphModule, node: Node) -> None:
    if not node.users:
        model.graph.erase_node(node)
