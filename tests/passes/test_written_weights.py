"""A weight that shares storage with a written buffer is no constant, whoever asks.

Made both ways, the weight a view of the buffer and the buffer a view of the weight; written by an
operator on the buffer itself or on a view of it. The no-op law holds call after call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product

import pytest
import torch
from support.results import assert_same
from support.small_quantizers import NoopQuantizer, SmallQuantizer
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.errors import BatchNormNotFoldedWarning, NothingQuantizedWarning
from pt2q.flow import annotate
from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.module import QuantGraphModule, import_exported
from pt2q.ir.storage import StorageMap
from pt2q.passes import FoldComputedWeights, FoldConvBatchNorm, FuseConvBatchNormQAT

WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda cache: cache.mul_(1.5),
    "through a view": lambda cache: cache.view(-1)[:3].mul_(1.5),
    "through a view of a view": lambda cache: cache.view(2, -1)[0].unsqueeze(0).add_(0.25),
    "by copy": lambda cache: cache.copy_(cache * 1.5),
    "by keyword": lambda cache: torch.add(cache, 0.5, out=cache),
}
MADE = ("a parameter in the buffer", "a buffer in the buffer", "a buffer in the weight")


class Net(nn.Module):
    """A convolution and its batch norm; every call moves the storage of the weight."""

    cache: Tensor

    def __init__(self, made: str, write: str) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.write = WRITES[write]
        nn.init.uniform_(self.bn.running_mean, -1, 1)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)
        value = self.conv.weight.detach()
        if made == "a buffer in the weight":
            self.register_buffer("cache", value.view(-1)[:4])
            return
        self.register_buffer("cache", torch.randn(10))
        self.cache[2:8] = value.flatten()
        view = self.cache[2:8].view(3, 2, 1, 1)
        del self.conv.weight
        if made == "a parameter in the buffer":
            self.conv.weight = nn.Parameter(view)
        else:
            self.conv.register_buffer("weight", view)

    def forward(self, x: Tensor) -> Tensor:
        result = self.bn(self.conv(x))
        self.write(self.cache)
        return result


class Computed(Net):
    """The weight is computed from another one in the graph."""

    def forward(self, x: Tensor) -> Tensor:
        result = nn.functional.conv2d(x, self.conv.weight.flip(0) * 2)
        self.write(self.cache)
        return result


@pytest.fixture(params=product(MADE, WRITES), ids=" ".join)
def make(request: pytest.FixtureRequest) -> Callable[[], Net]:
    """The same network each time; deep copies of a module part views of its tensors."""

    def build(kind: type[Net] = Net) -> Net:
        torch.manual_seed(0)
        return kind(*request.param).eval()

    return build


INPUTS = [torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def called(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [model(x) for x in INPUTS]


def imported(model: nn.Module) -> QuantGraphModule:
    return import_exported(torch.export.export(model, (INPUTS[0],)))


def weight_of(model: QuantGraphModule) -> torch.fx.Node:
    (conv,) = (node for node in model.graph.nodes if ops.is_op(node, ops.CONV2D))
    return ops.argument(conv, "weight")


def test_the_analysis_says_so(make: Callable[[], Net]) -> None:
    model = imported(make())
    storage, weight = StorageMap.of(model.graph), weight_of(model)
    assert storage.is_mutated(weight) and not Constants(model).is_constant(weight)
    assert {"cache", "conv.weight"} <= storage.written_constants()
    assert "bn.running_mean" not in storage.written_constants()


def test_a_batch_norm_is_not_folded_into_it(make: Callable[[], Net]) -> None:
    expected, model = called(make()), imported(make())
    assert not FoldConvBatchNorm()(model)
    model.recompile()
    assert [note.text for note in model.record.notes] == [
        "conv.weight is written in the forward pass"
    ]
    assert_same(called(model), expected)


def test_the_flow_keeps_the_function(make: Callable[[], Net]) -> None:
    expected = called(make())
    with pytest.warns(BatchNormNotFoldedWarning), warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingQuantizedWarning)
        prepared = prepare_pt2e(torch.export.export(make(), (INPUTS[0],)), NoopQuantizer())
    assert_same(called(prepared), expected)
    assert_same(called(convert_pt2e(prepared)), expected)


@pytest.mark.parametrize("fast", [False, True])
def test_it_is_not_fused_for_training(make: Callable[[], Net], fast: bool) -> None:
    expected, model = called(make()), imported(make())
    annotate(model, SmallQuantizer(output=False))
    assert not FuseConvBatchNormQAT(fast)(model)
    assert [note.text for note in model.record.notes] == [
        "conv.weight is written in the forward pass"
    ]
    assert_same(called(model), expected)


def test_it_is_quantized_anew_in_every_call(make: Callable[[], Net]) -> None:
    """Folding constants stores nothing of it: with it and without, the results are the same."""
    results = []
    for fold in (True, False):
        with pytest.warns(BatchNormNotFoldedWarning):
            prepared = prepare_pt2e(torch.export.export(make(), (INPUTS[0],)), SmallQuantizer())
        called(prepared)
        converted = convert_pt2e(prepared, fold_quantize=fold)
        stored = [str(n.target) for n in converted.graph.nodes if n.op == "get_attr"]
        assert not [name for name in stored if "quantized" in name]
        results.append(called(converted))
    assert_same(*results)
    assert not torch.equal(results[0][1], called(converted)[1])  # the state moved on


def test_a_weight_computed_from_it_is_not_computed_once(make: Callable[..., Net]) -> None:
    expected, model = called(make(Computed)), imported(make(Computed))
    assert not FoldComputedWeights()(model)
    model.recompile()
    assert_same(called(model), expected)
