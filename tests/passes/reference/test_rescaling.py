"""The arithmetic of rescaling: multipliers, shifts, rounding half to even."""

from __future__ import annotations

import functools
from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import integer_reference as integers
from support.quantized_programs import program

from pt2q.ir.module import import_exported
from pt2q.passes.reference.arithmetic import Arithmetic
from pt2q.passes.reference.fixed_point import fixed_point
from pt2q.passes.reference.requantize import shift_right

more = settings(max_examples=200, deadline=None)


@more
@given(
    st.floats(1e-12, 1e6),
    st.integers(1, 2**40),
    st.one_of(st.just(0.0), st.floats(-1e6, 1e6)),
)
def test_fixed_point_is_the_documented_one(ratio, bound, constant):
    found = fixed_point(
        [torch.tensor(ratio, dtype=torch.float64)],
        [bound],
        torch.tensor(constant, dtype=torch.float64),
    )
    multipliers, offset, shift = integers.fixed_point([ratio], [bound], constant)
    assert [int(m) for m in found.multipliers] == multipliers
    assert int(found.shift) == shift
    assert (0 if found.offset is None else int(found.offset)) == offset
    assert bound * abs(multipliers[0]) + abs(offset) + 2 ** (shift - 1) < 2**63


@functools.cache
def shifter():
    """A graph that shifts 62 integers by 1 to 62."""
    model = import_exported(program(lambda x: x + 0, (torch.zeros(62, dtype=torch.int64),)))
    source, *_, output = model.graph.nodes
    emit = Arithmetic(model, "test").before(output)
    output.args = ((shift_right(emit, source, torch.arange(1, 63)),),)
    model.recompile()
    return model


@more
@given(st.integers(-(2**61), 2**61))
def test_shift_right_rounds_half_to_even(value):
    found = shifter()(torch.full((62,), value))
    assert found.tolist() == [round(Fraction(value, 2**s)) for s in range(1, 63)]
