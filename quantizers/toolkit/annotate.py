"""The three ways to annotate a match, by the roles of its tensors."""

from __future__ import annotations

from torch.fx import Node

from pt2q.ir.graph import is_float_tensor
from pt2q.quantizers.toolkit.config import QuantizationConfig
from pt2q.quantizers.toolkit.roles import float_activations, roles_of
from pt2q.quantizers.toolkit.rules import Match
from pt2q.spec import (
    QUANT_ANNOTATION_KEY,
    QuantizationAnnotation,
    QuantizationSpecBase,
    SharedQuantizationSpec,
    annotation_of,
)


def set_annotation(
    node: Node,
    inputs: dict[Node, QuantizationSpecBase | None] | None = None,
    output: QuantizationSpecBase | None = None,
) -> None:
    """Annotate one node.

    Args:
        node: the consumer of ``inputs`` and producer of ``output``.
        inputs: a spec per input node; entries that are None are left out.
        output: the spec of its result, or None.
    """
    given = {} if inputs is None else inputs
    kept: dict[Node, QuantizationSpecBase | None] = {
        source: spec for source, spec in given.items() if spec is not None
    }
    node.meta[QUANT_ANNOTATION_KEY] = QuantizationAnnotation(kept, output, _annotated=True)


def annotate_chain(
    match: Match,
    inputs: dict[Node, QuantizationSpecBase | None],
    output: QuantizationSpecBase | None,
) -> None:
    """Inputs at the head, the output at the last node; what lies between is merely claimed.

    Args:
        match: the place.
        inputs: a spec per input of the head; None leaves one in float.
        output: the spec of the last node's result, or None.
    """
    if len(match.nodes) == 1:
        set_annotation(match.head, inputs, output)
        return
    set_annotation(match.head, inputs)
    for node in match.nodes[1:-1]:
        set_annotation(node)
    set_annotation(match.last, output=output)


def annotate_chain_inputs(match: Match, inputs: dict[Node, QuantizationSpecBase | None]) -> None:
    """Inputs at the head, nothing at the output: a reader that is quantized says its parameters.

    Args:
        match: the place; the nodes behind the head are claimed.
        inputs: a spec per input of the head.
    """
    annotate_chain(match, inputs, None)


def annotate_weighted(match: Match) -> None:
    """An operator with a constant weight: convolutions, linear layers."""
    annotate_with(match, match.config)


def annotate_with(match: Match, config: QuantizationConfig) -> None:
    """Like `annotate_weighted`, with a configuration adapted to the operator.

    Args:
        match: the place.
        config: taken in place of the match's own.
    """
    roles = roles_of(match.head)
    inputs: dict[Node, QuantizationSpecBase | None] = {}
    for source in float_activations(match.head):
        inputs[source] = config.input_activation
    if roles.weight is not None:
        inputs[roles.weight] = config.weight
    if roles.bias is not None:
        inputs[roles.bias] = config.bias
    annotate_chain(match, inputs, config.output_activation)


def annotate_independent(match: Match) -> None:
    """Activations only, the inputs and the output each with parameters of its own."""
    config = match.config
    inputs: dict[Node, QuantizationSpecBase | None] = {
        source: config.input_activation for source in float_activations(match.head)
    }
    annotate_chain(match, inputs, config.output_activation)


def annotate_joined(match: Match) -> None:
    """One set of parameters for all inputs and the output: concatenation."""
    first, *others = float_activations(match.head)
    shared = SharedQuantizationSpec((first, match.head))
    inputs: dict[Node, QuantizationSpecBase | None] = {first: match.config.input_activation}
    inputs.update(dict.fromkeys(others, shared))
    annotate_chain(match, inputs, shared)


def annotate_carried(match: Match) -> None:
    """The output has the parameters of the input; pieces of a split share the whole's."""
    source = carried_from(match.head)
    shared = SharedQuantizationSpec(source)
    reads_tensor = source in match.head.all_input_nodes
    output = shared if is_float_tensor(match.last) else None
    annotate_chain(match, {source: shared} if reads_tensor else {}, output)


def carried_from(node: Node) -> Node:
    """The tensor whose values a shape operator passes on: its input, or that of its split."""
    source = roles_of(node).activations[0]
    while not is_float_tensor(source):
        source = roles_of(source).activations[0]
    return source


def output_is_quantized(node: Node) -> bool:
    """Whether an annotation already made (by another quantizer, say) quantizes the output."""
    annotation = annotation_of(node)
    return annotation is not None and annotation.output_qspec is not None
