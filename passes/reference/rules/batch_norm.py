"""Batch norms that were not folded."""

from __future__ import annotations

from dataclasses import replace

import torch

from pt2q.ir import ops
from pt2q.ir.graph import value_of
from pt2q.passes.reference.call import Call
from pt2q.passes.reference.rule_table import reference_rule
from pt2q.passes.reference.values import NoIntegerForm, Sum

aten = ops.aten


@reference_rule(ops.BATCH_NORM)
def batch_norm(call: Call) -> Sum:
    """A batch norm that was not folded: ``gain * x + shift`` per channel."""
    if call.argument("training"):
        raise NoIntegerForm("batch statistics")
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (call.argument(n) for n in names)
    known = [None if n is None else call.known(n) for n in (mean, variance, weight, bias)]
    if (
        known[0] is None
        or known[1] is None
        or (weight and known[2] is None)
        or (bias and known[3] is None)
    ):
        raise NoIntegerForm("its statistics or parameters are not constant")
    gain = torch.rsqrt(known[1] + call.argument("eps"))
    gain = gain if known[2] is None else gain * known[2]
    shift = -known[0] * gain
    shift = shift if known[3] is None else shift + known[3]
    rank = int(value_of(call.node).dim())
    channels = (-1,) + (1,) * (rank - 2)
    x = call.total(call.argument("input")).scaled(gain.reshape(channels))
    return replace(x, constant=x.constant + shift.reshape(channels))
