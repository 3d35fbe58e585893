"""Rows that several backends have alike; a table takes them as they are, or with a difference."""

from __future__ import annotations

from dataclasses import replace

from pt2q.ir import ops
from pt2q.quantizers.toolkit.table import checks
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
)
LINEAR = Rule(
    name="linear", heads=ops.LINEAR, annotate=annotate_weighted, checks=checks.CONSTANT_WEIGHT
)
PRODUCT = Rule(
    name="matrix product",
    heads=ops.MATMUL | ops.BMM,
    annotate=annotate_inputs,
    checks=(checks.two_tensors, checks.float32_only),
    when=When.BETWEEN_QUANTIZED,
)
CONCATENATION = Rule(
    name="concatenation",
    heads=ops.CAT,
    annotate=annotate_sharing,
    checks=(checks.several_tensors, checks.float32_only),
    when=When.BETWEEN_QUANTIZED,
)
AVERAGE = Rule(
    name="average",
    heads=ops.AVG_POOL | ops.ADAPTIVE_AVG_POOL | ops.MEAN,
    annotate=annotate_inputs,
    checks=(checks.float32_only,),
    when=When.BETWEEN_QUANTIZED,
)
MOVE = Rule(
    name="move",
    heads=ops.MAX_POOL2D | ops.RESHAPE | ops.PERMUTE | ops.UPSAMPLE_NEAREST | ops.COPY,
    annotate=annotate_sharing,
    checks=checks.PASSED_ON,
    when=When.INPUT_QUANTIZED,
    output_counts=False,
)
DROPOUT = replace(MOVE, name="dropout", heads=ops.DROPOUT, checks=(*MOVE.checks, checks.inactive))
