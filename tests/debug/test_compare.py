"""Where accuracy drops: figures against independent computations, and the graphs in between."""

from __future__ import annotations

import copy
import gc
import json
import math
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from support.control_flow_models import MODELS, Nested, WhileLoop, exported
from support.control_flow_models import inputs as flow_inputs
from support.decoder import Decoder, DecoderConfig
from support.small_quantizers import NoopQuantizer
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

import pt2q
from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.debug import (
    Comparison,
    ComparisonError,
    Error,
    Origin,
    compare,
    compare_results,
    extract_results_from_loggers,
    generate_numeric_debug_handle,
    prepare_for_propagation_comparison,
)
from pt2q.debug.stats import Running
from pt2q.errors import InputShapeError, NotExportedError
from pt2q.ir.graph import dump, handle_of
from pt2q.ir.module import QuantGraphModule
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

PER_TENSOR = get_symmetric_quantization_config(is_per_channel=False)
QAT = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)


class Mlp(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


class ConvBn(nn.Module):
    """Several outputs, one of integers; one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.twice, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn(self.conv(x)).relu().mean((2, 3))
        x = self.head(self.twice(self.twice(x)))
        return x, x.argmax(1)


def settled(model: nn.Module) -> nn.Module:
    """Batch norms with statistics that are not those of a new one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
    return model.eval()


def build(kind: Callable[[], nn.Module], *shape: int, batches: int = 3):
    """A model, its exported program and some inputs."""
    torch.manual_seed(0)
    model = settled(kind())
    inputs = [torch.randn(*shape) for _ in range(batches)]
    return model, torch.export.export(model, (inputs[0],)), inputs


def convert(program, inputs, config=None, **options) -> QuantGraphModule:
    quantizer = XNNPACKQuantizer()
    prepared = prepare_pt2e(program, quantizer if config is None else quantizer.set_global(config))
    for x in inputs:
        prepared(x)
    return convert_pt2e(prepared, **options)


class Values(Interpreter):
    """The value of each node, and what the first dequantize behind it gives."""

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node):
        value = super().run_node(n)
        self.values[n.name] = value
        return value

    def seen(self, name: str) -> Tensor:
        node = next(n for n in self.module.graph.nodes if n.name == name)
        quantize = [u for u in node.users if "quantize_per_tensor" in str(u.target)]
        if not quantize:
            return self.values[name]
        return self.values[next(iter(quantize[0].users)).name]


def run(model: GraphModule, *inputs) -> Values:
    values = Values(model)
    with torch.no_grad():
        values.run(*inputs)
    return values


def hooked(model: nn.Module, name: str, inputs: list[Tensor]) -> list[Tensor]:
    """The outputs of a module of the eager model."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, i, o: found.append(o))
    with torch.no_grad():
        for x in inputs:
            model(x)
    handle.remove()
    return found


# ------------------------------------------------------------------ the figures


def test_the_total_error_is_that_of_the_values_of_eager_and_converted_model() -> None:
    model, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, inputs)
    report = compare(program, converted, inputs)
    runs = [run(converted, x) for x in inputs]
    for node, module in (("linear", "layers.0"), ("linear_1", "layers.1")):
        reference = torch.cat(hooked(model, module, inputs))
        value = torch.cat([r.seen(node) for r in runs])
        error = report[node].total
        assert error.sqnr == pytest.approx(float(sqnr(reference, value)), abs=1e-6)
        assert error.max_abs == pytest.approx(float((reference - value).abs().max()), rel=1e-6)
        cosine = F.cosine_similarity(reference.flatten().double(), value.flatten().double(), 0)
        assert error.cosine == pytest.approx(float(cosine), abs=1e-9)
        assert error.count == reference.numel() and report[node].calls == len(inputs)
    with torch.no_grad():
        outputs = [torch.cat([m(x) for x in inputs]) for m in (model, converted)]
    assert report.outputs[0].sqnr == pytest.approx(float(sqnr(*outputs)), abs=1e-6)
    assert report.outputs[0].sqnr == pytest.approx(report["relu_1"].total.sqnr, abs=1e-6)
    assert report.unmatched == () and report.notes == () and report.batches == 3


def test_the_local_error_is_that_of_the_quantized_operator_on_the_rounded_float_inputs() -> None:
    model, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, inputs)
    report = compare(program, converted, inputs)
    nodes = {n.name: n for n in converted.graph.nodes}

    def rounding(name: str) -> Callable[[Tensor], Tensor]:
        quantize = next(u for u in nodes[name].users if "quantize" in str(u.target))
        scale, zero_point, low, high, _ = quantize.args[1:]
        return lambda x: ((x / scale).round() + zero_point).clamp(low, high).sub(zero_point) * scale

    layer = model.layers[1]
    weight, scale = (
        getattr(converted.layers, "1").__getattr__(f"weight_{kind}")
        for kind in ("quantized", "scale")
    )
    x = rounding("relu")(torch.cat(hooked(model, "layers.0", inputs)).relu())
    with torch.no_grad():
        reference = layer(x)
        value = F.linear(x, weight.float() * scale[:, None], layer.bias)
    assert report["linear_1"].local.sqnr == pytest.approx(float(sqnr(reference, value)), abs=1e-3)

    reference = torch.cat(hooked(model, "layers.1", inputs)).relu()
    expected = float(sqnr(reference, rounding("relu_1")(reference)))
    assert report["relu_1"].local.sqnr == pytest.approx(expected, abs=1e-3)
    (row,) = report["linear_1"].weights
    expected = float(sqnr(layer.weight, weight.float() * scale[:, None]))
    assert row.error.sqnr == pytest.approx(expected, abs=1e-6)
    assert (row.name, row.argument) == ("layers.1.weight_quantized", "weight")


def test_roundings_count_what_is_clipped_and_which_integers_occur() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, [0.3 * x for x in inputs])  # ranges that are too small
    report = compare(program, converted, inputs)
    (row,) = report["x"].roundings
    (x,) = (n for n in converted.graph.nodes if n.name == "x")
    (quantize,) = x.users
    scale, zero_point, low, high, _ = quantize.args[1:]
    levels = (torch.cat(inputs) / scale).round() + zero_point
    clipped = float(((levels < low) | (levels > high)).float().mean())
    assert row.clipped == pytest.approx(clipped, abs=1e-6) and clipped > 0.05
    used = levels.clamp(low, high).unique().numel() / (high - low + 1)
    assert row.levels == pytest.approx(used, abs=1e-6)
    assert row.scale == (scale, scale) and row.zero_point == (zero_point, zero_point)
    assert (row.dtype, row.quant_min, row.quant_max) == ("int8", low, high)
    assert not row.dynamic


def test_a_layer_with_an_outlier_channel_is_the_culprit() -> None:
    def planted() -> nn.Module:
        model = Mlp(6)
        with torch.no_grad():
            model.layers[2].weight[5] *= 200  # one scale for all channels leaves them few levels
            model.layers[3].weight[:, 5] /= 200
        return model

    _, program, inputs = build(planted, 32, 16)
    per_tensor = compare(program, convert(program, inputs, PER_TENSOR), inputs)
    worst = per_tensor.worst(1).rows[0]
    assert worst.node in ("linear_2", "linear_3") and worst.module in ("layers.2", "layers.3")
    weights = {row.module: row.weights[0].error.sqnr for row in per_tensor if row.weights}
    assert min(weights, key=weights.__getitem__) in ("layers.2", "layers.3")


def test_victims_are_not_culprits() -> None:
    def planted() -> nn.Module:
        model = Mlp(6)
        with torch.no_grad():
            model.layers[1].weight[:, 3] *= 100  # an input channel: the output is alike
            model.layers[0].weight[3] = 0
            model.layers[0].bias[3] = 0.01
        return model

    _, program, inputs = build(planted, 32, 16)
    report = compare(program, convert(program, inputs, PER_TENSOR), inputs)
    assert report.worst(1).rows[0].node == "linear_1"
    culprit = report["linear_1"]
    others = [row for row in report if row.node.startswith("linear") and row is not culprit]
    assert all(row.local.sqnr > culprit.local.sqnr + 10 for row in others)
    after = [row for row in others if row.node > "linear_1"]
    assert len(after) == 4 and all(row.total.sqnr < row.local.sqnr - 20 for row in after)


def test_rounding_an_activation_badly_counts_for_who_made_it() -> None:
    class Outlier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c(self.b(y).relu())

    def planted() -> nn.Module:
        model = Outlier()
        with torch.no_grad():
            model.a.bias[0] = 500.0
            model.b.weight[:, 0] = 0
        return model

    _, program, inputs = build(planted, 32, 16)
    report = compare(program, convert(program, inputs), inputs)
    assert report["linear"].roundings[0].levels < 0.2
    # What is left of the other channels of its value is seen by its reader, exactly.
    assert report["linear_1"].total.sqnr < 25 < 35 < report["linear_1"].local.sqnr


# ------------------------------------------------------------------ folding, training


def test_a_folded_convolution_gives_the_value_of_its_batch_norm() -> None:
    model, program, inputs = build(ConvBn, 4, 3, 8, 8)
    converted = convert(program, inputs)
    report = compare(program, converted, inputs)
    row = report["batch_norm"]
    assert row.includes == ("conv2d",) and row.counterpart == "conv2d"
    assert report["conv2d"] is row and report.unmatched == ()
    reference = torch.cat(hooked(model, "bn", inputs))
    value = torch.cat([run(converted, x).seen("conv2d") for x in inputs])
    assert row.total.sqnr == pytest.approx(float(sqnr(reference, value)), abs=1e-6)
    factor = model.bn.weight / torch.sqrt(model.bn.running_var + model.bn.eps)
    folded = model.conv.weight * factor[:, None, None, None]
    weight = converted.conv.weight_quantized * converted.conv.weight_scale[:, None, None, None]
    assert row.weights[0].error.sqnr == pytest.approx(float(sqnr(folded, weight)), abs=1e-3)
    assert min(r.local.sqnr for r in report) > 30


def test_each_call_of_a_layer_has_its_row_and_integers_are_compared_exactly() -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    report = compare(program, convert(program, inputs), inputs)
    rows = [row for row in report if row.module == "twice"]
    assert [row.node for row in rows] == ["linear", "linear_1"]
    assert rows[0].weights[0].error == rows[1].weights[0].error
    assert rows[0].total != rows[1].total
    error = report["argmax"].total
    assert error.differing is not None and error.count == 12
    assert report["argmax"].local.is_exact
    assert len(report.outputs) == 2 and report.outputs[1].differing == error.differing


def test_integers_that_differ_are_counted() -> None:
    running = Running()
    running.add(torch.tensor([1, 2, 3]), torch.tensor([1, 5, 4]))
    error = running.result()
    assert (error.differing, error.count, error.is_exact) == (2, 3, False)


@pytest.mark.parametrize("fast", [False, True])
def test_models_in_training(fast: bool) -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    prepared = prepare_qat_pt2e(program, XNNPACKQuantizer().set_global(QAT), fast=fast)
    prepared.train()
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-3)
    for x in inputs:
        prepared(x)[0].square().mean().backward()
        optimizer.step()
    state = {k: v.clone() for k, v in prepared.state_dict().items()}
    report = compare(program, prepared, inputs)
    assert all(torch.equal(v, state[k]) for k, v in prepared.state_dict().items())
    assert prepared.training
    # The float model shares the parameters that were trained, not the statistics.
    trained = copy.deepcopy(program.module())
    names = dict(trained.named_buffers())
    for name, value in prepared.named_buffers():
        if name in names:
            names[name].copy_(value)
    report, after = (compare(trained, m, inputs) for m in (prepared, convert_pt2e(prepared)))
    assert report.unmatched == after.unmatched == ()
    assert [r.node for r in after] == [r.node for r in report if r.node != "conv2d"]
    for row in report:
        assert row.local.sqnr > 10 and row.total.sqnr > 10, row
    assert ("conv2d" in {r.node for r in report}) is not fast
    conv = report["conv2d"].weights[0].error.sqnr
    assert conv == pytest.approx(after["conv2d"].weights[0].error.sqnr, abs=0.05)
    assert report.outputs[0].sqnr == pytest.approx(after.outputs[0].sqnr, abs=1)


def test_a_prepared_model_rounds_nothing_and_says_so() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    prepared(inputs[0])
    report = compare(program, prepared, inputs)
    assert all(row.total.is_exact and row.local.is_exact for row in report)
    assert "observers round nothing" in report.notes[0] and len(report.worst()) == 0


# ------------------------------------------------------------------ other forms of the model


def test_the_reference_representation() -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    plain = compare(program, convert(program, inputs), inputs)
    converted = convert(program, inputs, use_reference_representation=True)
    report = compare(program, converted, inputs)
    assert report.outputs[0].sqnr == pytest.approx(plain.outputs[0].sqnr, abs=1)
    assert report["relu"].includes == ("conv2d", "batch_norm")
    for node in ("relu", "mean", "linear", "linear_1", "linear_2"):
        assert report[node].total.sqnr == pytest.approx(plain[node].total.sqnr, abs=1.5)
    for node in ("mean", "linear", "linear_1", "linear_2"):
        assert report[node].local.sqnr == pytest.approx(plain[node].local.sqnr, abs=1.5)
    assert "reference representation" in report.notes[0]


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_exported_anew(decompose: bool) -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    converted = convert(program, inputs)
    expected = compare(program, converted, inputs)
    anew = torch.export.export(converted, (inputs[0],))
    report = compare(program, anew.run_decompositions() if decompose else anew, inputs)
    assert [row.node for row in report] == [row.node for row in expected]
    for one, other in zip(report, expected, strict=True):
        assert one.includes == other.includes
        assert one.total.sqnr == pytest.approx(other.total.sqnr, abs=1e-3)
        assert one.local.sqnr == pytest.approx(other.local.sqnr, abs=1e-2)
        pairs = zip(one.weights, other.weights, strict=True)
        assert all(a.error.sqnr == pytest.approx(b.error.sqnr, abs=1e-3) for a, b in pairs)


def test_float_weights_behind_a_quantize() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    stored = compare(program, convert(program, inputs), inputs)
    unfolded = compare(program, convert(program, inputs, fold_quantize=False), inputs)
    for one, other in zip(stored, unfolded, strict=True):
        assert [w.error for w in one.weights] == [w.error for w in other.weights]


def test_dynamic_quantization_belongs_to_the_reader() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    report = compare(program, convert(program, inputs, DYNAMIC), inputs)
    assert {row.node for row in report if row.roundings} == {"linear", "linear_1"}
    (row,) = report["linear"].roundings
    assert row.dynamic and row.of == "x" and row.scale[0] < row.scale[1]
    assert report["relu"].local.is_exact and report["linear"].local.sqnr > 30


def test_operators_that_were_taken_apart() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.out = nn.Linear(16, 16), nn.Linear(16, 16)
            self.rnn = nn.LSTM(16, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = F.scaled_dot_product_attention(self.q(x), x, x)
            return self.out(self.rnn(y)[0])

    model, program, inputs = build(Attention, 2, 5, 16)
    quantizer = XNNPACKQuantizer().set_decompositions(attention=True, recurrent=True)
    prepared = prepare_pt2e(program, quantizer)
    for x in inputs:
        prepared(x)
    converted = convert_pt2e(prepared)
    report = compare(program, converted, inputs)
    names = [row.node for row in report]
    assert "scaled_dot_product_attention" in names and "linear_1" in names
    reference = torch.cat(hooked(model, "q", inputs))
    attended = torch.cat(
        [
            F.scaled_dot_product_attention(q, x, x)
            for q, x in zip(reference.split(2), inputs, strict=True)
        ]
    )
    assert report["scaled_dot_product_attention"].total.count == attended.numel()
    assert report["scaled_dot_product_attention"].local.sqnr > 30
    weights = {w.name for row in report for w in row.weights}
    assert {"rnn.weight_ih_l0_quantized", "rnn.weight_hh_l0_quantized"} <= weights
    assert report["linear_1"].local.sqnr > 30


def test_dynamic_shapes_and_keyword_inputs() -> None:
    torch.manual_seed(0)
    model = Mlp().eval()
    shapes = {"x": {0: torch.export.Dim.AUTO}}
    program = torch.export.export(model, (torch.randn(4, 16),), dynamic_shapes=shapes)
    inputs = [torch.randn(n, 16) for n in (2, 7, 3)]
    converted = convert(program, inputs)
    report = compare(program, converted, inputs)
    assert report["linear"].total.count == 12 * 16
    assert compare(program, converted, [{"x": x} for x in inputs]) == report
    assert compare(program, converted, [(x,) for x in inputs]) == report
    assert compare(program, converted, inputs[0]) == compare(program, converted, (inputs[0],))


# ------------------------------------------------------------------ control flow, state


@pytest.mark.parametrize("kind", MODELS)
def test_bodies_of_control_flow(kind: type[nn.Module]) -> None:
    program = exported(kind)
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    for x in flow_inputs():
        prepared(x)
    converted = convert_pt2e(prepared)
    report = compare(program, converted, flow_inputs())
    inside = [row for row in report if "." in row.node]
    assert any(row.weights for row in inside) and report.unmatched == () and report.notes == ()
    with torch.no_grad():
        outputs = [torch.cat([m(x) for x in flow_inputs()]) for m in (program.module(), converted)]
    assert report.outputs[0].sqnr == pytest.approx(float(sqnr(*outputs)), abs=1e-3)
    assert all(row.local is not None and row.local.rank > 20 for row in inside if row.calls)


def test_statistics_are_over_all_calls_of_a_body() -> None:
    program = exported(WhileLoop)
    model = copy.deepcopy(program.module())
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    for x in flow_inputs():
        prepared(x)
    report = compare(program, convert_pt2e(prepared), flow_inputs())
    row = report["while_loop_body_graph_0.linear"]
    assert row.calls == 3 * len(flow_inputs()) and row.total.count == 3 * 4 * 48
    state = model.state_dict()
    weight, bias = state["a.weight"], state["a.bias"]
    energy = 0.0
    for x in flow_inputs():
        for _ in range(3):
            y = F.linear(x, weight, bias)
            energy += float(y.double().square().sum())
            x = y.tanh()
    noise = energy / 10 ** (row.total.sqnr / 10)
    assert 0 < noise < energy / 100
    assert report["while_loop_cond_graph_0.lt"].calls == 4 * len(flow_inputs())
    assert len(row.weights) == 1 and row.weights[0].error.sqnr > 40


def test_a_decision_that_falls_differently_is_told() -> None:
    class Threshold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return torch.cond(y.sum() > 0, lambda y: self.b(y), lambda y: y * 2, (y,))

    torch.manual_seed(0)
    model = Threshold().eval()
    with torch.no_grad():
        model.a.weight[:, 0] = 30.0  # the quantized sum is far off
    x = torch.randn(2, 8)
    program = torch.export.export(model, (x,))
    converted = convert(program, [x, -x, x + 1, x - 1], PER_TENSOR)
    found = [torch.randn(2, 8) for _ in range(200)]
    found = [x - (model.a(x).sum() / 16 / 30) * F.one_hot(torch.zeros(2).long(), 8) for x in found]
    report = compare(program, converted, found)
    assert any("a decision fell differently" in note for note in report.notes)
    # The local comparison goes the float model's way.
    assert report["true_graph_0.linear"].local.count == 16 * report["true_graph_0.linear"].calls


def test_state_is_the_same_for_both_and_left_alone() -> None:
    config = DecoderConfig(dim=32, hidden=48, layers=1, length=16)
    torch.manual_seed(0)
    model = Decoder(config).eval()
    steps = [(torch.tensor([[token]]), torch.tensor([at])) for at, token in enumerate((5, 9, 2, 7))]
    program = torch.export.export(model, steps[0])
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    for step in steps:
        prepared(*step)
    converted = convert_pt2e(prepared)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (prepared, converted)]
    report = compare(program, converted, steps)
    again = compare(program, converted, steps)
    assert str(report) == str(again)
    for model_, state in zip((prepared, converted), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model_.state_dict().items())
    module = program.module()
    with torch.no_grad():
        pairs = [(module(*step), converted(*step)) for step in steps]
    expected = sqnr(*(torch.cat(column) for column in zip(*pairs, strict=True)))
    assert report.outputs[0].sqnr == pytest.approx(float(expected), abs=1e-3)
    # The prepared model has moved its cache; compared, it starts where the float model does.
    exact = compare(program, prepared, steps)
    assert exact.outputs[0].sqnr > 100
    assert not any("keeps what it holds" in note for note in report.notes)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        view = y[:, :4]
        view.mul_(2)
        self.total.add_(y.sum(0))
        return self.b(y) + self.total


def test_values_that_are_written_into() -> None:
    model, program, inputs = build(InPlace, 4, 8)
    converted = convert(program, inputs)
    report = compare(program, converted, inputs)
    module = program.module()
    with torch.no_grad():
        pairs = [(module(x), converted(x)) for x in inputs]
    expected = sqnr(*(torch.cat(column) for column in zip(*pairs, strict=True)))
    assert report.outputs[0].sqnr == pytest.approx(float(expected), abs=1e-3)
    assert all(row.local.rank > 25 for row in report if row.local is not None)
    plain = torch.cat([F.linear(x, model.a.weight, model.a.bias) for x in inputs])
    signal = float(plain.double().square().sum())  # before it was doubled
    noise = signal / 10 ** (report["linear"].total.sqnr / 10)
    assert noise < signal / 1000


# ------------------------------------------------------------------ values that are no numbers


def test_nan_and_infinity_are_named() -> None:
    running = Running()
    inf, nan = math.inf, math.nan
    running.add(torch.tensor([1.0, inf, nan, -inf, 2.0]), torch.tensor([1.0, inf, nan, 3.0, nan]))
    error = running.result()
    assert (error.nonfinite, error.nonfinite_reference) == (2, 3)
    assert error.rank == -inf and not error.is_exact and error.max_abs == 0
    agree = Running()
    agree.add(torch.tensor([1.0, -inf]), torch.tensor([1.0, -inf]))
    assert agree.result().is_exact and agree.result().nonfinite_reference == 1


def test_a_nan_ranks_first() -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x).relu() + 1e-4).log()

    _, program, inputs = build(Log, 4, 8)
    converted = convert(program, inputs)
    for node in converted.graph.nodes:
        if node.target is torch.ops.aten.add.Tensor:
            node.args = (node.args[0], -1e-3)
    converted.recompile()
    report = compare(program, converted, inputs)
    assert report.worst(1, by="total").rows[0].node == "log"
    # The logarithm itself is right: the sum that it is given is not.
    assert report["log"].local.nonfinite == 0 < report["log"].total.nonfinite
    assert report["add"].local.max_abs == pytest.approx(1.1e-3, rel=1e-3)
    assert "NaN/inf" in str(report) and report.outputs[0].nonfinite > 0
    json.loads(report.to_json())


# ------------------------------------------------------------------ the report


def test_the_report_is_a_table_and_json() -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    report = compare(program, convert(program, inputs), inputs)
    text = str(report)
    lines = text.splitlines()
    end = lines[0].index("local dB") + len("local dB")
    assert all(line[end - 1] != " " for line in lines[2 : 2 + len(report)])  # right-aligned
    assert "conv2d + batch_norm" in text and "outputs over 3 batches" in text
    data = json.loads(report.to_json())
    assert [row["node"] for row in data["rows"]] == [row.node for row in report]
    assert data["rows"][1]["total"]["sqnr"] == report.rows[1].total.sqnr
    assert data["batches"] == 3 and data["rows"][1]["includes"] == ["conv2d"]
    worst = report.worst(3)
    ranks = [row.local.sqnr for row in worst]
    assert isinstance(worst, Comparison) and ranks == sorted(ranks) and len(worst) == 3
    total = [row.total.sqnr for row in report.worst(2, by="total")]
    finite = [row.total.sqnr for row in report if math.isfinite(row.total.sqnr)]
    assert total == sorted(finite)[:2]
    with pytest.raises(ValueError, match="local"):
        report.worst(by="other")
    with pytest.raises(KeyError, match="no row"):
        report["nothing"]
    with pytest.raises(AttributeError):
        report.rows = ()


def test_what_only_one_model_has_is_named() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, inputs)
    target = next(n for n in converted.graph.nodes if n.name == "relu_1")
    with converted.graph.inserting_after(target):
        new = converted.graph.call_function(torch.ops.aten.tanh.default, (target,))
    target.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    converted.recompile()
    report = compare(program, converted, inputs)
    assert [(u.node, u.model) for u in report.unmatched] == [("tanh_default", "quantized")]
    assert "tanh_default (quantized): the float model has no such value" in str(report)


def test_values_of_other_shapes_are_named() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, inputs)
    for node in converted.graph.nodes:
        if node.name == "relu_1":
            node.target = torch.ops.aten.mean.dim
            node.args = (node.args[0], [0])
    converted.recompile()
    report = compare(program, converted, inputs)
    assert "its shape is (8, 16) in float, (16,) quantized" in str(report)
    assert report["relu_1"].total is None and report["relu_1"].local is None


def test_mistakes_are_named() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    converted = convert(program, inputs)
    with pytest.raises(ComparisonError, match="the first model must be the float one"):
        compare(converted, program, inputs)
    with pytest.raises(ComparisonError, match="no batch"):
        compare(program, converted, [])
    with pytest.raises(ComparisonError, match="takes 1 input"):
        compare(program, converted, (inputs[0], inputs[1]))
    with pytest.raises(ComparisonError, match="iterable of batches"):
        compare(program, converted, 3)
    with pytest.raises(InputShapeError, match="'x'"):
        compare(program, converted, [torch.randn(2, 16)])
    with pytest.raises(NotExportedError, match=r"torch\.export"):
        compare(nn.Linear(2, 2), converted, inputs)

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cos().sin()

    other = torch.export.export(Other(), (inputs[0],))
    with pytest.raises(ComparisonError, match="no operator in common"):
        compare(other, converted, inputs)


def test_nothing_of_the_models_given_changes() -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    prepared(inputs[0])
    converted = convert_pt2e(prepared)
    module = program.module()
    models = (module, prepared, converted)
    texts = [dump(m) for m in models]
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    records = [(list(m.record.notes), dict(m.record.facts)) for m in (prepared, converted)]
    modes = [[x.training for x in m.modules()] for m in models]
    compare(module, prepared, [10 * x for x in inputs])
    compare(module, converted, inputs)
    assert [dump(m) for m in models] == texts
    assert [[x.training for x in m.modules()] for m in models] == modes
    for model, state in zip(models, states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [(m.record.notes, m.record.facts) for m in (prepared, converted)] == records
    convert_pt2e(prepared)


def test_batches_are_not_kept() -> None:
    _, program, inputs = build(Mlp, 64, 16)
    converted = convert(program, inputs)
    alive: list[int] = []
    made: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for _ in range(4):
            gc.collect()
            alive.append(sum(ref() is not None for ref in made))
            batch = torch.randn(64, 16)
            made.append(weakref.ref(batch))
            yield batch
            del batch

    compare(program, converted, stream())
    assert len(alive) == 4 and max(alive) <= 1


# ------------------------------------------------------------------ handles, the standard calls


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_handles_survive_the_flow() -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    generate_numeric_debug_handle(program)
    handles = {n.name: handle_of(n) for n in program.graph.nodes if n.op == "call_function"}
    assert sorted(handles.values()) == list(range(1, len(handles) + 1))
    generate_numeric_debug_handle(program)
    assert {n.name: handle_of(n) for n in program.graph.nodes if n.op == "call_function"} == handles
    assert all(handle_of(n) is None for n in program.graph.nodes if n.op != "call_function")

    converted = convert(program, inputs)
    anew = torch.export.export(converted, (inputs[0],)).run_decompositions()
    names = {n.name: n for n in converted.graph.nodes}
    assert handle_of(names["conv2d"]) == handles["batch_norm"]
    assert handle_of(names["linear_1"]) == handles["linear_1"]
    for model in (converted, anew, convert(program, inputs, use_reference_representation=True)):
        report = compare(program, model, inputs)
        assert {"relu", "mean", "linear", "linear_1", "linear_2"} <= {r.node for r in report}
        assert report["linear_2"].total.sqnr == pytest.approx(
            compare(program, converted, inputs)["linear_2"].total.sqnr, abs=1
        )


def test_handles_in_bodies() -> None:
    program = copy.deepcopy(exported(Nested))
    generate_numeric_debug_handle(program)
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    for x in flow_inputs():
        prepared(x)
    converted = convert_pt2e(prepared)
    report = compare(program, converted, flow_inputs())
    plain = compare(exported(Nested), converted, flow_inputs())
    assert [r.node for r in report] == [r.node for r in plain] and report.unmatched == ()
    with pytest.raises(NotExportedError):
        generate_numeric_debug_handle(nn.Linear(2, 2))


@pytest.mark.parametrize("with_handles", [True, False])
@pytest.mark.parametrize("kind", [Mlp, Nested])
def test_the_standard_calls(kind: type[nn.Module], with_handles: bool) -> None:
    if kind is Mlp:
        _, program, inputs = build(Mlp, 8, 16)
    else:
        program, inputs = copy.deepcopy(exported(Nested)), flow_inputs()
    if with_handles:
        generate_numeric_debug_handle(program)
    converted = convert(program, inputs)
    before = dump(converted)
    reference = prepare_for_propagation_comparison(program.module())
    actual = prepare_for_propagation_comparison(converted)
    for x in inputs:
        torch.testing.assert_close(actual(x), converted(x))
        reference(x)
    found = compare_results(
        extract_results_from_loggers(reference), extract_results_from_loggers(actual)
    )
    assert dump(converted) == before
    assert all(isinstance(key, int if with_handles else Origin) for key in found)
    report = compare(program, converted, inputs)
    names = {s.ref_node_name: s for s in found.values()}
    assert {row.node for row in report if row.operator.startswith("aten")} <= names.keys()
    node = "linear_1" if kind is Mlp else "while_loop_body_graph_0.true_graph_0.linear"
    summary = names[node]
    assert len(summary.results) == report[node].calls
    first = summary.results[0]
    assert float(first.sqnr) == pytest.approx(float(sqnr(first.ref, first.actual)))
    mse = float((first.ref.double() - first.actual.double()).square().mean())
    assert float(first.mse_loss) == pytest.approx(mse)
    if kind is Mlp:
        assert "layers.1" in summary.ref_module_stack and "Linear" in summary.actual_module_stack
        raw = torch.cat([r.actual for r in summary.results])
        expected = torch.cat([run(converted, x).values["linear_1"] for x in inputs])
        torch.testing.assert_close(raw, expected)


def test_results_that_do_not_fit_are_named() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    reference = prepare_for_propagation_comparison(program.module())
    actual = prepare_for_propagation_comparison(convert(program, inputs))
    reference(inputs[0])
    actual(inputs[0])
    actual(inputs[0])
    one, other = extract_results_from_loggers(reference), extract_results_from_loggers(actual)
    with pytest.raises(ComparisonError, match="linear ran 1 times in the float model"):
        compare_results(one, other)
    with pytest.raises(ComparisonError, match="nothing in common"):
        compare_results({Origin("a"): ("a", None, [])}, {Origin("b"): ("b", None, [])})


def test_beside_the_peer() -> None:
    """The raw values of operators that both find have the same errors."""
    peer = pytest.importorskip("torchao.quantization.pt2e")
    _, program, inputs = build(Mlp, 8, 16, batches=1)
    converted = convert(program, inputs)
    models = [program.module(check_guards=False), converted]
    theirs = [peer.prepare_for_propagation_comparison(m) for m in models]
    ours = [prepare_for_propagation_comparison(m) for m in models]
    for model in (*theirs, *ours):
        model(inputs[0])
    expected = peer.compare_results(*map(peer.extract_results_from_loggers, theirs))
    found = compare_results(*map(extract_results_from_loggers, ours))
    names = {s.ref_node_name: s for s in found.values()}
    seen = 0
    for summary in expected.values():
        if summary.ref_node_name not in names or len(summary.results) != 1:
            continue
        mine = names[summary.ref_node_name]
        if mine.actual_node_name == summary.actual_node_name:
            seen += 1
            pair = summary.results[0]
            assert torch.equal(pair.actual, mine.results[0].actual)
            assert torch.equal(pair.ref, mine.results[0].ref)
            # Theirs takes the quantized value for the signal.
            assert float(mine.results[0].sqnr) == pytest.approx(float(pair.sqnr), abs=0.05)
    assert seen >= 2


def test_the_names_are_at_the_top() -> None:
    assert pt2q.generate_numeric_debug_handle is generate_numeric_debug_handle
    assert pt2q.compare_results is compare_results


def test_a_model_without_quantization_is_exact() -> None:
    _, program, inputs = build(Mlp, 8, 16)
    with pytest.warns(UserWarning, match="annotated nothing"):
        prepared = prepare_pt2e(program, NoopQuantizer())
    report = compare(program, convert_pt2e(prepared), inputs)
    assert all(row.total.is_exact for row in report)
    assert isinstance(report.outputs[0], Error) and report.outputs[0].is_exact
    assert "outputs over 3 batches: exact" in str(report)
