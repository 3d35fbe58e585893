"""Take scaled dot-product attention apart into matrix products and a softmax.

The fused operator is one node to a quantizer: it stays in float whole. Taken apart, its two
products are operators like any other, for backends that multiply activations in integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.emit import Emitter, has_fake_values
from pt2q.ir.graph import value_of
from pt2q.ir.modes import mode_record, set_mode_record
from pt2q.ir.module import note
from pt2q.ir.storage import StorageMap
from pt2q.passes.transform.attention_masks import MaskWriter, SharedMasks

PASS_NAME = "pt2q.decompose_attention"
ORIGIN = "decompose_attention"


@dataclass(frozen=True)
class DecomposeAttention:
    """Replace every ``scaled_dot_product_attention`` by the operators it stands for.

    With query ``q`` [..., L, E], key ``k`` [..., S, E], value ``v`` [..., S, Ev] and mask ``m``::

        softmax(q k^T * scale + m) v        scale = 1 / sqrt(E) unless given

    A boolean mask, or the causal one, sets scores to the least finite number. A row in which
    everything is masked gives 0, as the fused operator does. Masks are prepared once for all
    layers that share them. Dropout becomes an operator that train and eval switch.

    What cannot be taken apart stays, with the reason in ``record.notes``.
    """

    def __call__(self, model: GraphModule) -> bool:
        """Replace; returns whether there was any."""
        found = [n for n in model.graph.nodes if ops.is_op(n, ops.SDPA)]
        masks = SharedMasks(StorageMap.of(model.graph)) if found else None
        changed = False
        for node in found:
            reason = _why_not(node)
            if reason is not None:
                note(model, ORIGIN, node, reason)
                continue
            assert masks is not None
            emit = Emitter(model, PASS_NAME).before(node)
            _Attention(emit, MaskWriter(emit, masks), _take_dropout(model, node)).write()
            changed = True
        return changed


def _why_not(node: Node) -> str | None:
    if not has_fake_values(node):
        return "the sizes of its inputs are not on record"
    query, key, value = (value_of(ops.argument(node, n)) for n in ("query", "key", "value"))
    if not isinstance(query.shape[-1], int) and ops.argument(node, "scale") is None:
        return "its head size is symbolic, so its scale is not a number"
    heads = (query.shape[-3:-2], key.shape[-3:-2], value.shape[-3:-2])
    if ops.argument(node, "enable_gqa") and not all(isinstance(h, int) for (h,) in heads):
        return "its numbers of heads are symbolic"
    return None


@dataclass(frozen=True)
class _Dropout:
    """Probability, and whether it is active."""

    p: float
    train: bool


def _take_dropout(model: GraphModule, node: Node) -> _Dropout:
    """The dropout of an attention, of which in evaluation only the record of the mode knows."""
    record = mode_record(model)
    p = ops.argument(node, "dropout_p")
    known = dict(record.attention_dropout)
    if node.name not in known:
        return _Dropout(p, p > 0)
    train = p > 0
    p = known.pop(node.name)
    set_mode_record(model, replace(record, attention_dropout=tuple(known.items())))
    return _Dropout(p, train)


@dataclass
class _Attention:
    emit: Emitter
    masks: MaskWriter
    dropout: _Dropout

    def write(self) -> None:
        node = self.emit.origin
        query, key, value = (ops.argument(node, name) for name in ("query", "key", "value"))
        if ops.argument(node, "enable_gqa"):
            key, value = self._repeated(key, query), self._repeated(value, query)
        scores = self._scores(query, key)
        mask = ops.argument(node, "attn_mask")
        hidden = self.masks.hidden(mask, query, key)
        if hidden is not None:
            least = torch.finfo(value_of(scores).dtype).min
            scores = self.emit.call(ops.aten.masked_fill.Scalar, scores, hidden, least)
        elif mask is not None:
            scores = self._with_mask(scores, mask)
        weights = self.emit.call(ops.aten.softmax.int, scores, -1)
        dead = hidden if mask is not None and hidden is not None else self.masks.dead_rows(mask)
        if dead is not None:
            weights = self.emit.call(ops.aten.masked_fill.Scalar, weights, dead, 0.0)
        if self.dropout.p > 0:
            weights = self.emit.call(ops.aten.dropout.default, weights, *self._dropout_arguments())
        self.emit.replace_by(self.emit.call(ops.aten.matmul.default, weights, value))

    def _dropout_arguments(self) -> tuple[float, bool]:
        return self.dropout.p, self.dropout.train

    def _repeated(self, heads: Node, query: Node) -> Node:
        """Each head of key or value once for every query head that reads it."""
        times = value_of(query).shape[-3] // value_of(heads).shape[-3]
        if times == 1:
            return heads
        return self.emit.call(ops.aten.repeat_interleave.self_int, heads, times, -3)

    def _scores(self, query: Node, key: Node) -> Node:
        scale = ops.argument(self.emit.origin, "scale")
        if scale is None:
            scale = value_of(query).shape[-1] ** -0.5
        # A product of float16 may overflow before it is scaled. Otherwise the operand is better
        # left as it is: it may come quantized.
        early = value_of(query).dtype is torch.float16
        if early:
            query = self._scaled(query, scale)
        transposed = self.emit.call(ops.aten.transpose.int, key, -2, -1)
        scores = self.emit.call(ops.aten.matmul.default, query, transposed)
        return scores if early else self._scaled(scores, scale)

    def _scaled(self, value: Node, scale: float) -> Node:
        return value if scale == 1.0 else self.emit.call(ops.aten.mul.Tensor, value, scale)

    def _with_mask(self, scores: Node, mask: Node) -> Node:
        added = self.emit.call(ops.aten.add.Tensor, scores, mask)
        return self.emit.cast(added, value_of(scores).dtype)
