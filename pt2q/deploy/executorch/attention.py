"""Attention in operators that XNNPACK runs, its masks once for all layers.

The runtime has no kernel for the fused operator. ExecuTorch takes it apart into two products and a
softmax that XNNPACK runs, and around each softmax half a dozen portable operators on whole matrices
of scores: they build the mask anew in each layer, and look for rows in which all is masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.emit import Emitter, has_fake_values
from pt2q.ir.graph import value_of
from pt2q.ir.storage import StorageMap
from pt2q.passes.transform.attention_masks import SharedMasks

PASS_NAME = "pt2q.executorch_attention"
MASKED = -1e30
"""Added to what is masked: its exponential is 0, and the sum of both is a number."""


def attentions(model: GraphModule) -> list[Node]:
    """The attentions that `attention_in_parts` takes apart.

    Args:
        model: a converted module.
    """
    return [node for node in model.graph.nodes if _is_taken_apart(node)]


def attention_in_parts(model: GraphModule) -> bool:
    """Take each attention apart, with masks that are added as numbers.

    With query ``q`` [..., L, E], key ``k`` [..., S, E], value ``v`` [..., S, Ev]::

        softmax((scale q) k^T + m) v        m is 0, or `MASKED` where a mask forbids to look

    A row in which everything is masked gives 0, as the fused operator does; masks that are known
    and have no such row are not asked about it.

    Args:
        model: a converted module; changed in place.

    Returns:
        Whether there were any.
    """
    found = attentions(model)
    if not found:
        return False
    masks = _Masks(SharedMasks(StorageMap.of(model.graph)), Constants(model))
    for node in found:
        _write(Emitter(model, PASS_NAME).before(node), masks)
    model.graph.eliminate_dead_code()
    model.recompile()
    return True


def _is_taken_apart(node: Node) -> bool:
    if not ops.is_op(node, ops.SDPA) or not has_fake_values(node):
        return False
    if ops.argument(node, "enable_gqa") or ops.argument(node, "dropout_p"):
        return False
    values = [value_of(source) for source in node.all_input_nodes]
    sizes = (size for value in values for size in value.shape)
    types = {value.dtype for value in values} - {torch.bool}
    return types == {torch.float32} and all(isinstance(size, int) for size in sizes)


def _write(emit: Emitter, masks: _Masks) -> None:
    node = emit.origin
    query, key, value = (ops.argument(node, name) for name in ("query", "key", "value"))
    scale = ops.argument(node, "scale")
    scale = value_of(query).shape[-1] ** -0.5 if scale is None else scale
    if scale != 1.0:
        query = emit.call(ops.aten.mul.Tensor, query, scale)
    turned = emit.call(ops.aten.transpose.int, key, -2, -1)
    scores = emit.call(ops.aten.matmul.default, query, turned)
    added, seen = masks.of(emit)
    if added is not None:
        scores = emit.call(ops.aten.add.Tensor, scores, added)
    weights = emit.call(ops.aten.softmax.int, scores, -1)
    result = emit.call(ops.aten.matmul.default, weights, value)
    if seen is not None:
        result = emit.call(ops.aten.mul.Tensor, result, seen)
    emit.replace_by(result)


@dataclass(frozen=True)
class _Masks:
    """What attentions of one model add to their scores.

    Args:
        shared: what was computed so far.
        constants: of the model, before it was changed.
    """

    shared: SharedMasks
    constants: Constants

    def of(self, emit: Emitter) -> tuple[Node | None, Node | None]:
        """What is added to scores, and what rows are multiplied by that may see nothing."""
        mask = ops.argument(emit.origin, "attn_mask")
        if ops.argument(emit.origin, "is_causal"):
            return self._causal(emit), None
        if mask is None:
            return None, None
        known = self.constants.value(mask) if self.constants.is_constant(mask) else None
        if known is not None and known.dtype is torch.bool:
            if bool(known.all()):
                return None, None
            if _is_causal(known, emit.origin):
                return self._causal(emit), None
        added = self.shared.get(mask, lambda: _numbers(emit, mask))
        if known is not None and not bool(_blind(known).any()):
            return added, None
        return added, self.shared.get((mask, "seen"), lambda: _seen(emit, mask))

    def _causal(self, emit: Emitter) -> Node:
        rows, columns = _sizes(emit.origin)
        return self.shared.get((rows, columns), lambda: _causal(emit, rows, columns))


def _sizes(node: Node) -> tuple[int, int]:
    """How many rows and columns the scores have."""
    query, key = (value_of(ops.argument(node, name)) for name in ("query", "key"))
    return int(query.shape[-2]), int(key.shape[-2])


def _is_causal(mask: Tensor, node: Node) -> bool:
    """Whether a mask lets every row see itself and what comes before it, and no more."""
    rows, columns = _sizes(node)
    if tuple(mask.shape[-2:]) != (rows, columns):
        return False
    return bool((mask == torch.ones(rows, columns, dtype=torch.bool).tril()).all())


def _blind(mask: Tensor) -> Tensor:
    """The rows in which everything is masked."""
    forbidden = ~mask if mask.dtype is torch.bool else mask == -torch.inf
    return forbidden.all(-1, keepdim=True)


def _causal(emit: Emitter, rows: int, columns: int) -> Node:
    """`MASKED` above the diagonal, from two rows of numbers: a matrix would add to the file."""
    down = _counted(emit, rows, (rows, 1))
    across = _counted(emit, columns, (1, columns))
    ahead = emit.call(ops.aten.sub.Tensor, across, down)
    return emit.call(
        ops.aten.mul.Tensor, emit.call(ops.aten.clamp.default, ahead, 0.0, 1.0), MASKED
    )


def _counted(emit: Emitter, count: int, shape: tuple[int, int]) -> Node:
    with value_of(emit.origin).fake_mode:
        value = torch.arange(count, dtype=torch.float32)
    numbers = emit.call_giving(value, ops.aten.arange.default, count, dtype=torch.float32)
    return emit.call(ops.aten.reshape.default, numbers, list(shape))


def _numbers(emit: Emitter, mask: Node) -> Node:
    """A mask as numbers to add, all of them finite."""
    if value_of(mask).dtype is not torch.bool:
        return emit.call(ops.aten.clamp.default, mask, MASKED)
    allowed = emit.cast(mask, torch.float32)
    return emit.call(ops.aten.mul.Tensor, emit.call(ops.aten.sub.Tensor, allowed, 1.0), -MASKED)


def _seen(emit: Emitter, mask: Node) -> Node:
    """1 for the rows that see something, 0 for the others."""
    allowed = mask
    if value_of(mask).dtype is not torch.bool:
        allowed = emit.call(ops.aten.ne.Scalar, mask, -torch.inf)
    return emit.cast(emit.call(ops.aten.any.dim, allowed, -1, True), torch.float32)
