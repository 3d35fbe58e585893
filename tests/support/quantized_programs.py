"""Small quantized programs, their integer form, and strategies that draw their tensors."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from pt2q.flow import reference_passes
from pt2q.ir.module import import_exported
from pt2q.passes import run_passes, verified_passes
from pt2q.passes.reference import ReferenceReport
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

qd = torch.ops.quantized_decomposed


class Program(nn.Module):
    def __init__(self, function, *tensors) -> None:
        super().__init__()
        self.function = function
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"t{i}", tensor)

    def forward(self, *inputs):
        return self.function(*inputs, *self.buffers())


def limits(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(dtype)
    return info.min, info.max


def dq(x, scale, zero_point):
    return qd.dequantize_per_tensor(x, scale, zero_point, *limits(x.dtype), x.dtype)


def q(x, scale, zero_point, dtype=torch.int8):
    return qd.quantize_per_tensor(x, scale, zero_point, *limits(dtype), dtype)


def dq_channels(w, scales, zero_points, axis):
    return qd.dequantize_per_channel(w, scales, zero_points, axis, *limits(w.dtype), w.dtype)


def program(function, inputs, tensors=()):
    return torch.export.export(Program(function, *tensors), inputs)


def rewrite(exported):
    model = import_exported(exported)
    with verified_passes():
        return run_passes(model, reference_passes())


def both(function, inputs, tensors=()):
    """Results of the q/dq program and of its integer form, and the latter's module."""
    exported = program(function, inputs, tensors)
    model = rewrite(exported)
    return exported.module()(*inputs), model(*inputs), model


def assert_integer(model) -> None:
    """Nothing but integers is computed in it."""
    report = model.record.get(ReferenceReport)
    assert not report.left, str(report)
    for node in model.graph.nodes:
        if node.op == "call_function":
            value = node.meta["val"]
            for tensor in value if isinstance(value, list | tuple) else [value]:
                assert not tensor.dtype.is_floating_point, f"{node.format_node()}"


def assert_close(expected, found, steps: int = 1) -> None:
    assert found.dtype == expected.dtype
    assert (found.to(torch.int64) - expected.to(torch.int64)).abs().max() <= steps


def assert_same(expected: np.ndarray, found: torch.Tensor) -> None:
    np.testing.assert_array_equal(expected, found.numpy().astype(np.int64))


def whole(seed: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    low, high = limits(dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def centred(x: torch.Tensor, zero_point: int) -> np.ndarray:
    return x.numpy().astype(np.int64) - zero_point


def steps_of(dtype: torch.dtype, zero_point: int) -> int:
    low, high = limits(dtype)
    return max(high - zero_point, zero_point - low)


dtypes = st.sampled_from([torch.int8, torch.uint8])


seeds = st.integers(0, 10_000)


scales = st.floats(1e-4, 10.0)


@st.composite
def tensors(draw, *shape: int, dtype=None):
    """Integers with a scale and a zero point of their dtype."""
    dtype = dtype or draw(dtypes)
    low, high = limits(dtype)
    return whole(draw(seeds), dtype, *shape), draw(scales), draw(st.integers(low, high))


def xnnpack(**options):
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True, **options))
    return quantizer
