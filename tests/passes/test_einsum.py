"""Einstein sums written as products compute what the equation says, and quantize."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.nodes import nodes_of
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.ir import ops
from pt2q.ir.module import import_exported
from pt2q.passes import run_passes
from pt2q.passes.transform.einsum import DecomposeEinsum
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
)
from pt2q.spec import Quantizer

SIZES = {"b": 2, "i": 5, "j": 7, "n": 4, "d": 8, "h": 6, "c": 3}


class Sum(nn.Module):
    """An equation of the input with a parameter, or with a second input."""

    def __init__(self, equation: str, *shape: int, first: bool = False) -> None:
        super().__init__()
        self.equation, self.first = equation, first
        self.weight = nn.Parameter(torch.randn(shape)) if shape else None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        pair = (x, self.weight if y is None else y)
        return torch.einsum(self.equation, *(pair[::-1] if self.first else pair))


def tensors(equation: str) -> list[Tensor]:
    torch.manual_seed(0)
    operands = equation.replace(" ", "").partition("->")[0].split(",")
    letters = [part.replace("...", "bi") for part in operands]
    return [torch.randn([SIZES[a] for a in part]) for part in letters]


def decomposed(model: nn.Module, *inputs: Tensor, shapes: Any = None) -> Any:
    exported = torch.export.export(model, inputs, dynamic_shapes=shapes)
    return run_passes(import_exported(exported), [DecomposeEinsum()])


@pytest.mark.usefixtures("every_pass_is_verified")
@pytest.mark.parametrize(
    "equation",
    [
        *("bih,hnd->bind", "ibh,hnd->ibnd", "bind,hnd->bih", "bih,nhd->nbid", "bi,i->b"),
        *("ih,hn", "...h,nh->...n", "...h,hnd->...nd", "bih , hd -> bid"),
    ],
)
def test_a_constant_makes_it_a_linear_layer(equation: str) -> None:
    x, weight = tensors(equation)
    for first in (False, True):
        operands, arrow, result = equation.partition("->")
        turned = ",".join(operands.split(",")[::-1]) + arrow + result if first else equation
        model = Sum(turned, *weight.shape, first=first)
        module = decomposed(model, x)
        assert len(nodes_of(module, ops.LINEAR)) == 1 and not nodes_of(module, ops.EINSUM)
        torch.testing.assert_close(module(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("every_pass_is_verified")
@pytest.mark.parametrize(
    "equation",
    [
        *("bnid,bnjd->bnij", "ibnd,jbnd->bnij", "bnij,jbnd->ibnd", "ibnd,jbnd->ijbn"),
        *("bid,bjd->bij", "bi,bi->b", "bnid,bnjd", "...d,...d->...", "id,jd->ji"),
    ],
)
def test_two_activations_make_it_a_matrix_product(equation: str) -> None:
    pair = tensors(equation)
    model = Sum(equation)
    module = decomposed(model, *pair)
    assert len(nodes_of(module, ops.MATMUL)) == 1 and not nodes_of(module, ops.EINSUM)
    torch.testing.assert_close(module(*pair), model(*pair), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "equation", ["bii,id->bd", "bij,d->bd", "bi,jd->bijd", "ij,ij->ji", "bi,id->b"]
)
def test_what_is_no_matrix_product_stays(equation: str) -> None:
    pair = [torch.randn([5 for _ in part]) for part in equation.partition("->")[0].split(",")]
    assert len(nodes_of(decomposed(Sum(equation), *pair), ops.EINSUM)) == 1


def test_a_size_of_1_is_repeated_and_stays() -> None:
    pair = torch.randn(2, 5, 1), torch.randn(2, 5, 8)
    assert len(nodes_of(decomposed(Sum("bid,bjd->bij"), *pair), ops.EINSUM)) == 1


def test_sizes_that_vary() -> None:
    pair = torch.randn(5, 2, 4, 8), torch.randn(7, 2, 4, 8)
    auto = torch.export.Dim.AUTO
    shapes = {"x": {0: auto, 1: auto}, "y": {0: auto, 1: auto}}
    model = Sum("ibnd,jbnd->bnij")
    module = decomposed(model, *pair, shapes=shapes)
    other = torch.randn(3, 4, 4, 8), torch.randn(9, 4, 4, 8)
    assert not nodes_of(module, ops.EINSUM)
    torch.testing.assert_close(module(*other), model(*other), rtol=1e-5, atol=1e-5)


class Relative(nn.Module):
    """What XLNet's attention is written in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.randn(16, 2, 8) / 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("ibh,hnd->ibnd", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("ibnd,jbnd->bnij", q, k).softmax(-1)
        return torch.einsum("ibnd,hnd->ibh", torch.einsum("bnij,jbnd->ibnd", weights, v), self.o)


X = torch.linspace(-2, 2, 5 * 3 * 16).reshape(5, 3, 16).sin()


@pytest.mark.parametrize(
    ("quantizer", "count"),
    [
        (XNNPACKQuantizer(), 4),
        (X86InductorQuantizer(), 4),
        (OnnxQDQQuantizer(), 4),
        (WeightQuantizer(), 4),
    ],
    ids=["xnnpack", "x86", "onnx", "weights"],
)
def test_all_quantizers_take_them(quantizer: Any, count: int) -> None:
    model = Relative().eval()
    done = quantized(model, quantizer)
    report = quantizer.report()
    assert sum(row.quantized for row in report.rows if "linear" in row.operator) == count
    assert not any("einsum" in row.operator for row in report.rows)
    assert sqnr(model(X), done(X)) > 25


def quantized(model: nn.Module, quantizer: Quantizer) -> Any:
    prepared = prepare_pt2e(torch.export.export(model, (X,)), quantizer)
    with torch.no_grad():
        prepared(X)
    return convert_pt2e(prepared)


@pytest.mark.slow
def test_runtimes_agree(tmp_path: Any) -> None:
    pytest.importorskip("executorch")
    pytest.importorskip("onnxruntime")
    from pt2q.deploy import executorch, onnx

    model = Relative().eval()
    converted = quantized(model, XNNPACKQuantizer())
    program = executorch.lower(converted, (X,))
    (found,) = program.load()(X)
    assert sqnr(model(X), found) > 25
    assert program.delegation.quantized_left == ()
    path = onnx.export(quantized(model, OnnxQDQQuantizer()), (X,), tmp_path / "m.onnx").path
    (found,) = onnx.load(path)(X)
    assert sqnr(model(X), found) > 25
