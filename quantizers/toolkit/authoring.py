"""What authors of quantizers call: put specs on nodes, take specs out of a configuration.

Names and meanings are those that quantizers for PyTorch 2 Export are written with.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx import Node

from pt2q.errors import SpecError
from pt2q.ir.graph import module_stack
from pt2q.quantizers.toolkit.config import QuantizationConfig
from pt2q.spec import (
    QUANT_ANNOTATION_KEY,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    annotation_of,
)

Q_ANNOTATION_KEY = QUANT_ANNOTATION_KEY
"""The key in ``node.meta`` under which a node's annotation stands."""

OperatorPatternType = list[Callable[..., Any]]
"""Modules and functions that follow each other, as in ``[nn.Conv2d, F.relu]``."""

PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric, None)


class OperatorConfig(NamedTuple):
    """The patterns that a quantizer supports under one configuration."""

    config: QuantizationConfig
    operators: list[OperatorPatternType]


def annotate_input_qspec_map(
    node: Node, input_node: Node, qspec: QuantizationSpecBase | None
) -> None:
    """Say how the edge from ``input_node`` to ``node`` is quantized; other edges keep theirs."""
    _own_annotation(node).input_qspec_map[input_node] = qspec


def annotate_output_qspec(node: Node, qspec: QuantizationSpecBase | None) -> None:
    """Say how the output of a node is quantized; its inputs keep their specs."""
    _own_annotation(node).output_qspec = qspec


def _own_annotation(node: Node) -> QuantizationAnnotation:
    if annotation_of(node) is None:
        node.meta[QUANT_ANNOTATION_KEY] = QuantizationAnnotation()
    found: QuantizationAnnotation = node.meta[QUANT_ANNOTATION_KEY]
    return found


def is_valid_annotation(annotation: QuantizationAnnotation | None) -> bool:
    """Whether an annotation says anything: a spec for an edge, or for the output."""
    if annotation is None:
        return False
    return bool(annotation.input_qspec_map) or annotation.output_qspec is not None


def get_input_act_qspec(quantization_config: QuantizationConfig | None) -> QuantizationSpec | None:
    """The spec of activations that an operator reads; None leaves them in float.

    Raises:
        SpecError: it has a scale for more than the whole tensor.
    """
    spec = None if quantization_config is None else quantization_config.input_activation
    return _with_scheme(spec, PER_TENSOR, "input activations")


def get_output_act_qspec(quantization_config: QuantizationConfig | None) -> QuantizationSpec | None:
    """The spec of an operator's result; None leaves it in float.

    Raises:
        SpecError: it has a scale for more than the whole tensor.
    """
    spec = None if quantization_config is None else quantization_config.output_activation
    return _with_scheme(spec, PER_TENSOR, "output activations")


def get_weight_qspec(quantization_config: QuantizationConfig | None) -> QuantizationSpec | None:
    """The spec of weights; None leaves them in float.

    Raises:
        SpecError: it is not symmetric.
    """
    spec = None if quantization_config is None else quantization_config.weight
    return _with_scheme(spec, SYMMETRIC, "weights")


def get_bias_qspec(quantization_config: QuantizationConfig | None) -> QuantizationSpec | None:
    """The spec of biases, which are kept in float32; None says the same.

    Raises:
        SpecError: it asks for another dtype. An integer bias is a `DerivedQuantizationSpec` of the
            scales of input and weight.
    """
    spec = None if quantization_config is None else quantization_config.bias
    if spec is not None and spec.dtype is not torch.float32:
        raise SpecError(
            f"biases: expected a spec of torch.float32, which leaves them in float, found "
            f"{spec.dtype}; annotate an integer bias with a DerivedQuantizationSpec of the scales "
            "of input and weight"
        )
    return spec


def _with_scheme(
    spec: QuantizationSpec | None, allowed: tuple[Any, ...], what: str
) -> QuantizationSpec | None:
    if spec is None or spec.qscheme in allowed:
        return spec
    names = ", ".join(str(scheme) for scheme in allowed if scheme is not None)
    raise SpecError(f"{what}: expected one of {names}, found {spec.qscheme}")


def get_module_name_filter(module_name: str) -> Callable[[Node], bool]:
    """A function that says whether a node was traced in a module, or in one inside it.

    Args:
        module_name: a qualified name as ``named_modules`` has it, such as ``blocks.0.conv``.
    """

    def is_in_module(node: Node) -> bool:
        return any(path == module_name for path, _ in module_stack(node))

    return is_in_module


def get_new_attr_name_with_prefix(prefix: str) -> Callable[[nn.Module], str]:
    """A function that finds a name for a new attribute of a module.

    Args:
        prefix: what the name begins with; a number follows. Dots become underscores.
    """
    stem = prefix.replace(".", "_")

    def name_in(module: nn.Module) -> str:
        return next(name for i in count() if not hasattr(module, name := f"{stem}{i}"))

    return name_in


class WrapperModule(nn.Module):
    """A function as a module, so that it can be exported.

    Args:
        fn: called with whatever the module is called with.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        return self.fn(*args, **kwargs)
