"""Linears and matrix products on integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import integer_reference as integers
from support.quantized_programs import (
    assert_close,
    assert_integer,
    assert_same,
    both,
    centred,
    dq,
    dq_channels,
    q,
    scales,
    seeds,
    steps_of,
    tensors,
    whole,
)
from support.small_quantizers import (
    DYNAMIC,
    PER_TOKEN,
    SmallQuantizer,
)
from torch import nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.ir import ops
from pt2q.ir.graph import dump

qd = torch.ops.quantized_decomposed


few = settings(max_examples=12, deadline=None)


@few
@given(tensors(3, 5, 16), st.integers(1, 6), scales, st.booleans(), st.booleans(), seeds)
def test_linear_is_the_integer_one(x, outputs, sy, per_channel, has_bias, seed):
    x, sx, zx = x
    w = whole(seed, torch.int8, outputs, 16)
    sw = torch.logspace(-4, 1, outputs) if per_channel else torch.tensor([0.013])
    bias = torch.linspace(-2, 2, outputs)

    def function(x, w, s, b, zeros):
        weight = dq_channels(w, s, zeros, 0) if per_channel else dq(w, float(sw), 0)
        return q(F.linear(dq(x, sx, zx), weight, b if has_bias else None), sy, 4, torch.uint8)

    expected, found, model = both(function, (x,), (w, sw, bias, torch.zeros(outputs).long()))
    assert_integer(model)
    scale = np.broadcast_to(sw.double().numpy() * sx, outputs)
    bound = int(abs(centred(w, 0)).sum(1).max()) * steps_of(x.dtype, zx)
    accumulator = centred(x, zx) @ centred(w, 0).T
    bias = bias.double().numpy() if has_bias else None
    rounded = integers.with_bias(accumulator, bound, scale, sy, bias, 2)
    assert_same(integers.saturate(rounded, 4, 0, 255), found)
    if (scale / sy).max() < 0.5:
        assert_close(expected, found)


@few
@given(tensors(2, 3, 4, 6), tensors(2, 3, 6, 5), scales)
def test_batched_matmul_is_the_integer_one(a, b, sy):
    (x, sx, zx), (y, s2, z2) = a, b
    expected, found, model = both(lambda x, y: q(dq(x, sx, zx) @ dq(y, s2, z2), sy, -3), (x, y))
    assert_integer(model)
    bound = 6 * steps_of(x.dtype, zx) * steps_of(y.dtype, z2)
    product = centred(x, zx) @ centred(y, z2)
    rounded = integers.rescale([product], [sx * s2 / sy], [bound])
    assert_same(integers.saturate(rounded, -3, -128, 127), found)
    if sx * s2 / sy < 0.5:
        assert_close(expected, found)


@pytest.mark.parametrize("static", [True, False])
def test_linear_with_scales_per_group(static):
    x, w = whole(1, torch.int8, 3, 7, 32), whole(2, torch.int8, 6, 32) // 16
    scale = torch.logspace(-3, -1, 6 * 4).reshape(6, 4)
    bias, zeros = torch.linspace(-1, 1, 6), torch.zeros(6, 4, dtype=torch.int8)

    def function(x, w, s, b, zeros):
        weight = qd.dequantize_per_channel_group(w, s, zeros, -8, 7, torch.int8, 8, torch.float32)
        y = F.linear(dq(x, 0.02, 3), weight, b)
        return q(y, 0.05, -1) if static else y

    expected, found, model = both(function, (x,), (w, scale, bias, zeros))
    if not static:
        assert sqnr(expected, found) > 120
        assert "dequantize" not in dump(model)
        return
    assert_integer(model)
    assert_close(expected, found)
    split = np.einsum(
        "nsgk,ogk->gnso",
        centred(x, 3).reshape(3, 7, 4, 8),
        centred(w, 0).reshape(6, 4, 8),
    )
    columns = []
    for o, offset in enumerate(bias.double().tolist()):
        ratios = scale[o].double().numpy() * 0.02 / 0.05
        bound = steps_of(torch.int8, 3) * 8 * 8
        columns.append(integers.rescale(split[..., o], ratios, [bound] * 4, offset / 0.05))
    assert_same(integers.saturate(np.stack(columns, -1), -1, -128, 127), found)


@pytest.mark.parametrize("spec", [DYNAMIC, PER_TOKEN])
def test_dynamic_linear_accumulates_integers(spec):
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(2, 5, 8)
    prepared = prepare_pt2e(torch.export.export(net, (x,)), SmallQuantizer(spec))
    expected = convert_pt2e(prepared)(x)
    model = convert_pt2e(prepared, use_reference_representation=True)
    assert sqnr(expected, model(x)) > 110
    linears = [n for n in model.graph.nodes if ops.is_op(n, ops.LINEAR)]
    assert [n.meta["val"].dtype for n in linears] == [torch.int32, torch.int32]
