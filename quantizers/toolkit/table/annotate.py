"""Ways to annotate a match, by the roles of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from torch.fx import Node

from pt2q.ir.graph import is_float_tensor
from pt2q.quantizers.toolkit.config import QuantizationConfig
from pt2q.quantizers.toolkit.reading.tensor_roles import roles_of
from pt2q.quantizers.toolkit.table.rule import Match
from pt2q.spec import (
    QUANT_ANNOTATION_KEY,
    QuantizationAnnotation,
    QuantizationSpecBase,
    SharedQuantizationSpec,
    annotation_of,
)

Inputs: TypeAlias = Mapping[Node, QuantizationSpecBase | None]
"""A spec per input node; one that is None stays in float."""


def set_annotation(
    node: Node,
    inputs: Inputs | None = None,
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
    inputs: Inputs,
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


def annotate_weighted(match: Match) -> None:
    """An operator with a constant weight: its inputs, its weight and its result."""
    annotate_with(match, match.config)


def annotate_weighted_inputs(match: Match) -> None:
    """Inputs and weight; whoever reads the result quantized says its parameters."""
    annotate_with(match, replace(match.config, bias=None, output_activation=None))


def annotate_with(match: Match, config: QuantizationConfig) -> None:
    """Like `annotate_weighted`, with a configuration adapted to the operator.

    Args:
        match: the place.
        config: taken in place of the match's own.
    """
    roles = match.roles
    inputs: dict[Node, QuantizationSpecBase | None] = dict.fromkeys(
        match.activations, config.input_activation
    )
    if roles.weight is not None:
        inputs[roles.weight] = config.weight
    if roles.bias is not None:
        inputs[roles.bias] = config.bias
    annotate_chain(match, inputs, config.output_activation)


def annotate_activations(match: Match) -> None:
    """Activations only, the inputs and the output each with parameters of its own."""
    annotate_chain(match, _activations(match), match.config.output_activation)


def annotate_inputs(match: Match) -> None:
    """The inputs alone, each with parameters of its own."""
    annotate_chain(match, _activations(match), None)


def _activations(match: Match) -> Inputs:
    return dict.fromkeys(match.activations, match.config.input_activation)


def annotate_sharing(match: Match) -> None:
    """One set of parameters for all inputs and the output: concatenation."""
    first, *others = match.activations
    shared = SharedQuantizationSpec((first, match.head))
    inputs: Inputs = {first: match.config.input_activation, **dict.fromkeys(others, shared)}
    annotate_chain(match, inputs, shared)


def annotate_like_input(match: Match) -> None:
    """The output has the parameters of the input; pieces of a split share the whole's."""
    source = source_of_values(match.head)
    shared = SharedQuantizationSpec(source)
    reads_tensor = source in match.head.all_input_nodes
    output = shared if is_float_tensor(match.last) else None
    annotate_chain(match, {source: shared} if reads_tensor else {}, output)


def source_of_values(node: Node) -> Node:
    """The tensor whose values a shape operator passes on: its input, or that of its split."""
    source = roles_of(node).activations[0]
    while not is_float_tensor(source):
        source = roles_of(source).activations[0]
    return source


def output_is_quantized(node: Node) -> bool:
    """Whether an annotation already made (by another quantizer, say) quantizes the output."""
    annotation = annotation_of(node)
    return annotation is not None and annotation.output_qspec is not None
