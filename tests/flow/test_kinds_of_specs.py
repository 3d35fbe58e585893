"""Fixed, derived and shared parameters, and tensors that several readers want differently."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.flow import converted, exported, prepared
from support.golden import assert_golden_graph, exact, exact_input
from support.laws import assert_laws
from support.nodes import nodes_of
from support.results import assert_same
from support.rounding_reference import rounded
from support.small_quantizers import (
    ACTIVATION,
    UNSIGNED,
    WEIGHT_PER_TENSOR,
    FunctionQuantizer,
    SmallQuantizer,
    everything,
    linears,
    weight_per_channel,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    SharedQuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.errors import (
    NoDataError,
)
from pt2q.ir import ops

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed


STATIC = torch.per_tensor_affine


def test_fixed_parameters() -> None:
    fixed = FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0, 0, 255, STATIC)

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.target is not aten.sigmoid.default:
            return None
        return QuantizationAnnotation({node.args[0]: UNSIGNED}, fixed)

    x = exact_input(2, 4)
    ready = prepare_pt2e(exported(nn.Sigmoid(), x), FunctionQuantizer(annotate))
    ready(x)
    ready(x * 1000)  # does not move what is fixed
    done = convert_pt2e(ready)
    (_, quantize) = nodes_of(done, ops.QUANTIZE)
    assert quantize.args[1:] == (1 / 256, 0, 0, 255, torch.uint8)
    assert_laws(done, converted=True)
    assert_same(done(x), rounded(ready, x))


def bias_rule(node: Node) -> QuantizationAnnotation | None:
    if not ops.is_op(node, ops.LINEAR):
        return None
    x, w, b = (ops.argument(node, name) for name in ("input", "weight", "bias"))

    def product(observers: list[Any]) -> tuple[Tensor, Tensor]:
        (act, _), (weight, _) = (o.calculate_qparams() for o in observers)
        return act * weight, torch.zeros_like(weight, dtype=torch.int64)

    derived = DerivedQuantizationSpec(
        ((x, node), (w, node)),
        product,
        torch.int32,
        -(2**31),
        2**31 - 1,
        torch.per_channel_symmetric,
        ch_axis=0,
    )
    return QuantizationAnnotation({b: derived, x: ACTIVATION, w: weight_per_channel(0)}, ACTIVATION)


def test_derived_bias() -> None:
    model, x = exact(nn.Linear(4, 3)), exact_input(2, 4)
    done, _ = converted(model, FunctionQuantizer(bias_rule), x)
    assert_golden_graph("derived_bias", done)
    scale = nodes_of(done, ops.QUANTIZE)[0].args[1] * done.weight_scale
    torch.testing.assert_close(done.bias_scale, scale)
    assert done.bias_quantized.dtype == torch.int32
    assert torch.equal(done.bias_quantized, (model.bias / scale).round().int())


def test_derived_without_data_names_the_source() -> None:
    ready = prepare_pt2e(exported(nn.Linear(4, 3), torch.ones(1, 4)), FunctionQuantizer(bias_rule))
    with pytest.raises(NoDataError, match="input"):
        convert_pt2e(ready)


def test_requantization() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(x)
            return torch.tanh(y) + y

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.target is aten.relu.default:
            return QuantizationAnnotation({}, ACTIVATION)
        if node.target is aten.tanh.default:
            return QuantizationAnnotation({node.args[0]: UNSIGNED})
        return None

    x = exact_input(2, 4)
    ready = prepared(Model(), FunctionQuantizer(annotate), x)
    done = convert_pt2e(ready)
    assert_golden_graph("requantization", done)
    assert_laws(done, converted=True)
    assert_same(done(x), rounded(ready, x))


def test_output_used_twice_is_quantized_once() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            return self.b(y) + self.c(y), y

    done, _ = converted(exact(Model()), SmallQuantizer(), exact_input(2, 4))
    assert_golden_graph("used_twice", done)
    (first,) = [n for n in done.graph.nodes if n.name == "linear"]
    (quantize,) = first.users
    assert ops.is_op(quantize, ops.QUANTIZE)
    # b, c, and the output, each with a dequantize of its own
    assert [len(dq.users) for dq in quantize.users] == [1, 1, 1]


def test_what_nobody_reads_is_not_quantized() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.tanh(x)
            return torch.relu(x)

    x = torch.randn(2, 3)
    done = convert_pt2e(prepared(Model(), everything(ACTIVATION), x))
    assert_laws(done, converted=True)


def test_another_function_of_one_weight_has_its_own_range() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            narrow = torch.nn.functional.linear(x, self.weight * 0.001)
            return torch.nn.functional.linear(x, self.weight) + 1000 * narrow

    model, x = Model(), torch.randn(3, 4)
    done, value = converted(model, linears(ACTIVATION, WEIGHT_PER_TENSOR), x)
    assert sqnr(model(x), value) > 30
    stored = [b for name, b in done.named_buffers() if b.dtype == torch.int8]
    assert len(stored) == 2 and not list(done.parameters())


def test_shared_specs_that_point_later_convert() -> None:
    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.target is aten.relu.default:
            (user,) = node.users
            return QuantizationAnnotation({}, SharedQuantizationSpec((node, user)))
        if node.target is aten.tanh.default:
            return QuantizationAnnotation({node.args[0]: ACTIVATION})
        return None

    x = torch.randn(2, 4)
    done, _ = converted(nn.Sequential(nn.ReLU(), nn.Tanh()), FunctionQuantizer(annotate), x)
    assert len(nodes_of(done, ops.QUANTIZE)) == 1
