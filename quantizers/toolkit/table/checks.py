"""Checks that several backends need; each returns why a match stays in float, or None."""

from __future__ import annotations

import torch
from torch.fx import Node

from pt2q.ir.dtypes import QUANTIZABLE
from pt2q.ir.experts import picks_matrices
from pt2q.ir.graph import is_constant, is_float_tensor, value_of
from pt2q.ir.ops import argument, has_argument, is_mutating, tensor_arguments
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.table.rule import Match


def one_float_type(match: Match) -> Reason | None:
    """All floating point tensors of the operator are of one type that can be quantized."""
    values = [value_of(node) for node in (*match.activations, match.head)]
    found = dict.fromkeys(v.dtype for v in values if isinstance(v, torch.Tensor))
    names = [str(dtype).removeprefix("torch.") for dtype in found]
    if not found.keys() <= QUANTIZABLE:
        other = next(n for n, dtype in zip(names, found, strict=True) if dtype not in QUANTIZABLE)
        return reasons.OTHER_TYPE.filled(dtype=other)
    return None if len(names) < 2 else reasons.MIXED_TYPES.filled(dtypes=" and ".join(names))


def constant_weight(match: Match) -> Reason | None:
    """Weight and bias are constants of the module, in float."""
    roles = match.roles
    if roles.weight is None or not is_constant(roles.weight):
        picked = picks_matrices(match.head)
        return reasons.PICKED_MATRICES if picked else reasons.WEIGHT_COMPUTED
    if not is_float_tensor(roles.weight):
        return reasons.WEIGHT_NOT_FLOAT
    if roles.bias is not None and not is_constant(roles.bias):
        return reasons.BIAS_COMPUTED
    return None


def batched(match: Match) -> Reason | None:
    """A convolution's input has a batch dimension."""
    weight = match.roles.weight
    source = value_of(match.activations[0])
    if weight is not None and source.dim() != value_of(weight).dim():
        return reasons.NO_BATCH
    return None


def inactive(match: Match) -> Reason | None:
    """Dropout passes its input on unchanged."""
    active = (n for n in ("train", "training") if has_argument(match.head, n))
    return reasons.DROPOUT_ACTIVE if any(argument(match.head, n) for n in active) else None


def writes_nothing_shared(match: Match) -> Reason | None:
    """An operator in place may only write into a temporary that nobody else reads."""
    for node in match.nodes:
        if not is_mutating(node):
            continue
        target = node.args[0]
        if not isinstance(target, Node) or target.op != "call_function":
            return reasons.WRITES_INTO_BUFFER
        if len(target.users) > 1:
            return reasons.WRITES_INTO_SHARED
    return None


def two_tensors(match: Match) -> Reason | None:
    """A binary operator works on tensors of one or more dimensions, not on scalars."""
    operands = [source for _, source in tensor_arguments(match.head)]
    if len(operands) < 2:
        return reasons.SCALAR_OPERAND
    if not all(is_float_tensor(source) for source in operands):
        return reasons.OPERAND_NOT_FLOAT
    if any(value_of(source).dim() == 0 for source in operands):
        return reasons.OPERAND_WITHOUT_DIMENSIONS
    return None


def no_alpha(match: Match) -> Reason | None:
    """``add`` and ``sub`` do not scale their second operand."""
    if has_argument(match.head, "alpha") and argument(match.head, "alpha") != 1:
        return reasons.ALPHA.filled(alpha=argument(match.head, "alpha"))
    return None


def no_picked_matrices(match: Match) -> Reason | None:
    """No factor is picked from a constant stack of matrices at run time."""
    return reasons.PICKED_MATRICES if picks_matrices(match.head) else None


def no_mask(match: Match) -> Reason | None:
    """No operand is an additive attention mask."""
    if any(match.context.masks.is_mask(source) for source in match.activations):
        return reasons.ATTENTION_MASK
    return None


def several_tensors(match: Match) -> Reason | None:
    """What joins tensors joins two different ones at least."""
    return reasons.JOINS_TOO_FEW if len(match.activations) < 2 else None


def float_inputs(match: Match) -> Reason | None:
    """The values carried are floating point; integers and booleans are left alone."""
    source = match.roles.activations
    if not source:
        return reasons.READS_NO_TENSOR
    value = value_of(source[0])
    tensors = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(v, torch.Tensor) and v.dtype in QUANTIZABLE for v in tensors):
        return None
    return reasons.VALUES_NOT_FLOAT


def varies(match: Match) -> Reason | None:
    """What is measured at run time is not the same in every call.

    Runtimes take the range of a constant when they load the program, or not at all.
    """
    sources = match.activations if match.config.is_dynamic else ()
    fixed = bool(sources) and all(map(match.context.constants.is_constant, sources))
    return reasons.NOTHING_TO_MEASURE if fixed else None


def kernel_takes(match: Match) -> Reason | None:
    """The kernel takes tensors of these ranks, and what the configuration asks for."""
    kernel = match.rule.kernel
    if kernel is None:
        return None
    return _ranks_fit(match, *kernel.dimensions) or match.context.fits.why_not(kernel, match.config)


def _ranks_fit(match: Match, fewest: int, most: int) -> Reason | None:
    for node in (*match.activations, match.head):
        value = value_of(node)
        rank = value.dim() if isinstance(value, torch.Tensor) else fewest
        if rank < fewest:
            return reasons.NO_BATCH
        if rank > most:
            return reasons.TOO_MANY_DIMENSIONS.filled(found=rank, most=most)
    return None


CONSTANT_WEIGHT = (constant_weight, one_float_type, writes_nothing_shared)
"""For operators with a weight: convolutions, linear layers."""
TWO_TENSORS = (two_tensors, one_float_type, no_alpha, no_mask, writes_nothing_shared)
"""For sums and products of two tensors."""
PASSED_ON = (float_inputs, one_float_type, writes_nothing_shared)
"""For operators that move values and compute nothing."""
