"""Weights that a step of training makes for one fake quantizer, which may write over them."""

from __future__ import annotations

from torch.fx import Node

from pt2q.ir.graph import inputs_of
from pt2q.ir.module import QuantGraphModule
from pt2q.observers import FakeQuantize
from pt2q.passes.batch_norm.qat_record import fused_pairs


def own_scaled_weights(model: QuantGraphModule) -> None:
    """Tell the fake quantizers of weights that `FuseConvBatchNormQAT` scales.

    A scaled weight is a new tensor in every step, which its fake quantizer alone reads and which
    no gradient needs: its rounding needs no second tensor of that size.

    Args:
        model: prepared for training.
    """
    scaled = {pair.weight for pair in fused_pairs(model.record)}
    for node in model.graph.nodes:
        if node.op != "call_module":
            continue
        module = model.get_submodule(str(node.target))
        if isinstance(module, FakeQuantize):
            # One that several nodes call, here or in another program, owns all or nothing.
            module.owns_input = module.owns_input is not False and _is_owned(node, scaled)


def _is_owned(node: Node, scaled: set[str]) -> bool:
    (source,) = inputs_of(node)
    return source.name in scaled and len(source.users) == 1
