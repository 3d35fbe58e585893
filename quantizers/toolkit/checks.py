"""Checks that several backends need; each returns why a match stays in float, or None."""

from __future__ import annotations

import torch
from torch.fx import Node

from pt2q.ir.graph import is_constant, is_float_tensor, value_of
from pt2q.ir.ops import argument, has_argument, is_mutating, tensor_arguments
from pt2q.quantizers.toolkit.roles import float_activations, roles_of
from pt2q.quantizers.toolkit.rules import Match


def float32_only(match: Match) -> str | None:
    """All floating point tensors of the operator are float32."""
    for node in (*float_activations(match.head), match.head):
        value = value_of(node)
        if isinstance(value, torch.Tensor) and value.dtype is not torch.float32:
            return f"it computes in {str(value.dtype).removeprefix('torch.')}, not float32"
    return None


def constant_weight(match: Match) -> str | None:
    """Weight and bias are constants of the module, in float."""
    roles = roles_of(match.head)
    if roles.weight is None or not is_constant(roles.weight):
        return "its weight is computed in the graph, not a constant"
    if not is_float_tensor(roles.weight):
        return "its weight is not a floating point tensor"
    if roles.bias is not None and not is_constant(roles.bias):
        return "its bias is computed in the graph, not a constant"
    return None


def batched(match: Match) -> str | None:
    """A convolution's input has a batch dimension."""
    weight = roles_of(match.head).weight
    source = value_of(float_activations(match.head)[0])
    if weight is not None and source.dim() != value_of(weight).dim():
        return "its input has no batch dimension"
    return None


def inactive(match: Match) -> str | None:
    """Dropout passes its input on unchanged."""
    active = (n for n in ("train", "training") if has_argument(match.head, n))
    return "dropout is active" if any(argument(match.head, n) for n in active) else None


def writes_nothing_shared(match: Match) -> str | None:
    """An operator in place may only write into a temporary that nobody else reads."""
    for node in match.nodes:
        if not is_mutating(node):
            continue
        target = node.args[0]
        if not isinstance(target, Node) or target.op != "call_function":
            return "it writes in place into a buffer or an input"
        if len(target.users) > 1:
            return "it writes in place into a tensor that others read too"
    return None


def two_tensors(match: Match) -> str | None:
    """A binary operator works on tensors of one or more dimensions, not on scalars."""
    operands = [source for _, source in tensor_arguments(match.head)]
    if len(operands) < 2:
        return "one operand is a scalar"
    if not all(is_float_tensor(source) for source in operands):
        return "one operand is not a floating point tensor"
    if any(value_of(source).dim() == 0 for source in operands):
        return "one operand has no dimensions"
    return None


def no_alpha(match: Match) -> str | None:
    """``add`` and ``sub`` do not scale their second operand."""
    if has_argument(match.head, "alpha") and argument(match.head, "alpha") != 1:
        return f"alpha is {argument(match.head, 'alpha')}, not 1"
    return None


def no_mask(match: Match) -> str | None:
    """No operand is an additive attention mask."""
    if any(match.context.masks.is_mask(source) for source in float_activations(match.head)):
        return "an operand is an attention mask: its huge values would take up the whole range"
    return None


def float_inputs(match: Match) -> str | None:
    """The values carried are floating point; integers and booleans are left alone."""
    source = roles_of(match.head).activations
    if not source:
        return "it reads no tensor"
    value = value_of(source[0])
    tensors = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(v, torch.Tensor) and v.dtype is torch.float32 for v in tensors):
        return None
    return "its values are not float32"
