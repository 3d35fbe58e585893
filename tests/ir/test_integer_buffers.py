"""Buffers kept in integers give the same bits, or say why they stay in float."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.laws import assert_laws
from support.results import assert_same
from support.small_quantizers import SmallQuantizer
from support.stateful_models import (
    Alias,
    Copy,
    IndexCopy,
    IndexPut,
    Stateful,
    Sum,
    steps,
    written,
)
from torch import Tensor, nn

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e, sqnr
from pt2q.passes import StoreStateQuantized, run_passes, verified_passes
from pt2q.quantizers import StateQuantizer, XNNPACKQuantizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning"),
    pytest.mark.usefixtures("no_gradients"),
]


def stored(kind: type[nn.Module]) -> tuple[QuantGraphModule, QuantGraphModule, list[str]]:
    """A converted model, the same with its buffers in integers, and what is said of them."""
    program = torch.export.export(kind().eval(), steps()[0])
    ready = prepare_pt2e(program, StateQuantizer(SmallQuantizer()))
    for step in steps(12, seed=1):
        ready(*step)
    done = convert_pt2e(ready)
    small = copy.deepcopy(done)
    with verified_passes():
        run_passes(small, [StoreStateQuantized()])
    return done, small, [n.text for n in small.record.notes if n.origin == "store_state"]


class ReadsThenWrites(Stateful):
    """What is read first must not see what is written then."""

    def read(self, x: Tensor, at: Tensor) -> Tensor:
        before = self.cache[1:3]
        y = self.two(before)
        self.cache[at] = x
        return torch.cat([y, self.two(before), self.cache.transpose(0, 1).mT])


@pytest.mark.parametrize("kind", [Copy, IndexPut, IndexCopy, ReadsThenWrites])
def test_a_buffer_in_integers_gives_the_same_bits(kind: type[Stateful]) -> None:
    done, small, said = stored(kind)
    (text,) = said
    assert text.startswith("stored as int8, scale 0.0")
    assert small.get_buffer("cache").dtype == torch.int8
    assert_laws(small, converted=False)
    again = torch.export.export(copy.deepcopy(small), steps()[0])
    module = again.module()
    for step in steps():
        expected = done(*step)
        assert_same(small(*step), expected)
        assert_same(module(*step), expected)
    assert sqnr(done.get_buffer("cache"), dequantized(small, text)) > 30
    if kind is IndexPut:
        assert written(again) == {"cache"}


def dequantized(model: QuantGraphModule, text: str) -> Tensor:
    scale, zero_point = text.removeprefix("stored as int8, scale ").split(", zero point ")
    return (model.get_buffer("cache").float() - int(zero_point)) * float(scale)


class Returned(Stateful):
    def forward(self, x: Tensor, at: Tensor) -> Any:
        self.cache[at] = self.one(x)
        return self.two(self.cache), self.cache


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Sum, "mul_ (aten.mul_.Tensor) computes with it in place"),
        (Alias, "another buffer shares its storage"),
        (Returned, "output reads it in other parameters, or in float"),
    ],
)
def test_a_buffer_that_stays_in_float_says_why(kind: type[Stateful], reason: str) -> None:
    done, small, said = stored(kind)
    assert said == [f"stays in float: {reason}"]
    assert small.get_buffer("cache").dtype == torch.float32
    for step in steps():
        assert_same(small(*step), done(*step))


def test_buffers_of_other_quantizers_stay_in_float() -> None:
    program = torch.export.export(Copy().eval(), steps()[0])
    for make in (SmallQuantizer, XNNPACKQuantizer):
        ready = prepare_pt2e(program, make())
        ready(*steps()[0])
        done = run_passes(convert_pt2e(ready), [StoreStateQuantized()])
        assert done.get_buffer("cache").dtype == torch.float32
        assert "stays in float" in str(done.record.notes[-1])
