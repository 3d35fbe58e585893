"""Prepare and convert, from end to end: the text of small graphs beside the values they compute."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.golden import assert_golden_graph, exact, exact_input
from support.laws import assert_laws, assert_metadata, assert_values_match
from support.nets import NETS
from support.nodes import nodes_of
from support.results import assert_same
from support.rounding_reference import rounded
from support.small_quantizers import (
    ACTIVATION,
    DYNAMIC,
    PER_TOKEN,
    UNSIGNED,
    WEIGHT_PER_TENSOR,
    FunctionQuantizer,
    NoopQuantizer,
    SmallQuantizer,
    weight_per_channel,
)
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

from pt2q import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    HistogramObserver,
    MinMaxObserver,
    PlaceholderObserver,
    QuantGraphModule,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
    sqnr,
)
from pt2q.errors import (
    AnnotationError,
    FlowError,
    NoDataError,
    NotExportedError,
    NothingQuantizedWarning,
)
from pt2q.ir import ops
from pt2q.ir.graph import dump
from pt2q.passes import FoldQuantizedConstants, ObserversToQDQ, run_passes, verified_passes
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config
from pt2q.spec.specs import QuantizationSpecBase

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed
STATIC = torch.per_tensor_affine


@pytest.fixture(autouse=True)
def every_pass_is_verified() -> Iterator[None]:
    with verified_passes(), torch.no_grad():
        yield


def exported(model: nn.Module, *inputs: Any, **options: Any) -> torch.fx.GraphModule:
    return torch.export.export(model.eval(), inputs, **options).module()


def prepared(model: nn.Module, quantizer: Quantizer, *inputs: Any) -> QuantGraphModule:
    """Exported, prepared and calibrated on the inputs."""
    result = prepare_pt2e(exported(model, *inputs), quantizer)
    assert_same(result(*inputs), model(*inputs), 1e-5)  # observers change nothing
    assert_laws(result, converted=False)
    assert_values_match(result, inputs)
    return result


def converted(model: nn.Module, quantizer: Quantizer, *inputs: Any, **options: Any) -> Any:
    """(converted, what it computes): calibrated on, checked on, and called with the inputs."""
    result = convert_pt2e(prepared(model, quantizer, *inputs), **options)
    assert_laws(result, converted=True)
    assert_values_match(result, inputs)
    value = result(*inputs)
    again = torch.export.export(result, inputs)
    assert_same(again.module()(*inputs), value)
    return result, value


def linears(
    activation: QuantizationSpecBase | None,
    weight: QuantizationSpecBase | None,
    output: QuantizationSpecBase | None = None,
) -> FunctionQuantizer:
    """Annotates every linear and convolution alike."""

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if not ops.is_op(node, ops.LINEAR | ops.CONV):
            return None
        inputs = {ops.argument(node, "input"): activation, ops.argument(node, "weight"): weight}
        return QuantizationAnnotation(inputs, output)

    return FunctionQuantizer(annotate)


def targets(model: QuantGraphModule) -> list[Any]:
    return [n.target for n in model.graph.nodes if n.op == "call_function"]


def saved_size(value: Any) -> int:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.tell()


# ---------------------------------------------------------------------------- int8, step by step


class ConvReluAddCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        z = self.two(y)
        return torch.cat([y + z, z], 1)


def test_conv_relu_add_cat() -> None:
    model, x = exact(ConvReluAddCat()), exact_input(1, 2, 4, 4)
    ready = prepared(model, SmallQuantizer(), x)
    assert_golden_graph("conv_relu_add_cat_prepared", ready)
    done = convert_pt2e(ready)
    assert_golden_graph("conv_relu_add_cat_converted", done)
    assert_laws(done, converted=True)
    assert_same(done(x), rounded(ready, x))
    assert sqnr(model(x), done(x)) > 30
    # One set of parameters for all that the addition and the concatenation touch.
    shared = {n.args[1:3] for n in nodes_of(done, ops.QUANTIZE)[-4:]}
    assert len(shared) == 1


def test_per_channel_weights_are_the_rounded_ones() -> None:
    model = nn.Conv2d(3, 5, 3)
    model.weight.mul_(torch.logspace(-3, 2, 5).reshape(-1, 1, 1, 1))
    done, _ = converted(model, SmallQuantizer(), torch.randn(2, 3, 6, 6))
    scale = model.weight.abs().amax((1, 2, 3)) / 127
    torch.testing.assert_close(done.weight_scale, scale, rtol=1e-6, atol=0)
    expected = (model.weight / scale.reshape(-1, 1, 1, 1)).round()
    assert done.weight_quantized.dtype == torch.int8
    assert torch.equal(done.weight_quantized.float(), expected)
    assert done.weight_quantized.abs().amax((1, 2, 3)).eq(127).all()
    assert done.weight_zero_point.eq(0).all()


def test_transposed_convolutions_along_their_own_axis() -> None:
    model = nn.ConvTranspose2d(4, 6, 3)
    done, _ = converted(model, SmallQuantizer(), torch.randn(2, 4, 5, 5))
    assert done.weight_scale.shape == (6,)
    (dequantize,) = nodes_of(done, frozenset({qd.dequantize_per_channel.default}))
    assert ops.argument(dequantize, "axis") == 1


@pytest.mark.parametrize("name", ["small_resnet", "small_mobilenet", "small_vit"])
def test_networks_compute_what_their_observers_say(name: str) -> None:
    net = NETS[name].build()
    inputs = NETS[name].inputs(2)
    ready = prepare_pt2e(exported(net, *inputs), SmallQuantizer())
    ready(*inputs)
    done = convert_pt2e(ready)
    assert_laws(ready, converted=False)
    assert_laws(done, converted=True)
    assert_same(done(*inputs), rounded(ready, *inputs), 1e-5)
    assert sqnr(net(*inputs), done(*inputs)) > 15
    assert_same(torch.export.export(done, inputs).module()(*inputs), done(*inputs))


# --------------------------------------------------------------------------------------- dynamic


def by_hand(x: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """Asymmetric int8 with the range of the data itself, from the definition."""
    low = (x.amin(dims, keepdim=True) if dims else x.min()).clamp(max=0).double()
    high = (x.amax(dims, keepdim=True) if dims else x.max()).clamp(min=0).double()
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
    zero_point = (-128 - (low / scale).round()).clamp(-128, 127)
    q = ((x.double() / scale).round() + zero_point).clamp(-128, 127)
    return ((q - zero_point) * scale).float()


@pytest.mark.parametrize(("spec", "dims"), [(DYNAMIC, None), (PER_TOKEN, (-1,))])
def test_dynamic(spec: QuantizationSpec, dims: tuple[int, ...] | None) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    x = torch.randn(2, 5, 4)
    # Without a single forward pass: everything is known, or computed at run time.
    done = convert_pt2e(prepare_pt2e(exported(model, x), linears(spec, weight_per_channel(0))))
    assert_laws(done, converted=True)
    assert_values_match(done, (x,))
    assert_golden_graph("dynamic_per_token" if dims else "dynamic_per_tensor", done)
    for y in (x, torch.randn(2, 5, 4) * 100):
        hidden = torch.nn.functional.linear(by_hand(y, dims), weights(done, "0"), model[0].bias)
        expected = torch.nn.functional.linear(
            by_hand(hidden, dims), weights(done, "1"), model[1].bias
        )
        torch.testing.assert_close(done(y), expected, rtol=1e-4, atol=1e-4 * float(y.abs().max()))
        assert sqnr(model(y), done(y)) > 30


def weights(model: Any, path: str) -> Tensor:
    owner = model.get_submodule(path)
    return owner.weight_quantized.float() * owner.weight_scale.reshape(-1, 1)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "scheme"),
    [
        (torch.uint8, 0, 255, STATIC),
        (torch.int8, -127, 127, STATIC),
        (torch.int8, -128, 127, torch.per_tensor_symmetric),
    ],
)
def test_per_token_has_one_form_alone(dtype, low, high, scheme) -> None:
    observer = PlaceholderObserver.with_args(per_token=True)
    spec = QuantizationSpec(dtype, observer, low, high, scheme, is_dynamic=True)
    ready = prepared(nn.Linear(4, 2), linears(spec, WEIGHT_PER_TENSOR), torch.randn(3, 4))
    with pytest.raises(AnnotationError, match=r"input_1: .*per token .*int8\[-128, 127\]"):
        convert_pt2e(ready)


def test_dynamic_symmetric_has_its_own_chooser() -> None:
    spec = QuantizationSpec(
        torch.int8, PlaceholderObserver, -127, 127, torch.per_tensor_symmetric, is_dynamic=True
    )
    x = torch.randn(3, 4)
    model = nn.Linear(4, 2)
    done, value = converted(model, linears(spec, WEIGHT_PER_TENSOR), x)
    assert qd.choose_qparams_symmetric.tensor in targets(done)
    assert sqnr(model(x), value) > 30


def test_dynamic_readers_of_one_value_share_its_parameters() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) * self.k(x) + self.v(x)

    done, _ = converted(Model(), linears(DYNAMIC, WEIGHT_PER_TENSOR), torch.randn(2, 4))
    assert targets(done).count(qd.choose_qparams.tensor) == 1
    assert targets(done).count(qd.quantize_per_tensor.tensor) == 1


def test_weight_only() -> None:
    model, x = exact(nn.Linear(4, 3)), exact_input(2, 4)
    done = convert_pt2e(prepare_pt2e(exported(model, x), linears(None, weight_per_channel(0))))
    assert_golden_graph("weight_only", done)
    assert_laws(done, converted=True)
    scale = model.weight.abs().amax(1, keepdim=True) / 127
    weight = (model.weight / scale).round() * scale
    expected = torch.nn.functional.linear(x, weight, model.bias)
    torch.testing.assert_close(done(x), expected)


# ------------------------------------------------------------------------------- other data types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts(dtype: torch.dtype) -> None:
    spec = QuantizationSpec(dtype, PlaceholderObserver)
    model, x = exact(nn.Linear(4, 3)), torch.randn(2, 4)
    done, value = converted(model, linears(spec, spec), x)
    if dtype is torch.float16:
        assert_golden_graph("cast_float16", done)
    expected = torch.nn.functional.linear(
        x.to(dtype).float(), model.weight.to(dtype).float(), model.bias
    )
    torch.testing.assert_close(value, expected)
    assert not nodes_of(done, ops.QUANTIZE | ops.DEQUANTIZE)
    assert {k: v.dtype for k, v in done.state_dict().items()} == {
        "weight_quantized": dtype,
        "bias": torch.float32,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", [ACTIVATION, DYNAMIC, PER_TOKEN, None])
def test_narrow_models(dtype: torch.dtype, spec: QuantizationSpec | None) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype).eval()
    x = torch.randn(4, 8, dtype=dtype)
    done, value = converted(model, linears(spec, weight_per_channel(0), None), x)
    assert value.dtype == dtype
    assert sqnr(model(x).float(), value.float()) > 25
    for node in nodes_of(done, ops.DEQUANTIZE):
        name = "output_dtype" if ops.has_argument(node, "output_dtype") else "out_dtype"
        assert ops.argument(node, name) == dtype
    if spec is ACTIVATION and dtype is torch.bfloat16:
        assert {b.dtype for n, b in done.named_buffers() if n.endswith("_quantized")} == {
            torch.int8
        }


def test_a_narrow_model_with_an_output_spec() -> None:
    model = exact(nn.Linear(4, 3)).to(torch.bfloat16)
    x = exact_input(2, 4).to(torch.bfloat16)
    done, _ = converted(model, linears(ACTIVATION, WEIGHT_PER_TENSOR, UNSIGNED), x)
    assert_golden_graph("bfloat16_model", done)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "bound"),
    [
        (torch.int16, -32768, 32767, 80),
        (torch.uint16, 0, 65535, 80),
        (torch.int32, -(2**20), 2**20, 100),
        (torch.uint8, 0, 255, 35),
        (torch.int8, -8, 7, 10),
        (torch.float8_e4m3fn, None, None, 12),
    ],
)
@pytest.mark.parametrize("observer", [MinMaxObserver, HistogramObserver])
def test_activation_types(dtype, low, high, bound, observer) -> None:
    spec = QuantizationSpec(dtype, observer, low, high, STATIC)
    x = torch.randn(16, 8)
    ready = prepared(nn.ReLU6(), everything(spec), x)
    done = convert_pt2e(ready)
    assert_laws(done, converted=True)
    assert_values_match(done, (x,))
    assert sqnr(nn.ReLU6()(x), done(x)) > bound
    if dtype is not torch.float8_e4m3fn:
        assert_same(done(x), rounded(ready, x))
    quantize = nodes_of(done, ops.QUANTIZE)
    assert {n.meta["val"].dtype for n in quantize} == {dtype}
    assert len(quantize) == 2


def everything(spec: QuantizationSpecBase) -> FunctionQuantizer:
    """Every floating point input and output of every operator."""

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.op != "call_function":
            return None
        return QuantizationAnnotation({n: spec for n in node.all_input_nodes}, spec)

    return FunctionQuantizer(annotate)


def test_double_precision_stays() -> None:
    model, x = nn.Linear(4, 3).double(), torch.randn(2, 4, dtype=torch.float64)
    with pytest.warns(NothingQuantizedWarning):
        ready = prepare_pt2e(exported(model, x), SmallQuantizer())
    done = convert_pt2e(ready)
    assert torch.equal(done(x), model(x))
    assert "float64" in "\n".join(map(str, done.record.notes))


# -------------------------------------------------------------------------------- kinds of specs


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


# ------------------------------------------------------------------------------- stored constants


class Tied(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


@pytest.mark.parametrize("spec", [WEIGHT_PER_TENSOR, weight_per_channel(0)])
def test_tied_weights_stay_one_tensor(spec: QuantizationSpec) -> None:
    done, _ = converted(Tied(), linears(ACTIVATION, spec), torch.randn(2, 64))
    state = done.state_dict()
    stored = [k for k, v in state.items() if v.dtype == torch.int8]
    assert len(stored) == 1
    biases = 2 * 64 * 4
    parameters = 64 * (4 + 8) if spec.ch_axis == 0 else 0
    assert sum(v.nbytes for v in state.values()) == 64 * 64 + biases + parameters
    program = torch.export.export(done, (torch.randn(2, 64),))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    loaded = torch.export.load(io.BytesIO(buffer.getvalue()))
    assert sum(v.numel() for v in loaded.state_dict.values() if v.dtype == torch.int8) == 64 * 64


def test_tied_weights_with_scales_of_their_own_are_equal_and_stored_once() -> None:
    def annotate(node: Node) -> QuantizationAnnotation | None:
        if not ops.is_op(node, ops.LINEAR):
            return None
        inputs = {ops.argument(node, "weight"): weight_per_channel(0)}
        return QuantizationAnnotation(inputs, allow_implicit_sharing=False)

    done, _ = converted(Tied(), FunctionQuantizer(annotate), torch.randn(2, 64))
    assert [v.dtype for v in done.state_dict().values()].count(torch.int8) == 1


class Computed(nn.Module):
    """Weights that reach their operator through chains of shape operators."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.flat = nn.Parameter(torch.randn(4 * 6))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, self.weight.t().contiguous().t())
        return torch.nn.functional.linear(y, self.flat.view(6, 4).transpose(0, 1))


@pytest.mark.parametrize("calibrate", [True, False])
def test_computed_weights_are_folded(calibrate: bool) -> None:
    model, x = Computed(), torch.randn(3, 6)[:, :4]
    ready = prepare_pt2e(exported(model, x), linears(None, weight_per_channel(0)))
    if calibrate:
        ready(x)
    done = convert_pt2e(ready)
    assert_laws(done, converted=True)
    assert not list(done.parameters())
    assert {v.dtype for v in done.state_dict().values()} == {
        torch.int8,
        torch.float32,
        torch.int64,
    }
    scale = model.weight.abs().amax(1, keepdim=True) / 127
    y = x @ ((model.weight / scale).round() * scale).t()
    second = model.flat.view(6, 4).t()
    scale = second.abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(done(x), y @ ((second / scale).round() * scale).t())
    assert_golden_graph("computed_weights", done)


def test_a_computed_weight_that_is_written_is_not_folded() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight * 1.0
            weight[0].copy_(x[0] * 3)
            return torch.nn.functional.linear(x, weight)

    model, x = Model(), torch.randn(2, 4).clamp(-2, 2)
    x[0, :2] = torch.tensor([-2.0, 2.0])
    done, value = converted(model, linears(ACTIVATION, WEIGHT_PER_TENSOR), x)
    assert sqnr(model(x), value) > 30
    other = torch.randn(2, 4).clamp(-2, 2)
    assert sqnr(model(other), done(other)) > 25


def test_unfolded_weights_compute_the_same() -> None:
    model, x = exact(nn.Linear(4, 3)), exact_input(2, 4)
    ready = prepared(model, SmallQuantizer(), x)
    folded, unfolded = convert_pt2e(ready), convert_pt2e(ready, fold_quantize=False)
    assert_golden_graph("unfolded", unfolded)
    assert_laws(unfolded, converted=True)
    assert_same(folded(x), unfolded(x))
    assert torch.equal(unfolded.weight, model.weight)
    assert isinstance(unfolded.weight, nn.Parameter)


def test_saved_size_is_that_of_int8(tmp_path: Path) -> None:
    model, x = (
        nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)),
        torch.randn(2, 512),
    )
    floats = 2 * 512 * 512 * 4
    done, value = converted(model, linears(ACTIVATION, WEIGHT_PER_TENSOR, ACTIVATION), x)
    expected = 2 * (512 * 512 + 512 * 4)
    assert not [n for n, p in done.named_parameters() if "weight" in n]
    assert sum(v.nbytes for v in done.state_dict().values()) == expected
    assert expected <= saved_size(done.state_dict()) < 1.05 * expected
    assert expected <= saved_size(done) < 1.2 * expected < floats / 3
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(done, (x,)), path)
    assert expected <= path.stat().st_size < 1.2 * expected
    assert_same(torch.export.load(path).module()(x), value)


class _Live(TorchDispatchMode):
    """Counts which of some tensors are alive whenever a new int8 matrix is made."""

    def __init__(self, watched: list[weakref.ref[Tensor]]) -> None:
        super().__init__()
        self.watched = watched
        self.counts: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.int8 and result.dim() == 2:
            self.counts.append(sum(ref() is not None for ref in self.watched))
        return result


def test_float_weights_are_let_go_one_by_one() -> None:
    x = torch.randn(2, 8)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))
    ready = prepare_pt2e(exported(model, x), linears(None, WEIGHT_PER_TENSOR))
    run_passes(ready, [ObserversToQDQ()])
    watched = [weakref.ref(layer.weight) for layer in model]
    del model
    gc.collect()
    live = _Live(watched)
    with live:
        run_passes(ready, [FoldQuantizedConstants()])
    assert live.counts == [6, 5, 4, 3, 2, 1]
    assert not any(ref() is not None for ref in watched)


def test_a_converted_model_holds_on_to_nothing() -> None:
    x = torch.randn(2, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    watched = [weakref.ref(p) for n, p in model.named_parameters() if "weight" in n]
    done = convert_pt2e(prepared(model, SmallQuantizer(), x))
    del model
    torch._dynamo.reset()
    gc.collect()
    assert done(x).shape == (2, 8)
    assert not any(ref() is not None for ref in watched)


# --------------------------------------------------------------------------- order of the calls


def test_an_uncalibrated_static_model_says_both_ways_out() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)

    ready = prepare_pt2e(exported(Model(), torch.randn(1, 4)), SmallQuantizer())
    with pytest.raises(NoDataError) as caught:
        convert_pt2e(ready)
    text = str(caught.value)
    assert "at x, linear" in text
    assert "calibrate" in text and "leave them in float" in text
    assert "set_module_name('block.0', None)" in text
    ready(torch.randn(1, 4))
    convert_pt2e(ready)


def test_the_wrong_order_is_said_so() -> None:
    x = torch.randn(1, 4)
    model = nn.Linear(4, 4)
    module = exported(model, x)
    with pytest.raises(FlowError, match="never prepared"):
        convert_pt2e(module)
    ready = prepare_pt2e(module, SmallQuantizer())
    ready(x)
    with pytest.raises(FlowError, match="already prepared"):
        prepare_pt2e(ready, SmallQuantizer())
    done = convert_pt2e(ready)
    with pytest.raises(FlowError, match="already converted"):
        convert_pt2e(done)
    with pytest.raises(FlowError, match="already converted"):
        prepare_pt2e(done, SmallQuantizer())


def test_what_was_never_exported_is_said_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for wrong in (model, torch.fx.symbolic_trace(model), torch.relu):
        with pytest.raises(NotExportedError, match=r"torch\.export\.export\(model"):
            prepare_pt2e(wrong, SmallQuantizer())  # type: ignore[arg-type]
    with pytest.raises(NotExportedError, match=r"torch\.export"):
        convert_pt2e(model)  # type: ignore[arg-type]
    with pytest.raises((NotExportedError, FlowError)):
        convert_pt2e(torch.fx.symbolic_trace(model))


def test_a_quantizer_must_be_an_instance_of_one() -> None:
    module = exported(nn.ReLU(), torch.randn(2))
    with pytest.raises(FlowError, match="SmallQuantizer is no quantizer instance"):
        prepare_pt2e(module, SmallQuantizer)  # type: ignore[arg-type]
    with pytest.raises(FlowError, match="str is no quantizer instance"):
        prepare_pt2e(module, "int8")  # type: ignore[arg-type]


def test_nothing_quantized_warns() -> None:
    module = exported(nn.ReLU(), torch.randn(2))
    with pytest.warns(NothingQuantizedWarning, match="annotated nothing") as caught:
        ready = prepare_pt2e(module, NoopQuantizer())
    assert caught[0].filename == __file__
    assert_same(convert_pt2e(ready)(torch.ones(2)), torch.ones(2))


def test_training_without_fake_quantizers_warns() -> None:
    module = exported(nn.Linear(4, 4), torch.randn(2, 4))
    with pytest.warns(NothingQuantizedWarning, match="no fake quantizers") as caught:
        prepare_qat_pt2e(module, XNNPACKQuantizer())
    assert [w.filename for w in caught] == [__file__]
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    prepare_qat_pt2e(module, XNNPACKQuantizer(config))  # warnings are errors here


def test_validate_is_asked() -> None:
    class Picky(SmallQuantizer):
        def validate(self, model: torch.fx.GraphModule) -> None:
            raise RuntimeError("not on this device")

    with pytest.raises(RuntimeError, match="not on this device"):
        prepare_pt2e(exported(nn.ReLU(), torch.randn(2)), Picky())


def test_transform_for_annotation_may_give_another_module() -> None:
    class Rewriting(SmallQuantizer):
        def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            result = copy.deepcopy(model)
            for node in nodes_of(result, frozenset({aten.silu.default})):
                with result.graph.inserting_before(node):
                    gate = result.graph.call_function(aten.sigmoid.default, node.args)
                    new = result.graph.call_function(aten.mul.Tensor, (node.args[0], gate))
                for made in (gate, new):
                    made.meta.update(node.meta)
                node.replace_all_uses_with(new)
                result.graph.erase_node(node)
            result.recompile()
            return result

    model, x = nn.Sequential(nn.Linear(4, 4), nn.SiLU()), torch.randn(3, 4)
    module = exported(model, x)
    before = dump(module)
    ready = prepare_pt2e(module, Rewriting())
    assert dump(module) == before
    assert aten.silu.default not in targets(ready)
    ready(x)
    assert sqnr(model(x), convert_pt2e(ready)(x)) > 30


def test_the_callback_sees_and_replaces_observers() -> None:
    seen: dict[Any, Any] = {}

    class Watching(SmallQuantizer):
        def prepare_obs_or_fq_callback(self, model: Any, edge_or_node_to_obs_or_fq: Any) -> None:
            seen.update(edge_or_node_to_obs_or_fq)
            for key, observer in edge_or_node_to_obs_or_fq.items():
                if observer.qscheme == STATIC:
                    edge_or_node_to_obs_or_fq[key] = HistogramObserver(dtype=torch.uint8)

    model, x = nn.Linear(4, 4), torch.randn(3, 4)
    ready = prepare_pt2e(exported(model, x), Watching())
    assert len(seen) == 3
    kinds = [type(m).__name__ for n, m in ready.named_children() if "post_process" in n]
    assert sorted(kinds) == ["HistogramObserver", "HistogramObserver", "PerChannelMinMaxObserver"]
    ready(x)
    assert {n.args[-1] for n in nodes_of(convert_pt2e(ready), ops.QUANTIZE)} == {torch.uint8}


def test_an_exported_program_is_taken_as_well() -> None:
    x = torch.randn(1, 4)
    program = torch.export.export(nn.Linear(4, 4), (x,))
    one, other = (prepare_pt2e(m, SmallQuantizer()) for m in (program, program.module()))
    assert dump(one) == dump(other)


# ------------------------------------------------------------------------------------- no effects


def fingerprint(model: torch.fx.GraphModule) -> Any:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    meta = [(n.name, sorted(n.meta), str(n.meta.get("nn_module_stack"))) for n in model.graph.nodes]
    return dump(model), model.code, state, meta, sorted(n for n, _ in model.named_modules())


def assert_unchanged(before: Any, after: Any) -> None:
    assert before[0] == after[0] and before[1] == after[1]
    assert before[2].keys() == after[2].keys()
    for key, value in before[2].items():
        assert torch.equal(value, after[2][key]) and value.dtype == after[2][key].dtype, key
    assert before[3:] == after[3:]


class Everything(nn.Module):
    """A batch norm, a tied weight, a computed weight and a buffer that is written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.tied, self.computed = Tied(4), nn.Parameter(torch.randn(4, 4))
        self.register_buffer("state", torch.zeros(4))

    state: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x)).relu().mean((2, 3))
        self.state.mul_(0.5)
        self.state.add_(y.mean(0))
        return torch.nn.functional.linear(self.tied(y) + self.state, self.computed.t())


def test_prepare_does_not_change_what_it_is_given() -> None:
    module = exported(Everything(), torch.randn(2, 2, 5, 5))
    before = fingerprint(module)
    ready = prepare_pt2e(module, SmallQuantizer())
    assert_unchanged(before, fingerprint(module))
    ready.train()
    ready.eval()
    assert_unchanged(before, fingerprint(module))


@pytest.mark.parametrize("calibrate", [True, False])
def test_convert_does_not_change_what_it_is_given(calibrate: bool) -> None:
    x = torch.randn(2, 2, 5, 5)
    activation = ACTIVATION if calibrate else None
    ready = prepare_pt2e(exported(Everything(), x), linears(activation, weight_per_channel(0)))
    if calibrate:
        ready(x)
    before = fingerprint(ready)
    one = convert_pt2e(ready)
    assert_unchanged(before, fingerprint(ready))
    other = convert_pt2e(ready)
    assert_unchanged(fingerprint(one), fingerprint(other))
    assert_same(copy.deepcopy(one)(x), copy.deepcopy(other)(x))


def test_more_calibration_then_another_conversion() -> None:
    x = torch.randn(4, 4)
    ready = prepared(nn.Linear(4, 4), SmallQuantizer(), x)
    first = convert_pt2e(ready)
    ready(100 * x)
    second = convert_pt2e(ready)
    scales = [nodes_of(m, ops.QUANTIZE)[0].args[1] for m in (first, second)]
    assert scales[1] == pytest.approx(100 * scales[0])


def test_a_weight_that_changes_is_observed_again() -> None:
    x = torch.randn(4, 4)
    model = nn.Linear(4, 4)
    ready = prepared(model, linears(None, weight_per_channel(0)), x)
    first = convert_pt2e(ready)
    model.weight.mul_(0.125)
    second = convert_pt2e(ready)
    torch.testing.assert_close(second.weight_scale, first.weight_scale / 8)


# --------------------------------------------------------------------------------- travelling


def through_torch_save(model: QuantGraphModule) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


TRAVEL: dict[str, Callable[[QuantGraphModule], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch_save,
    "twice": lambda model: through_torch_save(copy.deepcopy(model)),
}


@pytest.mark.parametrize("way", TRAVEL)
@pytest.mark.parametrize("dynamic", [False, True])
def test_travelling_keeps_everything(way: str, dynamic: bool) -> None:
    x = torch.randn(3, 2, 5, 5)
    shapes = {"x": {0: torch.export.Dim.AUTO}} if dynamic else None
    module = exported(Everything(), x, dynamic_shapes=shapes)
    ready = prepare_pt2e(module, SmallQuantizer())
    ready(x)
    moved = TRAVEL[way](ready)
    assert dump(moved) == dump(ready)
    assert_metadata(moved)
    moved(2 * x)  # and is still calibrated on its own
    done = convert_pt2e(ready)
    for original, sample in ((done, x), (convert_pt2e(moved), 2 * x)):
        arrived = TRAVEL[way](original)
        assert dump(arrived) == dump(original)
        assert_laws(arrived, converted=True)
        assert_same(arrived(sample), original(sample))
        assert arrived.state_dict().keys() == original.state_dict().keys()
        assert arrived.record.stage == original.record.stage
        if dynamic:
            assert arrived(torch.randn(5, 2, 5, 5)).shape == (5, 4)
        with pytest.raises(FlowError, match="already converted"):
            convert_pt2e(arrived)
    wide, narrow = nodes_of(convert_pt2e(moved), ops.QUANTIZE), nodes_of(done, ops.QUANTIZE)
    assert wide[0].args[1] > narrow[0].args[1]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("spec", [ACTIVATION, DYNAMIC, PER_TOKEN])
def test_exported_again(strict: bool, spec: QuantizationSpec) -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    batch = torch.export.Dim("batch", min=2, max=64)
    module = exported(model, x, dynamic_shapes=({0: batch},), strict=strict)
    ready = prepare_pt2e(module, SmallQuantizer(spec))
    ready(x)
    done = convert_pt2e(ready)
    shapes = {"input": {0: torch.export.Dim.AUTO}}
    program = torch.export.export(done, (x,), dynamic_shapes=shapes, strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    loaded = torch.export.load(io.BytesIO(buffer.getvalue()))
    for size in (2, 3, 17):
        y = torch.randn(size, 4)
        assert_same(program.module()(y), done(y))
        assert_same(loaded.module()(y), done(y))
    decomposed = program.run_decompositions()
    torch.testing.assert_close(decomposed.module()(x), done(x))


# ----------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("spec", [ACTIVATION, DYNAMIC, PER_TOKEN, None])
def test_every_node_says_where_it_comes_from(
    strict: bool, spec: QuantizationSpecBase | None
) -> None:
    model, x = ConvReluAddCat(), torch.randn(1, 2, 4, 4)
    module = exported(model, x, strict=strict)
    ready = prepare_pt2e(module, linears(spec, weight_per_channel(0)))
    ready(x)
    for fold in (True, False):
        done = convert_pt2e(ready, fold_quantize=fold)
        for graph_module in (ready, done):
            assert_metadata(graph_module)
        names = {n.name for n in module.graph.nodes}
        for node in done.graph.nodes:
            if node.name in names or node.op == "output":
                continue
            sources = []
            at = node.meta["from_node"]
            while at:
                sources.append(at[-1].name)
                at = at[-1].from_node
            assert set(sources) & names, (node.name, sources)


def test_quantize_and_dequantize_belong_to_the_module_of_their_operator() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    done, _ = converted(Model(), SmallQuantizer(), torch.randn(2, 4))
    first, second = nodes_of(done, ops.LINEAR)

    def path(node: Node) -> str:
        return str(list(node.meta["nn_module_stack"].values())[-1][0])

    for linear, name in ((first, "one"), (second, "two")):
        for dequantize in linear.all_input_nodes:
            if ops.is_op(dequantize, ops.DEQUANTIZE):
                assert path(dequantize) == name
    (between,) = first.users
    assert path(between) == "one"
    (outermost,) = second.users
    assert path(outermost) == "two"


def test_originals_keep_their_metadata() -> None:
    module = exported(ConvReluAddCat(), torch.randn(1, 2, 4, 4))
    ready = prepare_pt2e(module, SmallQuantizer())
    ready(torch.randn(1, 2, 4, 4))
    done = convert_pt2e(ready)
    for result in (ready, done):
        kept = {n.name: n for n in result.graph.nodes}
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            for key in ("nn_module_stack", "stack_trace", "from_node", "torch_fn"):
                assert kept[node.name].meta[key] == node.meta[key]


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


def test_no_warning_on_the_way() -> None:
    x = torch.randn(2, 2, 5, 5)
    module = exported(Everything(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready = prepare_pt2e(module, SmallQuantizer())
        ready(x)
        convert_pt2e(ready)(x)
