"""Integer arithmetic of quantized operators in numpy, written from the documented equations."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

Shape = tuple[int, ...]


# ------------------------------------------------------------------ rescaling


def fixed_point(ratios, bounds, constant) -> tuple[list[int], int, int]:
    """(multipliers, offset, shift): the largest shift that fits, found by trying."""
    exact = [Fraction(float(r)) for r in ratios]
    offset = Fraction(float(constant))
    for shift in range(62, 0, -1):
        scaled = [r * 2**shift for r in exact]
        total = sum(abs(r) * b for r, b in zip(scaled, bounds, strict=True))
        fits = all(abs(r) < 2**31 for r in scaled) and total + abs(offset * 2**shift) < 2**61
        if fits or shift == 1:
            most = min(2**31 - 1, int(2**62 / max(sum(bounds), 1)))
            multipliers = [max(-most, min(most, round(r))) for r in scaled]
            return multipliers, round(offset * 2**shift), shift
    raise AssertionError


def rescale(accumulators, ratios, bounds, constant=0.0) -> np.ndarray:
    """``sum_i a_i * m_i`` shifted right with rounding half to even, for one set of ratios."""
    multipliers, offset, shift = fixed_point(ratios, bounds, constant)
    total = (
        sum(a.astype(object) * m for a, m in zip(accumulators, multipliers, strict=True)) + offset
    )
    return np.vectorize(lambda p: round(Fraction(int(p), 2**shift)), otypes=[np.int64])(total)


def saturate(values: np.ndarray, zero_point: int, low: int, high: int) -> np.ndarray:
    return np.clip(values + zero_point, low, high)


def with_bias(accumulator, bound, scales, out_scale, bias, axis):
    """An accumulator with scales along ``axis``, rescaled; the bias in int32 where it fits."""
    ratios = scales / out_scale
    constants = np.zeros_like(ratios) if bias is None else bias.astype(np.float64)
    steps = np.rint(constants / scales)
    if abs(ratios).max() <= 0.5 and abs(steps).max() + bound < 2**31:
        shape = [1] * accumulator.ndim
        shape[axis] = -1
        accumulator = accumulator + steps.astype(np.int64).reshape(shape)
        bound, constants = bound + int(abs(steps).max()), np.zeros_like(ratios)
    channels = [
        rescale([np.take(accumulator, c, axis)], [r], [bound], k / out_scale)
        for c, (r, k) in enumerate(zip(ratios, constants, strict=True))
    ]
    return np.stack(channels, axis)


# ------------------------------------------------------------------ sums over windows


def windows(kernel: Shape):
    return itertools.product(*(range(k) for k in kernel))


def at_stride(start: Shape, count: Shape, stride: Shape) -> tuple[slice, ...]:
    return tuple(
        slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(start, count, stride, strict=True)
    )


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolution(x, w, stride, padding, dilation, groups) -> np.ndarray:
    kernel = w.shape[2:]
    sizes = tuple(
        out_size(*a) for a in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    )
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    result = np.zeros((x.shape[0], w.shape[0], *sizes), dtype=np.int64)
    inputs, outputs = w.shape[1], w.shape[0] // groups
    for at in windows(kernel):
        start = tuple(a * d for a, d in zip(at, dilation, strict=True))
        seen = x[(slice(None), slice(None), *at_stride(start, sizes, stride))]
        for g in range(groups):
            part = seen[:, g * inputs : (g + 1) * inputs]
            o = slice(g * outputs, (g + 1) * outputs)
            result[:, o] += np.einsum("nc...,oc->no...", part, w[(o, slice(None), *at)])
    return result


def transposed(x, w, stride, padding, output_padding, dilation, groups) -> np.ndarray:
    kernel, sizes = w.shape[2:], x.shape[2:]
    full = tuple(
        (n - 1) * s + d * (k - 1) + 1 + o
        for n, s, d, k, o in zip(sizes, stride, dilation, kernel, output_padding, strict=True)
    )
    outputs, inputs = w.shape[1], w.shape[0] // groups
    result = np.zeros((x.shape[0], outputs * groups, *full), dtype=np.int64)
    for at in windows(kernel):
        start = tuple(a * d for a, d in zip(at, dilation, strict=True))
        where = at_stride(start, sizes, stride)
        for g in range(groups):
            i = slice(g * inputs, (g + 1) * inputs)
            o = slice(g * outputs, (g + 1) * outputs)
            part = np.einsum("nc...,co->no...", x[:, i], w[(i, slice(None), *at)])
            result[(slice(None), o, *where)] += part
    crop = tuple(slice(p, f - p) for p, f in zip(padding, full, strict=True))
    return result[(slice(None), slice(None), *crop)]


def window_sums(x, kernel, stride, padding) -> np.ndarray:
    ones = np.ones((1, 1, *kernel), dtype=np.int64)
    flat = x.reshape(-1, 1, *x.shape[2:])
    unit = (1,) * len(kernel)
    sums = convolution(flat, ones, stride, padding, unit, 1)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


# ------------------------------------------------------------------ softmax


def softmax(q, scale, out_scale, zero_point, low, high, axis) -> np.ndarray:
    levels = high - low + 1
    table = np.rint(np.exp(-np.arange(levels) * scale) * 2.0**24).astype(np.int64)
    found = table[q.max(axis, keepdims=True) - q]
    bits = max(f for f in range(17) if 2.0**f / out_scale < 2.0**31)
    numerator = found * round(2.0**bits / out_scale)
    denominator = found.sum(axis, keepdims=True) * 2**bits
    return saturate((2 * numerator + denominator) // (2 * denominator), zero_point, low, high)
