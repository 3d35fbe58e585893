"""Convolutions on integers, of any geometry."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import integer_reference as integers
from support.golden import assert_golden_graph
from support.quantized_programs import (
    assert_close,
    assert_integer,
    assert_same,
    both,
    centred,
    dq,
    dq_channels,
    dtypes,
    limits,
    q,
    scales,
    seeds,
    steps_of,
    tensors,
    whole,
)
from support.small_quantizers import (
    ACTIVATION,
    FunctionQuantizer,
    SmallQuantizer,
)
from torch import nn
from torch.nn import functional as F

from pt2q import QuantizationAnnotation, convert_pt2e, prepare_pt2e
from pt2q.ir import ops


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 4]))
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    is_transposed = draw(st.booleans())
    per_dim = st.tuples(*(st.integers(1, 2) for _ in range(dims)))
    stride, dilation, kernel = draw(per_dim), draw(per_dim), draw(per_dim)
    kernel = tuple(k + draw(st.integers(0, 1)) for k in kernel)
    padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    sizes = tuple(draw(st.integers(5, 6)) for _ in range(dims))
    x = draw(tensors(2, inputs, *sizes))
    first = inputs if is_transposed else outputs
    second = outputs if is_transposed else inputs
    w = whole(draw(seeds), torch.int8, first, second // groups, *kernel)
    out_dtype = draw(dtypes)
    return {
        "geometry": (stride, padding, dilation, groups, is_transposed),
        "x": x,
        "w": w,
        "per_channel": draw(st.booleans()),
        "weight_zero_point": draw(st.sampled_from([0, 0, -7])),
        "bias": draw(st.sampled_from([None, 0.0, 3.0, 1e4])),
        "seed": draw(seeds),
        "out": (draw(scales), draw(st.integers(*limits(out_dtype))), out_dtype),
        "relu": draw(st.booleans()),
    }


def weight_scales(case, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(case["seed"])
    spread = torch.rand(count, generator=generator, dtype=torch.float64) * 6 - 4
    return (10.0**spread).to(torch.float32)


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_convolution_is_the_integer_one(case):
    stride, padding, dilation, groups, is_transposed = case["geometry"]
    (x, sx, zx), w, (sy, zy, dtype) = case["x"], case["w"], case["out"]
    channels = w.shape[1] * groups if is_transposed else w.shape[0]
    axis = 1 if is_transposed else 0
    count = w.shape[axis] if case["per_channel"] else 1
    sw, zw = weight_scales(case, count), case["weight_zero_point"]
    bias = None if case["bias"] is None else torch.linspace(-1, 1, channels) * case["bias"]
    dims = x.dim() - 2
    forward = getattr(F, f"conv{'_transpose' if is_transposed else ''}{dims}d")
    order = (stride, padding, (0,) * dims, groups, dilation)
    args = order if is_transposed else (stride, padding, dilation, groups)

    def function(x, w, s, z, *b):
        scaled = dq_channels(w, s, z, axis) if count > 1 else dq(w, float(sw), zw)
        y = forward(dq(x, sx, zx), scaled, *(b or (None,)), *args)
        return q(F.relu(y) if case["relu"] else y, sy, zy, dtype)

    zero_points = torch.full((count,), zw)
    buffers = (w, sw, zero_points) if bias is None else (w, sw, zero_points, bias)
    expected, found, model = both(function, (x,), buffers)
    assert_integer(model)

    full = (integers.transposed if is_transposed else integers.convolution)(
        centred(x, zx),
        centred(w, zw),
        stride,
        padding,
        *(((0,) * dims,) if is_transposed else ()),
        dilation,
        groups,
    )
    along = tuple(i for i in range(w.dim()) if i != axis)
    bound = int(abs(centred(w, zw)).sum(along).max()) * steps_of(x.dtype, zx)
    scale = sw.double().numpy() * sx
    scale = np.tile(scale, groups) if is_transposed and count > 1 else scale
    scale = np.broadcast_to(scale, channels)
    rounded = integers.with_bias(
        full, bound, scale, sy, None if bias is None else bias.double().numpy(), 1
    )
    low, high = limits(dtype)
    low = max(zy, low) if case["relu"] else low
    assert_same(integers.saturate(rounded, zy, low, high), found)
    # Where an accumulator's step is more than the output's, float32 itself is no reference.
    if (scale / sy).max() < 0.5 and (bias is None or abs(case["bias"]) / sy < 1e5):
        assert_close(expected, found)


def test_golden_convolution():
    net = nn.Sequential(nn.Conv2d(1, 1, 2, bias=True), nn.ReLU()).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[[[0.5, -1.27], [0.0, 1.0]]]]))
        net[0].bias.fill_(0.25)
    x = torch.linspace(-1, 1.55, 9).reshape(1, 1, 3, 3)
    quantizer = SmallQuantizer(ACTIVATION, "per_tensor", output=False)
    relu = FunctionQuantizer(
        lambda n: QuantizationAnnotation({}, ACTIVATION) if ops.is_op(n, ops.RELU) else None
    )

    class Two(SmallQuantizer):
        def annotate(self, model):
            return relu.annotate(quantizer.annotate(model))

    prepared = prepare_pt2e(torch.export.export(net, (x,)), Two())
    prepared(x)
    model = convert_pt2e(prepared, use_reference_representation=True)
    assert_golden_graph("reference_convolution", model)
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), model(x))
