"""What is stored by its weights: linear layers, and convolutions where weights have no groups."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch.fx import Node

from pt2q.ir import ops
from pt2q.ir.experts import PRODUCTS, stack_of
from pt2q.ir.graph import value_of
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.engine.table_quantizer import TableQuantizer
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.table import checks, common_rows, examples
from pt2q.quantizers.toolkit.table.annotate import set_annotation
from pt2q.quantizers.toolkit.table.backend_table import BackendTable
from pt2q.quantizers.toolkit.table.kernel_limits import (
    INT4,
    INT8,
    INT16,
    UINT8,
    KernelLimits,
    StoredAs,
    TensorLimits,
)
from pt2q.quantizers.toolkit.table.products import of_product
from pt2q.quantizers.toolkit.table.rule import Match, Rule
from pt2q.quantizers.weights.configs import (
    get_dynamic_activation_4bit_weight_config,
    get_weight_only_quantization_config,
)
from pt2q.spec import PerAxis, PerGroup, PerTensor, PerToken, granularity_of

T = TypeVar("T", bound=TableQuantizer)

FLOATS = tuple(
    map(StoredAs, (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16))
)
ACTIVATION = TensorLimits(
    stored=(*(form.scaled(PerTensor, PerToken) for form in (INT8, UINT8, INT16)), *FLOATS)
)
WEIGHT = TensorLimits(
    stored=(
        INT8.scaled(PerTensor, PerAxis, PerGroup),
        INT4.scaled(PerAxis, PerGroup),
        *(form.scaled(PerTensor, PerAxis) for form in FLOATS),
    )
)
KERNEL = KernelLimits(
    activation=ACTIVATION, weight=WEIGHT, result=ACTIVATION, float_activation=True
)


def group_size(config: QuantizationConfig) -> int | None:
    """How many neighbours along a row of the weight share a scale; None where all do."""
    found = None if config.weight is None else granularity_of(config.weight)
    return found.group_size if isinstance(found, PerGroup) else None


def _groups_fit(match: Match) -> Reason | None:
    size, weight = group_size(match.config), match.roles.weight
    if size is None or weight is None:
        return None
    columns = value_of(weight).shape[1]
    if columns % size == 0:
        return None
    return reasons.GROUPS_DO_NOT_FIT.filled(columns=columns, size=size)


def _is_stack(node: Node) -> bool:
    return stack_of(node) is not None


def _stored_by_rows(match: Match) -> Reason | None:
    found = stack_of(match.head)
    assert found is not None, "the row is about stacks"
    if not found.by_rows:
        return reasons.STACK_AS_IT_IS
    size, columns = group_size(match.config), value_of(found.constant).shape[1]
    if size is None or columns % size == 0:
        return None
    return reasons.GROUPS_DO_NOT_FIT.filled(columns=columns, size=size)


def _asked_for(match: Match) -> Reason | None:
    if ops.known_as(match.head.target) in ops.GROUPED_MM:
        return reasons.NO_GROUPED_PRODUCT
    return None if match.config.input_activation is None else reasons.PICKED_MATRICES


def _annotate_rows(match: Match) -> None:
    """The rows where they are read; several products of one stack agree on them."""
    found = stack_of(match.head)
    assert found is not None, "the row is about stacks"
    set_annotation(match.head)
    set_annotation(found.whole, {found.constant: match.config.weight})


def _no_groups(match: Match) -> Reason | None:
    return None if group_size(match.config) is None else reasons.GROUPS_LINEAR_ONLY


LINEAR = replace(
    common_rows.LINEAR,
    kernel=KERNEL,
    checks=(*checks.CONSTANT_WEIGHT, _groups_fit),
    modes=frozenset(Mode),
)
CONVOLUTION = replace(
    common_rows.CONVOLUTION,
    heads=ops.CONV_FORWARD,
    kernel=KERNEL,
    checks=(*checks.CONSTANT_WEIGHT, _no_groups),
)
TRANSPOSED = replace(
    CONVOLUTION,
    name="transposed convolution",
    heads=ops.CONV_TRANSPOSE,
    kernel=replace(KERNEL, weight=replace(WEIGHT, axis=1)),
    examples=(examples.TRANSPOSED, examples.GROUPED_TRANSPOSED),
)


class _WeightsAlone(KernelLimits):
    """Weights as they are asked for, and activations in float: there are no other kernels."""

    def fitted(self, config: QuantizationConfig) -> QuantizationConfig:
        """See `KernelLimits.fitted`."""
        fitted = super().fitted(config)
        return replace(fitted, input_activation=None, output_activation=None, bias=None)


STACK = Rule(
    name="stack of matrices",
    heads=PRODUCTS,
    where=_is_stack,
    kernel=_WeightsAlone(**vars(KERNEL)),
    annotate=_annotate_rows,
    checks=(_stored_by_rows, checks.one_float_type),
    modes=frozenset({Mode.STATIC, Mode.DYNAMIC}),
    examples=(examples.EXPERTS, examples.STACKED),
)


def _configure(mode: Mode) -> QuantizationConfig:
    if mode is Mode.DYNAMIC:
        return get_dynamic_activation_4bit_weight_config()
    return get_weight_only_quantization_config()


WEIGHTS = BackendTable(
    runtime="WeightQuantizer",
    configure=_configure,
    configuration="get_weight_only_quantization_config()",
    rules=(STACK, LINEAR, CONVOLUTION, TRANSPOSED),
    in_float=(
        (
            ops.BMM | ops.MATMUL | ops.MM | ops.PRODUCT_ADDED,
            of_product(reasons.CONSTANT_FACTOR, reasons.NO_WEIGHT),
        ),
    ),
    else_in_float=reasons.NO_WEIGHT,
    multiplies_groups=True,
)


def with_weights_alone(quantizer: T) -> T:
    """A backend's quantizer that also stores weights alone, in all the forms that there are.

    Args:
        quantizer: its own rows come before those that are added.
    """
    table = quantizer.table
    rows = (*table.rules, *map(_alone, WEIGHTS.rules))
    quantizer.table = replace(table, rules=rows)
    return quantizer


def _alone(rule: Rule) -> Rule:
    if rule is STACK:
        return replace(rule, kernel=_none_else(KERNEL), checks=(_asked_for, *rule.checks))
    assert rule.kernel is not None
    return replace(rule, kernel=_none_else(rule.kernel))


def _none_else(kernel: KernelLimits) -> KernelLimits:
    return replace(kernel, activation=TensorLimits(stored=()), result=None)
