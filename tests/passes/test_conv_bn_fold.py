"""Batch norms fold into convolutions and linears of any kind."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batch_norms import assert_folds, count, fold, imported
from support.settling import settled
from torch import nn

from pt2q.ir.graph import dump
from pt2q.ir.module import import_exported

CONVS = {
    "conv1d": (nn.Conv1d, nn.BatchNorm1d, (8,)),
    "conv2d": (nn.Conv2d, nn.BatchNorm2d, (7, 6)),
    "conv3d": (nn.Conv3d, nn.BatchNorm3d, (4, 5, 4)),
    "transposed1d": (nn.ConvTranspose1d, nn.BatchNorm1d, (8,)),
    "transposed2d": (nn.ConvTranspose2d, nn.BatchNorm2d, (5, 6)),
    "transposed3d": (nn.ConvTranspose3d, nn.BatchNorm3d, (3, 4, 3)),
}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", CONVS)
def test_every_convolution(kind: str, groups: int) -> None:
    conv, bn, size = CONVS[kind]
    for bias, affine, eps in [(True, True, 1e-5), (False, True, 0.5), (True, False, 1e-3)]:
        layer = conv(4, 8, 3, stride=2, groups=groups, bias=bias)
        model = settled(nn.Sequential(layer, bn(8, eps=eps, affine=affine), nn.ReLU()))
        assert_folds(model, torch.randn(2, 4, *size))


@given(
    kind=st.sampled_from(sorted(CONVS)),
    groups=st.sampled_from([1, 2, 3]),
    width=st.integers(1, 3),
    bias=st.booleans(),
    affine=st.booleans(),
    eps=st.sampled_from([0.0, 1e-5, 1.0]),
    same=st.booleans(),
    decompose=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_any_configuration(kind, groups, width, bias, affine, eps, same, decompose) -> None:
    conv, bn, size = CONVS[kind]
    options = {"padding": "same"} if same and "transposed" not in kind else {}
    layer = conv(2 * groups, width * groups, 3, groups=groups, bias=bias, **options)
    model = settled(nn.Sequential(layer, bn(width * groups, eps=eps, affine=affine)))
    assert_folds(model, torch.randn(2, 2 * groups, *size), decompose=decompose)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    model = settled(nn.Sequential(nn.Linear(5, 6, bias=bias), nn.BatchNorm1d(6)))
    assert_folds(model, torch.randn(4, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(dtype)
    graph = fold(imported(model, torch.randn(1, 3, 5, 5, dtype=dtype)))
    assert count(graph) == 0
    assert {p.dtype for p in graph.parameters()} == {dtype}


def test_golden() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    graph = fold(imported(model, torch.randn(1, 3, 5, 5)))
    assert dump(graph).splitlines() == [
        "%_0_weight = get_attr(0.weight)",
        "%input_1 = placeholder(input)",
        "%_0_bias = get_attr(0.bias)",
        "%conv2d = aten.conv2d.default(%input_1, %_0_weight, %_0_bias)",
        "%relu = aten.relu.default(%conv2d)",
        "return [%relu]",
    ]
    bias = next(n for n in graph.graph.nodes if n.target == "0.bias")
    assert bias.meta["val"].shape == (4,)
    assert bias.meta["from_node"]
    assert sorted(dict(graph.named_parameters())) == ["0.bias", "0.weight"]
    assert not dict(graph.named_buffers())


def test_the_given_model_is_not_written() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    program = torch.export.export(model, (torch.randn(1, 3, 5, 5),))
    module = program.module()
    before = copy.deepcopy(module.state_dict())
    fold(import_exported(module))
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_requires_grad_is_kept() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[0].weight.requires_grad_(False)
    graph = fold(imported(model, torch.randn(1, 3, 5, 5)))
    assert not any(p.requires_grad for p in graph.parameters())
