"""Parameters found without tensors have the bits of torch's operator."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pt2q.numerics.fused_step import affine_parameters, moving_average, moving_average_of_one

float32 = st.floats(-1e6, 1e6, width=32)
ON = torch.ones(1, dtype=torch.int64)


def operator(low: float, high: float, constant: float, bounds: tuple[int, int]) -> list[float]:
    """Smallest, largest, scale and zero point after the range [-1, 1] and then this one."""
    state = torch.tensor([math.inf]), torch.tensor([-math.inf]), torch.ones(1)
    zero = torch.zeros(1, dtype=torch.int32)
    for ends in ([-1.0, 1.0], [low, high]):
        torch.fused_moving_avg_obs_fake_quant(
            torch.tensor(ends), ON, ON, *state, zero, constant, *bounds, 0, False, False
        )
    return [float(value) for value in (*state, zero)]


@given(
    st.tuples(float32, float32).map(sorted),
    st.sampled_from([0.01, 0.3, 1.0]),
    st.sampled_from([(-128, 127), (0, 255), (-8, 7), (-127, 127), (0, 127)]),
)
def test_numbers_have_the_bits_of_the_operator(
    ends: list[float], constant: float, bounds: tuple[int, int]
) -> None:
    low, high, scale, zero_point = operator(*ends, constant, bounds)
    assert moving_average_of_one(math.inf, ends[0], constant) == ends[0]  # the first as it is
    found = [
        moving_average_of_one(old, new, constant)
        for old, new in zip((-1.0, 1.0), ends, strict=True)
    ]
    assert found == [low, high]
    parameters = affine_parameters(*found, *bounds)
    narrow = (max(high, 0.0) - min(low, 0.0)) / (bounds[1] - bounds[0]) < 6.1e-5
    assert (parameters is None) is narrow
    if parameters is not None:
        assert (np.float32(parameters[0]), parameters[1]) == (np.float32(scale), zero_point)


def test_averages_of_arrays_are_those_of_tensors_and_numbers() -> None:
    old, new = torch.randn(2, 50).unbind(0)
    old[::7] = math.inf
    tensors = moving_average(old, new, 0.3)
    arrays = moving_average(old.numpy(), new.numpy(), 0.3)
    numbers = [
        moving_average_of_one(a, b, 0.3) for a, b in zip(old.tolist(), new.tolist(), strict=True)
    ]
    assert torch.equal(tensors, torch.from_numpy(arrays))
    assert tensors.tolist() == numbers


def test_a_range_without_bounds_is_left_to_the_operator() -> None:
    assert affine_parameters(-math.inf, 1.0, -128, 127) is None
    assert affine_parameters(0.0, 0.0, -128, 127) is None
