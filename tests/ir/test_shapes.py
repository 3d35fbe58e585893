"""Sizes that vary, scalars, empty tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from support.every_operator import everything, quantizers
from support.flow import quantized
from support.laws import assert_values_match
from support.nets import NETS
from support.results import assert_same
from support.small_quantizers import (
    FunctionQuantizer,
    SmallQuantizer,
)
from torch import Tensor, nn

from pt2q import (
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.errors import InputShapeError
from pt2q.quantizers import (
    XNNPACKQuantizer,
)

AUTO = torch.export.Dim.AUTO


pytestmark = [
    pytest.mark.filterwarnings("ignore::pt2q.errors.NothingQuantizedWarning"),
    pytest.mark.usefixtures("every_pass_is_verified"),
]


class Sentence(nn.Module):
    """Embeds, counts positions, attends, averages: every size symbolic, many tensors structural."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(32, 32), nn.Embedding(16, 32)
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length = tokens.shape
        seen = (tokens != 0).int()
        places = torch.cumsum(seen, 1) * seen
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        x = self.tokens(tokens) + self.places(places)
        q, k, v = (
            f(x).view(batch, length, 2, 16).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        weight = torch.arange(length, 0, -1) / length
        y = self.out(y.transpose(1, 2).reshape(batch, length, 32))
        return (y * weight[None, :, None]).sum(1) / (seen.sum(1, keepdim=True) + 1)


def sentence(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 32, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", quantizers())
def test_batch_and_sequence_may_vary(name: str) -> None:
    torch.manual_seed(0)
    model = Sentence().eval()
    calls = [(sentence(i % 3 + 1, 5 + i % 8, i),) for i in range(24)]
    shapes = {"tokens": {0: AUTO, 1: AUTO}}
    done = quantized(model, quantizers()[name], sentence(2, 9), calls=calls, dynamic_shapes=shapes)
    again = torch.export.export(
        copy.deepcopy(done), (sentence(2, 9),), dynamic_shapes=shapes
    ).module()
    for size in ((2, 9), (1, 12), (5, 3)):
        x = sentence(*size, 4)
        assert_values_match(done, (sentence(2, 9),))
        assert sqnr(model(x), done(x)) > (14 if name in ("everything", "8da4w") else 22)
        assert_same(again(x), done(x))


def test_only_floating_point_values_are_observed() -> None:
    """Whatever a quantizer asks for: sizes, counts, places and masks are not activations."""
    program = torch.export.export(
        Sentence().eval(), (sentence(2, 9),), dynamic_shapes={"tokens": {0: AUTO, 1: AUTO}}
    )
    ready = prepare_pt2e(program, FunctionQuantizer(everything))
    for node in ready.graph.nodes:
        if node.op == "call_module":
            value = node.args[0].meta["val"]
            assert isinstance(value, Tensor) and value.dtype is torch.float32, node.format_node()
    skipped = [n for n in ready.record.notes if "not a floating point tensor" in n.text]
    assert {"cumsum", "ones", "tril"} <= {n.node.split(" ")[0] for n in skipped}


@pytest.mark.parametrize("name", ["static", "xnnpack", "x86", "8da4w"])
def test_structural_tensors_are_never_observed(name: str) -> None:
    program = torch.export.export(Sentence().eval(), (sentence(2, 9),))
    ready = prepare_pt2e(program, quantizers()[name])
    structural = {"arange", "ones", "tril", "cumsum", "ne", "sum_1", "_assert_tensor_metadata"}
    watched = [n.args[0] for n in ready.graph.nodes if n.op == "call_module"]
    made_from = {a.name for n in watched for a in (n, *n.all_input_nodes)}
    assert watched and not structural & made_from


class Scalars(nn.Module):
    """Tensors without dimensions, numbers read from tensors, sizes in arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("scale", torch.tensor(0.5))

    scale: Tensor

    def forward(self, x: Tensor, factor: float, count: int) -> Tensor:
        y = self.linear(x) * self.scale * factor + x.shape[0] / count
        return y * y.mean() - torch.tensor(2.0)


@pytest.mark.parametrize("name", ["everything", "static", "dynamic", "xnnpack"])
def test_scalars(name: str) -> None:
    model, inputs = Scalars().eval(), (torch.randn(6, 8), 1.5, 3)
    done = quantized(model, quantizers()[name], *inputs)
    assert sqnr(model(*inputs), done(*inputs)) > 25
    again = torch.export.export(done, inputs).module()
    assert_same(again(*inputs), done(*inputs))


def test_a_model_exported_at_one_size_says_so_when_calibrated_at_another() -> None:
    net = NETS["small_mobilenet"]
    ready = prepare_pt2e(torch.export.export(net.build(), net.inputs(1)), XNNPACKQuantizer())
    with pytest.raises(InputShapeError) as caught:
        ready(*net.inputs(4))
    text = str(caught.value)
    assert "was exported with size 1 in dimension 0, found 4" in text
    assert "dynamic_shapes={'x': {0: torch.export.Dim.AUTO}}" in text
    assert "2 or more" in text
    ready(*net.inputs(1))
    with pytest.raises(InputShapeError, match="exported with size 1 in dimension 0"):
        convert_pt2e(ready)(*net.inputs(4))


def test_empty_tensors_are_no_data() -> None:
    model = nn.Linear(4, 4).eval()
    x = torch.randn(3, 4)
    shapes = {"input": {0: AUTO}}
    done = quantized(
        model, SmallQuantizer(), x, calls=[(x[:0],), (x,), (x[:0],)], dynamic_shapes=shapes
    )
    assert sqnr(model(x), done(x)) > 30
    assert done(x[:0]).shape == (0, 4)
