"""Products with matrices that are picked from a stack, as the experts of a mixture are."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.flow import imported
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e, quantize_pt2e, sqnr
from pt2q.deploy import executorch, inductor, onnx
from pt2q.errors import LoweringError
from pt2q.quantizers import (
    ComposableQuantizer,
    OnnxQDQQuantizer,
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_weight_only_quantization_config,
    with_weights_alone,
)

pytestmark = pytest.mark.usefixtures("no_gradients")

EXPERTS, OUT, IN, ROWS = 3, 16, 32, 6
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True, scope="module")
def transformers_imported() -> None:
    """Not within an export: the classes of its outputs, known to torch by their import, are not."""
    importlib.import_module("transformers.integrations.moe")


def grouped(x: Tensor, stack: Tensor, chosen: Tensor) -> Tensor:
    """As transformers computes experts: rows in the order of their expert, each group at once."""
    order = chosen.argsort()
    counts = torch.nn.functional.one_hot(chosen, EXPERTS).sum(0)
    offsets = counts.cumsum(0).to(torch.int32)
    found = torch.ops.transformers.grouped_mm_fallback(x[order], stack.transpose(-2, -1), offsets)
    return found[order.argsort()]


PRODUCTS: dict[str, tuple[bool, Product]] = {
    "grouped": (False, grouped),
    "picked": (False, lambda x, w, e: torch.bmm(w[e], x.unsqueeze(-1)).squeeze(-1)),
    "selected": (False, lambda x, w, e: (x.unsqueeze(1) @ w.index_select(0, e).mT).squeeze(1)),
    "from the end": (False, lambda x, w, e: torch.bmm(w[e - EXPERTS], x.unsqueeze(-1)).squeeze(-1)),
    "turned": (True, lambda x, w, e: torch.bmm(x.unsqueeze(1), w[e]).squeeze(1)),
    "turned before": (True, lambda x, w, e: torch.bmm(w.mT[e], x.unsqueeze(-1)).squeeze(-1)),
    "all": (True, lambda x, w, e: (x.unsqueeze(0) @ w).sum(0)),
}
each_product = pytest.mark.parametrize("kind", PRODUCTS)


class Mixture(nn.Module):
    """A layer, and experts of which the input chooses one for each of its rows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        turned, self.product = PRODUCTS[kind]
        stack = torch.randn(EXPERTS, OUT, IN) * torch.logspace(-1, 1, EXPERTS)[:, None, None]
        self.stack = nn.Parameter(stack.transpose(1, 2).contiguous() if turned else stack)
        self.first = nn.Linear(IN, IN)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        return self.product(self.first(x), self.stack, chosen)


def inputs() -> tuple[Tensor, Tensor]:
    seeded = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, IN, generator=seeded), torch.tensor([2, 0, 1, 1, 2, 0])


def quantized(kind: str, quantizer: Any) -> tuple[Mixture, Any]:
    model = Mixture(kind).eval()
    prepared = prepare_pt2e(torch.export.export(model, inputs()), quantizer)
    prepared(*inputs())
    return model, convert_pt2e(prepared)


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """The nearest integers of groups along the last axis, times their scale (4 bits: bfloat16)."""
    most = 127 if bits == 8 else 7.5
    groups = weight.unflatten(-1, (-1, group))
    scale = groups.abs().amax(-1, keepdim=True) / most
    scale = scale if bits == 8 else scale.bfloat16().float()
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    return ((groups / scale).round().clamp(low, high) * scale).flatten(-2)


@each_product
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 8)])
def test_every_row_of_every_matrix_has_scales_of_its_own(
    kind: str, bits: int, group: int | None
) -> None:
    quantizer = WeightQuantizer(get_weight_only_quantization_config(bits, group))
    model, converted = quantized(kind, quantizer)
    expected = Mixture(kind).eval()
    expected.first.weight.copy_(rounded(model.first.weight, bits, group or IN))
    rows = model.stack.mT if PRODUCTS[kind][0] else model.stack
    found = rounded(rows, bits, group or IN)
    expected.stack.copy_(found.mT if PRODUCTS[kind][0] else found)
    torch.testing.assert_close(converted(*inputs()), expected(*inputs()), rtol=1e-4, atol=1e-4)
    assert sqnr(model(*inputs()), converted(*inputs())) > (38 if bits == 8 else 15)
    stored = {n: t for n, t in converted.named_buffers() if t.dtype == torch.int8}
    assert sorted(t.numel() for t in stored.values()) == [IN * IN, EXPERTS * OUT * IN]
    assert not any("stack" in name for name, _ in converted.named_parameters())
    words = f"weight only, weight int{bits} {'in groups of 8' if group else 'per-channel'}"
    (row,) = [r for r in quantizer.report() if r.rule == "stack of matrices"]
    assert row.how == words


def test_activations_of_experts_stay_in_float() -> None:
    quantizer = WeightQuantizer(get_dynamic_activation_4bit_weight_config(8))
    model, converted = quantized("picked", quantizer)
    assert quantizer.report()["bmm"].how == "weight only, weight int4 in groups of 8"
    assert quantizer.report()["linear"].how == "int8 dynamic, weight int4 in groups of 8"
    assert sqnr(model(*inputs()), converted(*inputs())) > 15


def test_groups_that_do_not_fit_are_told() -> None:
    quantizer = WeightQuantizer(get_weight_only_quantization_config(4, 24))
    model = imported(Mixture("grouped"), *inputs())
    quantizer.annotate(quantizer.transform_for_annotation(model))
    reasons = {row.operator.split(".")[1]: str(row.reason) for row in quantizer.report()}
    assert reasons["grouped_mm_fallback"] == "its 32 inputs do not divide by 24"


class BothWays(Mixture):
    """One stack that is multiplied along both of its axes."""

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        up = super().forward(x, chosen)
        return torch.bmm(up.unsqueeze(1), self.stack[chosen]).squeeze(1)


def test_a_stack_that_is_multiplied_along_two_axes_stays() -> None:
    quantizer, model = WeightQuantizer(), BothWays("picked").eval()
    prepared = prepare_pt2e(torch.export.export(model, inputs()), quantizer)
    prepared(*inputs())
    converted = convert_pt2e(prepared)
    assert sqnr(model(*inputs()), converted(*inputs())) > 38
    codes = [row.reason.code for row in quantizer.report() if "bmm" in row.operator]
    assert codes == ["stack-as-it-is", "stack-as-it-is"]


REASONS = {
    "xnnpack": (XNNPACKQuantizer, "no-grouped-product"),
    "x86": (X86InductorQuantizer, "picked-matrices"),
    "onnx": (OnnxQDQQuantizer.onnxruntime, "no-grouped-product"),
    "tensorrt": (OnnxQDQQuantizer.tensorrt, "no-grouped-product"),
    "onnx, weights": (
        lambda: with_weights_alone(OnnxQDQQuantizer.onnxruntime()),
        "no-grouped-product",
    ),
}


@pytest.mark.parametrize("kind", ["grouped", "picked", "selected"])
@pytest.mark.parametrize("name", REASONS)
def test_other_quantizers_say_why_experts_stay_in_float(name: str, kind: str) -> None:
    make, code = REASONS[name]
    quantizer = make()
    model = imported(Mixture(kind), *inputs())
    quantizer.annotate(quantizer.transform_for_annotation(model))
    products = ("bmm", "matmul", "grouped_mm_fallback")
    (row,) = [r for r in quantizer.report() if r.operator.split(".")[1] in products]
    assert row.reason.code == (code if kind == "grouped" else "picked-matrices")
    advice = "batched_mm" if row.reason.code == "no-grouped-product" else "WeightQuantizer()"
    assert advice in row.reason.advice


def with_weights(quantizer: Any) -> ComposableQuantizer:
    """As the advice says."""
    return ComposableQuantizer([quantizer, WeightQuantizer()])


def test_weights_alone_are_given_to_one_operator() -> None:
    config = get_weight_only_quantization_config()
    quantizer = with_weights_alone(OnnxQDQQuantizer.onnxruntime())
    quantizer.set_operator_type(torch.bmm, config)
    model, converted = quantized("picked", quantizer)
    assert quantizer.report()["bmm"].how == "weight only, weight int8 per-channel"
    assert sqnr(model(*inputs()), converted(*inputs())) > 30


@pytest.mark.parametrize(
    "kind",
    [
        "from the end",
        "turned before",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("picked", "selected", "turned")),
    ],
)
def test_executorch_dequantizes_the_rows_that_are_picked(kind: str) -> None:
    _, converted = quantized(kind, with_weights(XNNPACKQuantizer()))
    program = executorch.lower(converted, inputs())
    (found,) = program.load()(*inputs())
    assert sqnr(converted(*inputs()), found) > 35
    kernels = [name for name, _ in program.delegation.portable]
    assert sum("embedding_byte" in name for name in kernels) == 1
    assert not any("dequantize_per_channel" in name for name in kernels)


@pytest.mark.parametrize("kind", ["picked", "turned"])
def test_onnx_runtime_computes_the_same(kind: str, tmp_path: Path) -> None:
    _, converted = quantized(kind, with_weights(OnnxQDQQuantizer.onnxruntime()))
    onnx.export(converted, inputs(), tmp_path / "model.onnx")
    (found,) = onnx.load(tmp_path / "model.onnx")(*inputs())
    assert sqnr(converted(*inputs()), found) > 35
    weights = IN * IN + EXPERTS * OUT * IN
    assert weights < (tmp_path / "model.onnx").stat().st_size < 2 * weights + 6000


def test_runtimes_without_grouped_products_say_the_way_out(tmp_path: Path) -> None:
    _, converted = quantized("grouped", with_weights(XNNPACKQuantizer()))
    for lower in (
        lambda: executorch.lower(converted, inputs()),
        lambda: onnx.export(converted, inputs(), tmp_path / "model.onnx"),
    ):
        with pytest.raises(LoweringError, match="experts_implementation='batched_mm'"):
            lower()


def test_a_stack_with_scales_in_groups_says_the_way_out() -> None:
    _, converted = quantized("all", WeightQuantizer(get_dynamic_activation_4bit_weight_config(8)))
    with pytest.raises(LoweringError, match=r"scales in groups.*group_size=None"):
        executorch.lower(converted, inputs())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grouped", "picked"])
def test_inductor_computes_the_same(kind: str) -> None:
    model, converted = quantized(kind, with_weights(X86InductorQuantizer()))
    assert sqnr(model(*inputs()), inductor.compile(converted)(*inputs())) > 30


@pytest.mark.parametrize("kind", ["grouped", "picked"])
def test_algorithms_and_low_memory_pass_over_them(kind: str) -> None:
    model = Mixture(kind).eval()
    exported, batches = torch.export.export(model, inputs()), [inputs()] * 4
    plain = quantize_pt2e(exported, WeightQuantizer(), batches)
    low = quantize_pt2e(exported, WeightQuantizer(), batches, low_memory=True)
    better = quantize_pt2e(exported, WeightQuantizer(), batches, effort="balanced")
    expected = plain(*inputs())
    torch.testing.assert_close(low(*inputs()), expected, rtol=0, atol=0)
    assert sqnr(model(*inputs()), better(*inputs())) > 38
