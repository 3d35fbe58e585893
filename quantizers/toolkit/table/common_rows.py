"""Rows that several backends have alike; a table takes them as they are, or with a difference."""

from __future__ import annotations

from dataclasses import replace

from pt2q.ir import ops
from pt2q.quantizers.toolkit.table import checks, examples
from pt2q.quantizers.toolkit.table.annotate import (
    annotate_inputs,
    annotate_sharing,
    annotate_weighted,
)
from pt2q.quantizers.toolkit.table.rule import Rule, When

CONVOLUTION = Rule(
    name="convolution",
    heads=ops.CONV1D | ops.CONV2D,
    annotate=annotate_weighted,
    checks=(*checks.CONSTANT_WEIGHT, checks.batched),
    examples=(examples.CONVOLUTION, examples.CONVOLUTION_1D, examples.DEPTHWISE),
)
LINEAR = Rule(
    name="linear",
    heads=ops.LINEAR,
    annotate=annotate_weighted,
    checks=checks.CONSTANT_WEIGHT,
    examples=(examples.LINEAR_LAYER,),
)
PRODUCT = Rule(
    name="matrix product",
    heads=ops.MATMUL | ops.BMM,
    annotate=annotate_inputs,
    checks=(checks.no_picked_matrices, checks.two_tensors, checks.one_float_type),
    when=When.BETWEEN_QUANTIZED,
    examples=(examples.COMPUTED_FACTORS,),
)
CONCATENATION = Rule(
    name="concatenation",
    heads=ops.CAT,
    annotate=annotate_sharing,
    checks=(checks.several_tensors, checks.one_float_type),
    when=When.BETWEEN_QUANTIZED,
    examples=(examples.CONCATENATION,),
)
AVERAGE = Rule(
    name="average",
    heads=ops.AVG_POOL | ops.ADAPTIVE_AVG_POOL | ops.MEAN,
    annotate=annotate_inputs,
    checks=(checks.one_float_type,),
    when=When.BETWEEN_QUANTIZED,
    examples=(examples.AVERAGE_POOL, examples.GLOBAL_POOL, examples.MEAN),
)
MOVE = Rule(
    name="move",
    heads=ops.MAX_POOL2D | ops.RESHAPE | ops.PERMUTE | ops.UPSAMPLE_NEAREST | ops.COPY,
    annotate=annotate_sharing,
    checks=checks.PASSED_ON,
    when=When.INPUT_QUANTIZED,
    output_counts=False,
    examples=(
        examples.MAX_POOL,
        examples.RESHAPE,
        examples.PERMUTE,
        examples.SHUFFLE,
        examples.UPSAMPLE,
        examples.COPY,
    ),
)
DROPOUT = replace(
    MOVE,
    name="dropout",
    heads=ops.DROPOUT,
    checks=(*MOVE.checks, checks.inactive),
    examples=(examples.DROPOUT,),
)
