"""Write every convolution and its batch norm so that training quantizes the folded weight.

Jacob et al. 2018, section 3.2: what is deployed is ``w * s`` with
``s = gamma / sqrt(running_var + eps)``, so that is what must be rounded in training. The layer

    batch_norm(conv(x, w) + b)

becomes

    batch_norm(conv(x, fq(w * s)) / s + b)

which without ``fq`` is the same function, with the same gradients and statistics. A channel with
``gamma = 0`` uses ``s = 1``: it has no folded weight to round, and its statistics must not become
0 / 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from pt2q.ir import ops
from pt2q.ir.batch_norm import BatchNorm, Layer, batch_norms, pair_reason
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import is_constant
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.storage import written_constants
from pt2q.passes.batch_norm.fused_pair import PairWriter
from pt2q.passes.batch_norm.qat_record import FusedPairs
from pt2q.spec import annotation_of
from pt2q.spec.moved_edges import move_edges
from pt2q.training import scaled_batch_norm  # noqa: F401 - registers the operator

PASS = "conv_bn_qat_fuse"


@dataclass(frozen=True)
class FuseConvBatchNormQAT:
    """Fuse every annotated layer with its batch norm; note the reason where that is impossible.

    Runs after annotation. The annotations of a layer's weight and bias, and every spec that refers
    to those edges, move to the nodes that take their place.

    Args:
        fast: let the batch norm undo the scaling (`pt2q.training.scaled_batch_norm`): the same
            function with other rounding errors, in less time and memory. False: with the operators
            of ``torch.ao.nn.intrinsic.qat.ConvBn2d``, in their order.
    """

    fast: bool = True

    def __call__(self, model: QuantGraphModule) -> bool:
        """Fuse; see the class.

        Args:
            model: annotated; changed in place.

        Returns:
            Whether something was fused.
        """
        written = written_constants(model.graph)
        pairs, moved = [], {}
        for bn in batch_norms(model):
            layer, reason = _match(bn, written)
            if layer is None or reason:
                model.record.note(PASS, bn.node.name, reason)
            elif _quantizes_weight(layer):
                writer = PairWriter(Emitter(model, PASS), layer, bn, self.fast)
                pairs.append(writer.write())
                moved.update(writer.moved)
        move_edges(model.graph, moved)
        model.record.put(FusedPairs(tuple(pairs)))
        return bool(pairs)


def _match(bn: BatchNorm, written: set[str]) -> tuple[Layer | None, str]:
    if bn.running_mean is None or bn.running_var is None:
        return None, "it has no running statistics, with which the folded weight is made"
    layer, reason = pair_reason(bn)
    if layer is None:
        return None, reason
    if bn.node.target not in ops.BATCH_NORM or not all(map(is_constant, bn.constants)):
        return None, "it is decomposed or its parameters are computed"
    if not is_constant(layer.weight):
        return None, f"the weight of {layer.node.name} is computed by {layer.weight.name}"
    if str(layer.weight.target) in written:
        return None, f"{layer.weight.target} is written in the forward pass"
    if not (layer.bias is None or is_constant(layer.bias)):
        return None, f"the bias of {layer.node.name} is computed by {layer.bias.name}"
    if _quantizes_between(layer, bn):
        return None, f"the output of {layer.node.name} is quantized before it"
    return layer, ""


def _quantizes_between(layer: Layer, bn: BatchNorm) -> bool:
    own, next_ = annotation_of(layer.node), annotation_of(bn.node)
    output = own is not None and own.output_qspec is not None
    return output or (next_ is not None and next_.input_qspec_map.get(layer.node) is not None)


def _quantizes_weight(layer: Layer) -> bool:
    annotation = annotation_of(layer.node)
    return annotation is not None and annotation.input_qspec_map.get(layer.weight) is not None
