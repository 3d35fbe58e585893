"""The law of all algorithms: on data that none has seen, they cost no more than half a decibel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import random_images, random_sequences
from support.random_steps import drawn
from support.results import leaves
from support.small_quantizers import SmallQuantizer
from test_laws import RandomQuantizer
from torch import Tensor, nn

from pt2q import QuantGraphModule, Quantizer, quantize_pt2e, sqnr
from pt2q.algorithms import (
    AWQ,
    GPTQ,
    AdaRound,
    BatchNormStatistics,
    BiasCorrection,
    CrossLayerEqualization,
    ScaleSearch,
    SmoothQuant,
)
from pt2q.errors import BatchNormNotFoldedWarning, NothingQuantizedWarning
from pt2q.quantizers import (
    WeightQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
    get_weight_only_quantization_config,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The tensor attributes self"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SEEN, FRESH = 24, 40
ALL = (
    CrossLayerEqualization(),
    SmoothQuant(),
    AWQ(),
    ScaleSearch(),
    GPTQ(),
    AdaRound(steps=20, block=3),
    AdaRound(steps=20),
    BatchNormStatistics(),
    BiasCorrection(),
)


def _per_tensor() -> Quantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=False))


QUANTIZERS: list[Callable[[int], Quantizer]] = [
    lambda seed: XNNPACKQuantizer(),
    lambda seed: _per_tensor(),
    lambda seed: WeightQuantizer(get_weight_only_quantization_config(4)),
    lambda seed: SmallQuantizer(),
    RandomQuantizer,
]


def quantized(
    network: nn.Module, quantizer: Quantizer, batches: list[Any], algorithms: Any
) -> QuantGraphModule:
    program = torch.export.export(network, batches[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BatchNormNotFoldedWarning)
        warnings.simplefilter("ignore", NothingQuantizedWarning)
        return quantize_pt2e(program, quantizer, batches, algorithms=algorithms)


def floats(model: Any, recipe: Any) -> Tensor:
    """What a model gives for data that nobody has seen, from the state that it begins with."""
    with torch.no_grad():
        results = [model(*recipe.inputs(SEEN + i)) for i in range(FRESH)]
    found = [x.flatten() for result in results for x in leaves(result) if x.is_floating_point()]
    return torch.cat(found)


def change(make: Callable[[], nn.Module], recipe: Any, kind: int) -> float:
    """Decibels won on fresh data; infinite where nothing is quantized."""
    batches = [recipe.inputs(seed) for seed in range(SEEN)]
    exact = floats(make(), recipe)
    quality = [
        float(sqnr(exact, floats(quantized(make(), QUANTIZERS[kind](0), batches, chosen), recipe)))
        for chosen in ((), ALL)
    ]
    return 0.0 if math.isinf(quality[0]) else quality[1] - quality[0]


def check_images(recipe: random_images.Recipe, kind: int) -> None:
    assert change(lambda: random_images.Network(recipe).eval(), recipe, kind) > -0.5


def check_sequences(recipe: random_sequences.Recipe, kind: int) -> None:
    assert change(lambda: random_sequences.Network(recipe).eval(), recipe, kind) > -0.5


KINDS = st.integers(0, len(QUANTIZERS) - 1)


@drawn(4)
@given(recipe=random_images.recipes(), kind=KINDS)
def test_random_image_networks(recipe: random_images.Recipe, kind: int) -> None:
    check_images(recipe, kind)


@drawn(4)
@given(recipe=random_sequences.recipes(), kind=KINDS)
def test_random_sequence_networks(recipe: random_sequences.Recipe, kind: int) -> None:
    check_sequences(recipe, kind)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@drawn(110)
@given(recipe=random_images.recipes(), kind=KINDS)
def test_many_image_networks(recipe: random_images.Recipe, kind: int) -> None:
    check_images(recipe, kind)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@drawn(110)
@given(recipe=random_sequences.recipes(), kind=KINDS)
def test_many_sequence_networks(recipe: random_sequences.Recipe, kind: int) -> None:
    check_sequences(recipe, kind)
