"""Layers with small values keep them, beside biases and results of any size."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pt2q import QuantGraphModule, QuantizationSpec, convert_pt2e, prepare_pt2e
from pt2q.errors import SmallestScaleWarning
from pt2q.ir import ops
from pt2q.ir.graph import get_constant
from pt2q.ir.qparams import read_qparams
from pt2q.numerics.sqnr import sqnr
from pt2q.observers import MinMaxObserver
from pt2q.quantizers import (
    EmbeddingQuantizer,
    OnnxQDQQuantizer,
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_int16_activation_config,
    get_symmetric_quantization_config,
)

pytestmark = pytest.mark.usefixtures("no_gradients")
STATIC: dict[str, Callable[[], Any]] = {
    "xnnpack": lambda: XNNPACKQuantizer().set_global(get_symmetric_quantization_config(True)),
    "x86": X86InductorQuantizer,
    "onnxruntime": OnnxQDQQuantizer.onnxruntime,
    "tensorrt": OnnxQDQQuantizer.tensorrt,
}
each_quantizer = pytest.mark.parametrize("make", STATIC.values(), ids=list(STATIC))


class Net(nn.Module):
    """Convolutions, whose first and second have weights and biases of given sizes."""

    def __init__(self, first: float = 1.0, weight: float = 1.0, bias: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        for parameter in self.a.parameters():
            parameter.data *= first
        self.b.weight.data *= weight
        self.b.bias.data = bias * torch.linspace(-1, 1, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.c(self.b(y).relu() + y)


class Dead(Net):
    """A relu behind which all is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.b.bias.data.fill_(-100.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def converted(model: nn.Module, quantizer: Any, x: Tensor) -> QuantGraphModule:
    prepared = prepare_pt2e(torch.export.export(model, (x,)), quantizer)
    prepared(x)
    return convert_pt2e(prepared)


def decibels(model: nn.Module, found: Tensor, x: Tensor) -> float:
    return float(sqnr(model(x), found))


@each_quantizer
@pytest.mark.parametrize("size", [1e-3, 1e-8])
def test_layers_with_small_values_keep_them(make: Callable[[], Any], size: float) -> None:
    model = Net(first=size, bias=size).eval()
    model.c.bias.data *= size
    assert decibels(model, converted(model, make(), image())(image()), image()) > 28


@pytest.mark.parametrize("model", [Net(weight=1e-12), Net(weight=0.0), Net(first=1e-9), Dead()])
def test_sums_fit_into_int32_and_multipliers_into_kernels(model: Net) -> None:
    """XNNPACK loads no multiplier from 256 up; a bias beyond int32 is cut off in silence."""
    module = converted(model.eval(), STATIC["xnnpack"](), image())
    checked = 0
    for node in module.graph.nodes:
        if not ops.is_op(node, ops.CONV):
            continue
        source, weight, bias = (ops.argument(node, n) for n in ("input", "weight", "bias"))
        scales = read_qparams(weight, lambda n: get_constant(module, n)).scale
        unit = scales.double() * read_qparams(source).scale
        assert bool((get_constant(module, bias).double().abs() / unit < 2**31).all())
        assert float(unit.min()) >= torch.finfo(torch.float32).tiny
        result = next(iter(node.users))
        result = next(iter(result.users)) if ops.is_op(result, ops.RELU) else result
        ratio = unit / read_qparams(result).scale
        assert float(ratio.min()) >= 2.0**-32 and float(ratio.max()) < 256
        checked += 1
    assert checked == 3
    assert decibels(model, module(image()), image()) > 28


@pytest.mark.slow
@pytest.mark.parametrize("model", [Net(first=1e-6, bias=1e-6), Net(weight=0.0), Dead()])
def test_the_runtimes_agree(model: Net, tmp_path: Any) -> None:
    executorch = pytest.importorskip("pt2q.deploy.executorch")
    onnx = pytest.importorskip("pt2q.deploy.onnx")
    model, x = model.eval(), image()
    module = converted(model, STATIC["xnnpack"](), x)
    eager = decibels(model, module(x), x)
    program = executorch.lower(torch.export.export(module, (x,)))
    (found,) = program.load()(x)
    assert decibels(model, found, x) > eager - 1.5
    module = converted(model, STATIC["onnxruntime"](), x)
    onnx.export(module, (x,), tmp_path / "net.onnx")
    (found,) = onnx.load(tmp_path / "net.onnx")(x)
    assert decibels(model, found, x) > decibels(model, module(x), x) - 1.5


def test_embeddings_and_stored_weights_keep_small_values() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(16, 32)
    table.weight.data *= 1e-6
    ids = torch.arange(16)
    assert decibels(table, converted(table, EmbeddingQuantizer(), ids)(ids), ids) > 35
    layer, x = nn.Linear(32, 8, bias=False), torch.randn(4, 32)
    layer.weight.data *= 1e-8
    assert decibels(layer, converted(layer, WeightQuantizer(), x)(x), x) > 35
    layer.weight.data *= 1e4
    sixteen = WeightQuantizer().set_global(get_int16_activation_config())
    assert decibels(layer, converted(layer, sixteen, 1e-6 * x)(1e-6 * x), 1e-6 * x) > 35


def test_a_scale_that_ends_at_the_floor_is_named() -> None:
    config = get_symmetric_quantization_config()
    coarse = QuantizationSpec(
        torch.int8, MinMaxObserver.with_args(eps=2**-12), -128, 127, torch.per_tensor_affine
    )
    quantizer = XNNPACKQuantizer().set_global(type(config)(coarse, coarse, config.weight))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    x = torch.randn(8, 4)
    model[0].weight.data *= 1e-3
    model[0].bias.data *= 1e-3
    with pytest.warns(SmallestScaleWarning, match="linear: a scale at 0.000244"):
        converted(model, quantizer, x)
    model[0].weight.data.zero_()  # zeros lose nothing
    model[0].bias.data.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SmallestScaleWarning)
        converted(model, quantizer, x)
