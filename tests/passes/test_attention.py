"""Attention taken apart computes what the fused operator does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.laws import assert_values_match
from support.nodes import nodes_of
from support.results import assert_same
from support.taking_apart import taken_apart
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import sqnr
from pt2q.ir import ops
from pt2q.ir.graph import dump
from pt2q.ir.module import import_exported
from pt2q.passes import run_passes
from pt2q.passes.transform.attention import DecomposeAttention

AUTO = torch.export.Dim.AUTO


# torch says so of every recurrent layer it exports.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes self")


class Attention(nn.Module):
    """The operator with its options."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **self.options)


def qkv(heads: int = 2, length: int = 4, keys: int = 6, shared: int | None = None, **kind: Any):
    wide = shared or heads
    return (
        torch.randn(2, heads, length, 8, **kind),
        torch.randn(2, wide, keys, 8, **kind),
        torch.randn(2, wide, keys, 5, **kind),
    )


def boolean() -> Tensor:
    mask = torch.rand(4, 6) > 0.4
    mask[1] = False
    return mask


def numbers() -> Tensor:
    return torch.zeros(4, 6).masked_fill(~boolean(), -math.inf) + torch.randn(4, 6)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "plain": ({}, {}, None),
    "scale": ({"scale": 0.3}, {}, None),
    "no scale": ({"scale": 1.0}, {}, None),
    "boolean mask": ({}, {}, boolean),
    "one row for all": ({}, {}, lambda: torch.tensor([[True, False, True, True, False, True]])),
    "mask per sample": ({}, {}, lambda: torch.rand(2, 1, 4, 6) > 0.5),
    "mask of numbers": ({}, {}, numbers),
    "finite mask": ({}, {}, lambda: torch.randn(4, 6) * 5),
    "causal": ({"is_causal": True}, {}, None),
    "causal, few keys": ({"is_causal": True}, {"keys": 3}, None),
    "grouped queries": ({"enable_gqa": True}, {"heads": 6, "shared": 2}, None),
    "grouped, causal": ({"enable_gqa": True, "is_causal": True}, {"heads": 4, "shared": 1}, None),
    "grouped by one": ({"enable_gqa": True}, {}, boolean),
}


@pytest.mark.parametrize("name", CASES)
def test_attention_computes_what_the_fused_operator_does(name: str) -> None:
    options, sizes, mask = CASES[name]
    model = Attention(**options)
    inputs = (*qkv(**sizes), *([mask()] if mask is not None else []))
    module = taken_apart(model, DecomposeAttention(), *inputs)
    assert not nodes_of(module, ops.SDPA) and len(nodes_of(module, ops.MATMUL)) == 2
    torch.testing.assert_close(module(*inputs), model(*inputs), atol=1e-5, rtol=1e-5)
    assert_values_match(module, inputs)
    if name in ("boolean mask", "mask of numbers"):
        assert (module(*inputs)[:, :, 1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", [None, boolean, numbers])
def test_attention_in_half_precision(dtype: torch.dtype, mask: Any) -> None:
    kind = torch.bool if mask is boolean else dtype
    inputs = (*qkv(dtype=dtype), *([mask().to(kind)] if mask else []))
    module = taken_apart(Attention(), DecomposeAttention(), *inputs)
    exact = Attention()(*(x.double() if x.is_floating_point() else x for x in inputs))
    value = module(*inputs)
    assert value.dtype is dtype
    assert sqnr(exact, value) > sqnr(exact, Attention()(*inputs)) - 6
    assert_values_match(module, inputs)


def test_large_scores_do_not_overflow_in_float16() -> None:
    inputs = tuple(x * 60 for x in qkv(dtype=torch.float16))
    module = taken_apart(Attention(), DecomposeAttention(), *inputs)
    assert torch.isfinite(module(*inputs)).all()


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_symbolic_sizes(options: dict[str, Any], masked: bool) -> None:
    if masked and options:
        return
    model = Attention(**options)
    sizes = [{0: AUTO, 2: AUTO}] * 3
    inputs = (*qkv(), *([boolean()] if masked else []))
    shapes = (*sizes, {0: AUTO, 1: AUTO}) if masked else (*sizes, None)
    module = taken_apart(model, DecomposeAttention(), *inputs, dynamic_shapes=shapes[: len(inputs)])
    sizes_of = ((7, 8), (5, 8), (5, 5))
    other = (*(torch.randn(3, 2, *n) for n in sizes_of), torch.rand(7, 5) > 0.5)[: len(inputs)]
    for given in (inputs, other):
        torch.testing.assert_close(module(*given), model(*given), atol=1e-5, rtol=1e-5)
    again = torch.export.export(module, inputs, dynamic_shapes=shapes[: len(inputs)])
    torch.testing.assert_close(again.module()(*other), model(*other), atol=1e-5, rtol=1e-5)


def test_attention_as_text() -> None:
    module = taken_apart(Attention(is_causal=True), DecomposeAttention(), *qkv(keys=4))
    assert dump(module).splitlines()[3:] == [
        "%transpose_int = aten.transpose.int(%k, -2, -1)",
        "%matmul_default = aten.matmul.default(%q, %transpose_int)",
        "%mul_tensor = aten.mul.Tensor(%matmul_default, 0.3536)",
        "%new_ones_default = aten.new_ones.default(%q, [4, 4], dtype=torch.bool)",
        "%triu_default = aten.triu.default(%new_ones_default, 1)",
        "%masked_fill_scalar = aten.masked_fill.Scalar(%mul_tensor, %triu_default, -3.403e+38)",
        "%softmax_int = aten.softmax.int(%masked_fill_scalar, -1)",
        "%matmul_default_1 = aten.matmul.default(%softmax_int, %v)",
        "return [%matmul_default_1]",
    ]


class Layers(nn.Module):
    """Two layers with one mask, which a step in between may change."""

    def __init__(self, change: bool) -> None:
        super().__init__()
        self.change = change
        self.register_buffer("mask", torch.rand(4, 4) > 0.3)

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = F.scaled_dot_product_attention(x, x, x, self.mask)
        if self.change:
            self.mask.copy_(self.mask.logical_not())
        return F.scaled_dot_product_attention(x, x, x, self.mask)


@pytest.mark.parametrize("change", [False, True])
def test_a_mask_is_prepared_once_unless_it_changes(change: bool) -> None:
    model, x = Layers(change), torch.randn(1, 2, 4, 8)
    module = taken_apart(model, DecomposeAttention(), x)
    inverted = nodes_of(module, ops.overloads(torch.ops.aten.logical_not.default))
    assert len(inverted) == (3 if change else 1)
    start = model.mask.clone()
    expected = model(x)
    model.mask.copy_(start)
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


def test_attention_dropout_switches() -> None:
    inputs = qkv()
    module = taken_apart(Attention(dropout_p=0.25), DecomposeAttention(), *inputs)
    (dropout,) = nodes_of(module, ops.DROPOUT)
    assert dropout.args[1:] == (0.25, True)
    assert not torch.equal(module(*inputs), module(*inputs))
    for _ in range(2):
        module.eval()
        torch.testing.assert_close(module(*inputs), Attention()(*inputs), atol=1e-5, rtol=1e-5)
        module.train()
        assert dropout.args[1:] == (0.25, True)
        assert not torch.equal(module(*inputs), module(*inputs))


def test_dropout_that_evaluation_switched_off_is_not_forgotten() -> None:
    inputs = qkv()
    module = import_exported(torch.export.export(Attention(dropout_p=0.25), inputs))
    module.eval()
    run_passes(module, [DecomposeAttention()])
    torch.testing.assert_close(module(*inputs), Attention()(*inputs), atol=1e-5, rtol=1e-5)
    module.train()
    (dropout,) = nodes_of(module, ops.DROPOUT)
    assert dropout.args[1:] == (0.25, True)


def test_gradients_of_attention() -> None:
    inputs = tuple(x.requires_grad_() for x in qkv())
    mask = boolean()
    model = Attention()
    module = taken_apart(model, DecomposeAttention(), *(x.detach() for x in inputs), mask)
    wanted = torch.autograd.grad(model(*inputs, mask).square().sum(), inputs)
    found = torch.autograd.grad(module(*inputs, mask).square().sum(), inputs)
    assert_same(found, wanted, 1e-4)
