"""Shared specs, buffers that are written, and aliases, where the peer fails."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.flow import quantized
from support.laws import assert_laws
from support.peer_faults import everything, prepared, xnnpack
from support.results import assert_same
from support.small_quantizers import (
    ACTIVATION,
    DYNAMIC,
    PER_TOKEN,
    FunctionQuantizer,
    NoopQuantizer,
    SmallQuantizer,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import (
    QuantizationAnnotation,
    Quantizer,
    SharedQuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)

aten = torch.ops.aten


pytestmark = [
    pytest.mark.filterwarnings("ignore::pt2q.errors.NothingQuantizedWarning"),
    pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning"),
]


def test_a_shared_spec_may_point_at_a_later_node() -> None:
    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.target is aten.cat.default:
            return QuantizationAnnotation(dict.fromkeys(node.args[0], ACTIVATION), ACTIVATION)
        if node.target is aten.relu.default:
            cat = next(iter(node.users))
            return QuantizationAnnotation({}, SharedQuantizationSpec(cat))
        return None

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.relu(), (3 * x).relu()])

    x = torch.randn(2, 4)
    done = quantized(Model(), FunctionQuantizer(annotate), x)
    assert sqnr(Model()(x), done(x)) > 35


class MulThenAdd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.ones(4))
        self.linear = nn.Linear(4, 4)

    state: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.state.mul_(0.5)
        self.state.add_(x.abs().mean(0))
        return self.linear(x + self.state)


class Cache(nn.Module):
    """Attention of one head with a cache written at a position."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.key, self.value, self.query = (nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("keys", torch.zeros(1, 6, 8))
        self.register_buffer("values", torch.zeros(1, 6, 8))

    keys: Tensor
    values: Tensor

    def write(self, cache: Tensor, at: Tensor, new: Tensor) -> Tensor:
        if self.how == "index_put_":
            cache[:, at] = new
        elif self.how == "index_copy_":
            cache.index_copy_(1, at, new)
        elif self.how == "copy_":
            cache.copy_(torch.cat([cache[:, 1:], new], 1))
        else:  # a slice is written, a shifted view is read
            cache[:, :-1] = cache[:, 1:].clone()
            cache[:, -1:] = new
        return cache

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        keys = self.write(self.keys, at, self.key(x))
        values = self.write(self.values, at, self.value(x))
        scores = self.query(x) @ keys.transpose(1, 2)
        return torch.softmax(scores, -1) @ values


STATEFUL = {
    "mul_then_add_": (MulThenAdd, lambda step: (torch.randn(3, 4),)),
    **{
        how: (
            lambda how=how: Cache(how),
            lambda step: (torch.randn(1, 1, 8), torch.tensor([step])),
        )
        for how in ("index_put_", "index_copy_", "copy_", "slice")
    },
}


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize(
    "quantizer",
    [
        NoopQuantizer(),
        SmallQuantizer(),
        SmallQuantizer(DYNAMIC),
        SmallQuantizer(PER_TOKEN),
        FunctionQuantizer(everything),
        xnnpack(),
        xnnpack(is_dynamic=True, is_per_channel=True),
    ],
    ids=["noop", "static", "dynamic", "per_token", "everything", "xnnpack", "xnnpack_dynamic"],
)
def test_written_buffers_are_written(name: str, quantizer: Quantizer) -> None:
    make, sample = STATEFUL[name]
    steps = [sample(step) for step in range(6)]
    model = make().eval()
    start = {k: b.clone() for k, b in model.named_buffers()}
    program = torch.export.export(copy.deepcopy(model), steps[0])
    ready = prepare_pt2e(program, quantizer)
    for step in steps:
        ready(*step)
    for key, value in start.items():
        ready.get_buffer(key).copy_(value)
    done = convert_pt2e(ready)
    assert_laws(done, converted=True)
    again = torch.export.export(copy.deepcopy(done), steps[0])
    written = again.graph_signature.buffers_to_mutate.values()
    assert set(written) == set(program.graph_signature.buffers_to_mutate.values())
    module = again.module()
    for step in steps:
        expected, value = model(*step), done(*step)
        assert sqnr(expected, value) > 22
        assert_same(module(*step), value)
    for key, buffer in model.named_buffers():
        assert sqnr(buffer, done.get_buffer(key)) > 25


class ShiftedInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        first = y[:, 0]
        y += 1
        return torch.relu(first) + y[:, 1]


class WritesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return self.linear(x)


class DropoutAlias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        z = self.dropout(y)  # in evaluation this is y itself
        y.mul_(2)
        return z + y


@pytest.mark.parametrize("make", [ShiftedInput, WritesItsInput, DropoutAlias])
def test_aliases_still_alias(make: Any) -> None:
    model, x = make().eval(), torch.randn(3, 4)
    ready = prepared(model, FunctionQuantizer(everything), x.clone())
    ready(x.clone())
    done = convert_pt2e(ready)
    mine, theirs = x.clone(), x.clone()
    assert sqnr(model(theirs), done(mine)) > 25
    torch.testing.assert_close(mine, theirs, atol=0.05, rtol=0)
    again = torch.export.export(done, (x.clone(),)).module()
    assert_same(again(x.clone()), done(x.clone()))
