"""Arithmetic, tables, moves, pools and softmax on integers."""

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
    limits,
    q,
    rewrite,
    scales,
    steps_of,
    tensors,
    whole,
)
from torch import nn
from torch.nn import functional as F

from pt2q.ir.graph import dump

few = settings(max_examples=12, deadline=None)


@few
@given(tensors(2, 5), tensors(5), scales, st.sampled_from(["add", "sub", "mul"]), st.booleans())
def test_arithmetic_of_two_is_the_integer_one(a, b, sy, name, relu):
    (x, sx, zx), (y, s2, z2) = a, b
    operator = getattr(torch, name)

    def function(x, y):
        result = operator(dq(x, sx, zx), dq(y, s2, z2))
        return q(F.relu(result) if relu else result, sy, -5)

    expected, found, model = both(function, (x, y))
    assert_integer(model)
    bounds = [steps_of(x.dtype, zx), steps_of(y.dtype, z2)]
    left, right = np.broadcast_arrays(centred(x, zx), centred(y, z2))
    if name == "mul":
        rounded = integers.rescale([left * right], [sx * s2 / sy], [bounds[0] * bounds[1]])
    else:
        sign = 1 if name == "add" else -1
        rounded = integers.rescale([left, right], [sx / sy, sign * s2 / sy], bounds)
    assert_same(integers.saturate(rounded, -5, -5 if relu else -128, 127), found)
    if max(sx, s2, sx * s2) / sy < 1e3:
        assert_close(expected, found)


UNARY = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.7),
    "clamp": lambda x: x.clamp(-0.3, 1.0),
    "clamp_min": lambda x: x.clamp(min=0.2),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "abs": torch.abs,
    "square": lambda x: x**2,
    "times_constant": lambda x: x * 0.3,
    "plus_constant": lambda x: 1.7 - x,
    "divided": lambda x: x / 7.0,
    "relu_then_divided": lambda x: F.relu(x) / 3.0,
    "softmax": lambda x: x.softmax(-1),
    "softmax_channels": lambda x: x.softmax(1),
    "mean": lambda x: x.mean((2, 3)),
    "mean_kept": lambda x: x.mean(-1, keepdim=True),
    "global_average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_average": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "average": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average_unpadded": lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    "average_divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    "average_1d": lambda x: F.avg_pool1d(x[0], 3, 2, 1),
    "average_3d": lambda x: F.avg_pool3d(x, 3, 2, 1),
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_1d": lambda x: F.max_pool1d(x[0], 3, 2, 1),
    "max_3d": lambda x: F.max_pool3d(x, 3, 2, 1),
    "amax": lambda x: x.amax((1, 2)),
    "view": lambda x: x.reshape(2, -1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "slice": lambda x: x[:, 1:4],
    "split": lambda x: torch.cat(x.split(2, 1)[::-1], 1),
    "unbind": lambda x: x.unbind(1)[2],
    "cat": lambda x: torch.cat([x, x], 1),
    "stack": lambda x: torch.stack([x, x], 1),
    "flip": lambda x: x.flip(1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad_value": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "pad_reflect": lambda x: F.pad(x, (1, 2, 1, 1), mode="reflect"),
    "upsample": lambda x: F.interpolate(x, scale_factor=2),
    "upsample_uneven": lambda x: F.interpolate(x, size=(13, 5)),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2),
    "expand": lambda x: x[:, :1].expand(2, 6, 9, 8),
    "relu_and_views": lambda x: F.relu(x).permute(0, 2, 3, 1).reshape(2, -1),
    "matmul_then_gelu": lambda x: F.gelu(x @ x.transpose(-1, -2)),
    "matmul_scaled": lambda x: (x @ x.transpose(-1, -2)) * 0.125,
    "dropout_in_eval": lambda x: F.dropout(x, 0.5, False),
}


MOVED = {"view", "permute", "slice", "split", "unbind", "cat", "stack", "flip", "pad", "max"}


BY_TABLE = {"sigmoid", "tanh", "gelu", "silu", "hardswish", "hardsigmoid", "elu", "leaky_relu"}


@pytest.mark.parametrize("name", UNARY)
def test_operator_is_within_one_step(name):
    for dtype, sy in ((torch.int8, 0.05), (torch.uint8, 0.007), (torch.int8, 0.037)):
        x = whole(3, dtype, 2, 6, 9, 8)
        zero_point = 5 if dtype == torch.int8 else 125
        expected, found, model = both(
            lambda x, z=zero_point, d=dtype, s=sy: q(UNARY[name](dq(x, 0.037, z)), s, 3, d), (x,)
        )
        assert_integer(model)
        assert_close(expected, found, 0 if name in BY_TABLE else 1)


@pytest.mark.parametrize("name", sorted(MOVED))
def test_moving_with_equal_parameters_moves_integers(name):
    x = whole(3, torch.int8, 2, 6, 9, 8)
    expected, found, model = both(lambda x: q(UNARY[name](dq(x, 0.037, 5)), 0.037, 5), (x,))
    assert torch.equal(expected, found)
    assert "aten.mul" not in dump(model) and "shift" not in dump(model)


@few
@given(tensors(2, 3, 7), st.floats(1e-3, 0.05), st.integers(-128, 127))
def test_softmax_is_the_integer_one(x, sy, zy):
    x, sx, zx = x
    out = torch.int8 if x.dtype == torch.int8 else torch.uint8
    zy = zy if out == torch.int8 else zy + 128
    _, found, model = both(lambda x: q(dq(x, sx, zx).softmax(1), sy, zy, out), (x,))
    assert_integer(model)
    assert_same(integers.softmax(x.numpy().astype(np.int64), sx, sy, zy, *limits(out), 1), found)


@few
@given(
    tensors(2, 3, 7, 8),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 1),
    st.booleans(),
    scales,
)
def test_average_pool_is_the_integer_one(x, kernel, stride, padding, include, sy):
    x, sx, zx = x
    padding = min(padding, kernel // 2)
    expected, found, model = both(
        lambda x: q(F.avg_pool2d(dq(x, sx, zx), kernel, stride, padding, False, include), sy, 3),
        (x,),
    )
    assert_integer(model)
    geometry = (kernel,) * 2, (stride,) * 2, (padding,) * 2
    sums = integers.window_sums(centred(x, zx), *geometry)
    counts = integers.window_sums(np.ones((1, 1, 7, 8), np.int64), *geometry)
    counts = np.full_like(counts, kernel**2) if include else counts
    bound = steps_of(x.dtype, zx) * kernel**2
    rounded = np.zeros_like(sums)
    for count in np.unique(counts):
        here = np.broadcast_to(counts == count, sums.shape)
        rounded[here] = integers.rescale([sums], [sx / count / sy], [bound])[here]
    assert_same(integers.saturate(rounded, 3, -128, 127), found)
    if sx / sy < 1e3:
        assert_close(expected, found)


@few
@given(tensors(2, 3, 4), tensors(2, 5, 4), scales)
def test_cat_rescales_what_differs(a, b, sy):
    (x, sx, zx), (y, s2, z2) = a, b
    expected, found, model = both(
        lambda x, y: q(torch.cat([dq(x, sx, zx), dq(y, s2, z2)], 1), sy, 9), (x, y)
    )
    assert_integer(model)
    parts = [
        integers.rescale([centred(v, z)], [s / sy], [steps_of(v.dtype, z)])
        for v, s, z in ((x, sx, zx), (y, s2, z2))
    ]
    assert_same(integers.saturate(np.concatenate(parts, 1), 9, -128, 127), found)
    if max(sx, s2) / sy < 1e3:
        assert_close(expected, found)


def test_batch_norm_that_was_not_folded():
    norm = nn.BatchNorm2d(6).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return q(self.norm(dq(x, 0.02, 3)), 0.03, -4)

    x = whole(5, torch.int8, 2, 6, 5, 4)
    exported = torch.export.export(Normed(), (x,))
    model = rewrite(exported)
    assert_integer(model)
    assert_close(exported.module()(x), model(x))
