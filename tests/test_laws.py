"""The laws of the graph, on random small networks.

- A quantizer that annotates nothing changes nothing.
- A quantized network computes what its observers' parameters say, and about what the float one
  computes; every quantize is sound, every node has its metadata; exported again it is the same.
- Buffers are written as in the float network, step after step.
"""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.laws import assert_laws, assert_values_match
from support.random_images import Network, Recipe, recipes
from support.random_steps import Step, drawn
from support.results import assert_same, leaves
from support.rounding_reference import rounded
from support.small_quantizers import ACTIVATION, DYNAMIC, NoopQuantizer, SmallQuantizer
from torch import Tensor
from torch.fx import GraphModule

from pt2q import QuantGraphModule, QuantizationAnnotation, Quantizer, convert_pt2e, prepare_pt2e
from pt2q.errors import BatchNormNotFoldedWarning, NothingQuantizedWarning
from pt2q.ir.graph import is_float_tensor
from pt2q.numerics.sqnr import sqnr
from pt2q.passes import verified_passes
from pt2q.spec import QUANT_ANNOTATION_KEY

# 8 bits over the range of a roughly normal tensor of this size leave 40 dB and more; a handful of
# quantizations in a row, and sums of them, cost up to a factor of ten in noise power; differences
# of what is nearly equal cost more.
LEAST_SQNR = 20.0
FEW = drawn(25)
MANY = drawn(300)


class RandomQuantizer(NoopQuantizer):
    """Asks for any input and any output of any operator, constants and buffers included."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def annotate(self, model: GraphModule) -> GraphModule:
        chosen = random.Random(self.seed)
        for node in model.graph.nodes:
            if node.op == "output":
                continue
            inputs = [n for n in node.all_input_nodes if is_float_tensor(n)]
            node.meta[QUANT_ANNOTATION_KEY] = QuantizationAnnotation(
                {n: ACTIVATION for n in inputs if chosen.random() < 0.6},
                ACTIVATION if is_float_tensor(node) and chosen.random() < 0.6 else None,
                allow_implicit_sharing=chosen.random() < 0.8,
            )
        return model


def prepared(recipe: Recipe, quantizer: Quantizer) -> tuple[Network, QuantGraphModule]:
    network = Network(recipe)
    program = torch.export.export(copy.deepcopy(network), recipe.inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BatchNormNotFoldedWarning)
        warnings.simplefilter("ignore", NothingQuantizedWarning)
        return network, prepare_pt2e(program, quantizer)


def run(model: Any, recipe: Recipe, seed: int = 0) -> Any:
    return model(*(x.clone() for x in recipe.inputs(seed)))


def buffers_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: b for name, b in model.named_buffers() if name.endswith(".state")}


def rewind(model: torch.nn.Module, start: dict[str, Tensor]) -> None:
    for name, buffer in buffers_of(model).items():
        buffer.copy_(start[name])


def check_noop(recipe: Recipe) -> None:
    with verified_passes(), torch.no_grad():
        network, ready = prepared(recipe, NoopQuantizer())
        done = copy.deepcopy(convert_pt2e(ready))
        assert_laws(ready, converted=False)
        assert_laws(done, converted=True)
        for seed in range(2):  # in the second step buffers hold what the first one left
            expected = run(network, recipe, seed)
            assert_same(run(ready, recipe, seed), expected, 1e-4)
            assert_same(run(done, recipe, seed), expected, 1e-4)
        for model in (ready, done):
            found = buffers_of(model)
            for name, buffer in buffers_of(network).items():
                torch.testing.assert_close(found[name], buffer, atol=1e-4, rtol=1e-4)


def check_quantized(recipe: Recipe, quantizer: Quantizer, *, static: bool = True) -> None:
    with verified_passes(), torch.no_grad():
        network, ready = prepared(recipe, quantizer)
        start = {name: b.clone() for name, b in buffers_of(network).items()}
        expected = run(network, recipe)
        assert_same(run(ready, recipe), expected, 1e-4)
        rewind(ready, start)
        done = copy.deepcopy(convert_pt2e(ready))
        again = torch.export.export(copy.deepcopy(done), recipe.inputs())
        assert_laws(ready, converted=False)
        assert_laws(done, converted=True)
        assert_values_match(done, recipe.inputs())
        value = run(done, recipe)
        assert_same(run(again.module(), recipe), value)
        if static:
            assert_same(rounded(ready, *recipe.inputs()), value, 1e-5)
        _assert_close(expected, value)
        states = buffers_of(done)
        for name, buffer in buffers_of(network).items():
            torch.testing.assert_close(states[name], buffer, atol=0.1, rtol=0.1)


def _assert_close(expected: Any, value: Any) -> None:
    for one, other in zip(leaves(expected), leaves(value), strict=True):
        assert bool(torch.isfinite(other).all())
        if float(one.abs().max()) > 1e-3:
            assert float(sqnr(one, other)) > LEAST_SQNR


# A write through a view of a quantized value was lost once; a bias that is quantized twice was
# dropped once.
LOST_WRITE = Recipe(2, 2, (Step("conv", 0, 0, 3), Step("slice_write", 1, 0, 4)), 2, 86)
CHAIN = Recipe(2, 4, (Step("same_norm", 6, 7, 6), Step("conv_norm", 6, 6, 3)), 3, 57)


@FEW
@given(recipe=recipes())
@example(LOST_WRITE)
def test_noop(recipe: Recipe) -> None:
    check_noop(recipe)


@FEW
@given(recipe=recipes())
@example(LOST_WRITE)
def test_static(recipe: Recipe) -> None:
    check_quantized(recipe, SmallQuantizer())


@settings(FEW, max_examples=8)
@given(recipe=recipes())
def test_dynamic(recipe: Recipe) -> None:
    check_quantized(recipe, SmallQuantizer(DYNAMIC), static=False)


@FEW
@given(recipe=recipes(), seed=st.integers(0, 999))
@example(LOST_WRITE, 1)
@example(CHAIN, 57)
def test_any_annotation(recipe: Recipe, seed: int) -> None:
    check_quantized(recipe, RandomQuantizer(seed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MANY
@given(recipe=recipes(max_steps=10))
def test_noop_at_length(recipe: Recipe) -> None:
    check_noop(recipe)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MANY
@given(recipe=recipes())
def test_static_at_length(recipe: Recipe) -> None:
    check_quantized(recipe, SmallQuantizer())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MANY
@given(recipe=recipes(), seed=st.integers(0, 10**6))
def test_any_annotation_at_length(recipe: Recipe, seed: int) -> None:
    check_quantized(recipe, RandomQuantizer(seed))
