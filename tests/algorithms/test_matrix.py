"""Every operator with a weight, seen as a matrix product, gives what the operator gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from pt2q.algorithms.matrix import matrix_form_of
from pt2q.ir import ops

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIZE = {1: (11,), 2: (9, 8), 3: (6, 7, 5)}


class Product(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight, self.bias = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "addmm":
            return torch.addmm(self.bias, x, self.weight)
        return torch.mm(x, self.weight) if self.kind == "mm" else x @ self.weight


def call(module: nn.Module, x: Tensor, decomposed: bool = False) -> Node:
    program = torch.export.export(module.eval(), (x,))
    program = program.run_decompositions() if decomposed else program
    kinds = ops.CONV | ops.CONV_GENERIC | ops.LINEAR | ops.ADDMM | ops.MM | ops.MATMUL
    (node,) = [n for n in program.graph.nodes if ops.is_op(n, kinds)]
    return node


def check(module: Any, x: Tensor, decomposed: bool = False) -> None:
    weight, bias = module.weight.detach(), getattr(module, "bias", None)
    form = matrix_form_of(call(module, x, decomposed), tuple(weight.shape))
    assert form is not None
    product = torch.einsum("gnk,grk->ngr", form.columns(x), form.rows(weight)).flatten(1)
    found = module(x)
    if bias is not None and (not isinstance(module, Product) or module.kind == "addmm"):
        product = product + bias
    torch.testing.assert_close(product, form.channels(found), atol=1e-4, rtol=1e-4)
    again = form.weight(form.rows(weight), weight)
    assert torch.equal(again, weight) and again.stride() == weight.stride()


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("stride", "dilation", "padding"), [(1, 1, 1), (2, 1, 0), (2, 2, 2), (1, 2, "same")]
)
def test_convolutions(dims: int, groups: int, stride: int, dilation: int, padding: Any) -> None:
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    check(CONV[dims](4, 8, 3, **options), torch.randn(2, 4, *SIZE[dims]))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("stride", "dilation", "padding", "more"), [(1, 1, 1, 0), (2, 1, 0, 1), (2, 2, 3, 1)]
)
def test_transposed_convolutions(
    dims: int, groups: int, stride: int, dilation: int, padding: int, more: int
) -> None:
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    module = TRANSPOSED[dims](4, 8, 3, output_padding=more, **options)
    check(module, torch.randn(2, 4, *SIZE[dims]))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_decomposed_convolutions(kind: Any) -> None:
    check(kind(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), torch.randn(2, 4, 9, 8), True)


def test_a_single_image() -> None:
    check(nn.Conv2d(4, 6, 3), torch.randn(4, 9, 8))


@pytest.mark.parametrize("kind", ["addmm", "mm", "matmul"])
def test_products(kind: str) -> None:
    check(Product(kind), torch.randn(7, 5))


def test_linear_of_any_rank() -> None:
    check(nn.Linear(5, 3), torch.randn(2, 7, 5))
    check(nn.Linear(5, 3, bias=False), torch.randn(5))
