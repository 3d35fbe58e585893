"""Attention and recurrent layers taken apart: the same function, operators that quantize."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from support.laws import assert_laws, assert_values_match
from support.nodes import nodes_of
from support.results import assert_same, leaves
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr
from pt2q.ir import ops
from pt2q.ir.graph import dump
from pt2q.ir.module import QuantGraphModule, import_exported
from pt2q.passes import run_passes, verified_passes
from pt2q.passes.decompose.attention import DecomposeAttention
from pt2q.passes.decompose.recurrent import DecomposeRecurrent
from pt2q.quantizers import OnnxQDQQuantizer, XNNPACKQuantizer, get_symmetric_quantization_config

AUTO = torch.export.Dim.AUTO
# torch says so of every recurrent layer it exports.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes self")


def taken_apart(model: nn.Module, step: Any, *inputs: Any, **options: Any) -> QuantGraphModule:
    module = import_exported(torch.export.export(model, inputs, **options))
    with verified_passes():
        run_passes(module, [step])
    return module


# ------------------------------------------------------------------------------------ attention


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


class SmallAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


@functools.cache
def small_attention() -> tuple[nn.Module, torch.export.ExportedProgram, list[Tensor]]:
    torch.manual_seed(0)
    model = SmallAttention().eval()
    batches = [torch.randn(2, 6, 16) for _ in range(4)]
    return model, torch.export.export(model, (batches[0],)), batches


def quantized(quantizer: Any) -> tuple[QuantGraphModule, float]:
    model, program, batches = small_attention()
    with verified_passes(), torch.no_grad():
        ready = prepare_pt2e(program, quantizer)
        for x in batches:
            ready(x)
        done = convert_pt2e(ready)
        assert_laws(done, converted=True)
        return done, float(sqnr(model(batches[0]), done(batches[0])))


def products(model: QuantGraphModule) -> list[list[bool]]:
    """Of each matrix product, which operands come from a dequantize."""
    nodes = nodes_of(model, ops.MATMUL)
    return [[ops.is_op(n, ops.DEQUANTIZE) for n in node.all_input_nodes] for node in nodes]


@pytest.mark.parametrize("make", [OnnxQDQQuantizer.onnxruntime, OnnxQDQQuantizer.tensorrt])
def test_products_of_attention_are_quantized_where_the_backend_can(make: Any) -> None:
    """By itself the one whose result is read quantized; the scores too if they are asked for."""
    done, quality = quantized(make())
    assert products(done)[1] == [True, True] and quality > 30
    quantizer = make()
    (config,) = quantizer.selection.configs()
    quantizer.set_operator_type(torch.ops.aten.matmul.default, config).set_global(config)
    done, quality = quantized(quantizer)
    assert products(done) == [[True, True], [True, True]] and quality > 30
    assert quantizer.report().counts()["aten.matmul.default"] == (2, 0)


def test_attention_stays_whole_where_the_backend_multiplies_in_float() -> None:
    quantizer = XNNPACKQuantizer()
    done, quality = quantized(quantizer)
    assert len(nodes_of(done, ops.SDPA)) == 1
    row = next(r for r in quantizer.report() if "attention" in r.operator)
    assert "multiplies two activations in float" in row.how
    assert quality > 30


def test_decompositions_are_options() -> None:
    done, quality = quantized(OnnxQDQQuantizer.onnxruntime().set_decompositions(attention=False))
    assert len(nodes_of(done, ops.SDPA)) == 1
    done, quality = quantized(XNNPACKQuantizer().set_decompositions(attention=True))
    assert products(done) == [[False, False], [False, False]] and quality > 30
    first, second = XNNPACKQuantizer().set_decompositions(max_steps=3), XNNPACKQuantizer()
    assert first.decompositions.recurrent and first.decompositions.max_steps == 3
    assert second.decompositions.max_steps == 64


def test_attention_trains_taken_apart() -> None:
    model, program, batches = small_attention()
    config = get_symmetric_quantization_config(is_qat=True)
    quantizer = XNNPACKQuantizer().set_global(config).set_decompositions(attention=True)
    ready = prepare_qat_pt2e(program, quantizer).train()
    ready(batches[0]).square().sum().backward()
    done = convert_pt2e(ready)
    assert sqnr(model(batches[0]), done(batches[0])) > 20


# ------------------------------------------------------------------------------------ recurrent


class Recurrent(nn.Module):
    """A recurrent layer whose state is given, or starts from zero."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layer = kind(4, 6, **options)

    def forward(self, x: Tensor, *state: Tensor) -> Any:
        if not state:
            return self.layer(x)
        return self.layer(x, state[0] if len(state) == 1 else state)


KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm, all": (
        nn.LSTM,
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.25},
    ),
    "lstm, no bias": (nn.LSTM, {"bias": False, "num_layers": 2}),
    "lstm, projected": (nn.LSTM, {"proj_size": 3, "bidirectional": True, "num_layers": 2}),
    "lstm, projected, no bias": (nn.LSTM, {"proj_size": 3, "bias": False}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru, all": (nn.GRU, {"num_layers": 3, "bidirectional": True, "dropout": 0.25}),
    "gru, no bias": (nn.GRU, {"bias": False}),
    "tanh": (nn.RNN, {"num_layers": 2}),
    "relu": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


@functools.cache
def recurrent(name: str) -> tuple[nn.Module, torch.export.ExportedProgram, Tensor]:
    torch.manual_seed(0)
    kind, options = KINDS[name]
    model, x = Recurrent(kind, **options).eval(), torch.randn(3, 5, 4)
    return model, torch.export.export(model, (x,)), x


@pytest.mark.parametrize("name", KINDS)
def test_steps_compute_what_the_layer_does(name: str) -> None:
    model, program, x = recurrent(name)
    module = import_exported(program)
    with verified_passes():
        run_passes(module, [DecomposeRecurrent()])
    assert not nodes_of(module, ops.RECURRENT) and nodes_of(module, ops.LINEAR)
    assert_same(module(x), model(x), 1e-5)
    assert_values_match(module, (x,))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_given_state_and_unbatched_input(kind: type[nn.RNNBase]) -> None:
    model = Recurrent(kind, num_layers=2).eval()
    state = [torch.randn(2, 3, 6) for _ in range(2 if kind is nn.LSTM else 1)]
    for x, given in [
        (torch.randn(5, 3, 4), state),
        (torch.randn(5, 4), [s[:, 0] for s in state]),
    ]:
        module = taken_apart(model, DecomposeRecurrent(), x, *given)
        assert_same(module(x, *given), model(x, *given), 1e-5)


def test_a_symbolic_batch_is_unrolled() -> None:
    model, x = Recurrent(nn.LSTM, batch_first=True).eval(), torch.randn(3, 5, 4)
    shapes = {"x": {0: AUTO}}
    module = taken_apart(model, DecomposeRecurrent(), x, dynamic_shapes=shapes)
    assert not nodes_of(module, ops.RECURRENT)
    for batch in (2, 7):
        other = torch.randn(batch, 5, 4)
        assert_same(module(other), model(other), 1e-5)


def test_dropout_between_layers_switches() -> None:
    model, x = Recurrent(nn.GRU, num_layers=2, dropout=0.25).train(), torch.randn(3, 5, 4)
    module = taken_apart(model, DecomposeRecurrent(), x)
    (dropout,) = nodes_of(module, ops.DROPOUT)
    assert dropout.args[1:] == (0.25, True)
    module.eval()
    assert_same(module(x), model.eval()(x), 1e-5)
    module.train()
    assert not torch.equal(module(x)[0], module(x)[0])


def test_gradients_of_a_recurrent_layer() -> None:
    model, program, x = recurrent("lstm, all")
    module = import_exported(program)
    run_passes(module, [DecomposeRecurrent()])
    weights = list(model.parameters())
    wanted = torch.autograd.grad(model(x)[0].square().sum(), weights)
    own = dict(module.named_parameters())
    found = torch.autograd.grad(
        module(x)[0].square().sum(), [own[n] for n, _ in model.named_parameters()]
    )
    assert_same(found, wanted, 1e-4)


def dynamic() -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    return XNNPACKQuantizer().set_global(config)


@pytest.mark.parametrize("make", [XNNPACKQuantizer, dynamic])
@pytest.mark.parametrize("name", ["lstm, all", "gru, all"])
def test_products_of_recurrent_layers_are_quantized(name: str, make: Any) -> None:
    model, program, x = recurrent(name)
    quantizer = make()
    with verified_passes(), torch.no_grad():
        ready = prepare_pt2e(program, quantizer)
        for seed in range(4):
            ready(torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed)))
        done = convert_pt2e(ready)
        assert_laws(done, converted=True)
        for wanted, found in zip(leaves(model(x)), leaves(done(x)), strict=True):
            assert sqnr(wanted, found) > 30
    # One weight for all steps, stored once; the states that a layer starts from are stored too.
    stored = [n for n, b in done.named_buffers() if b.dtype == torch.int8 and "weight" in n]
    assert len(stored) == sum(n.count("weight") for n, _ in model.named_parameters())
    assert quantizer.report().counts()["aten.linear.default"][1] == 0


@pytest.mark.parametrize(
    ("reason", "kind", "options"),
    [
        ("its sequence length is symbolic", nn.LSTM, {"dynamic_shapes": {"x": {0: AUTO}}}),
        ("its 5 steps are more than max_steps=4", nn.GRU, {}),
    ],
)
def test_what_is_not_unrolled_is_named(reason: str, kind: Any, options: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = kind(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)[0])

    model, x = Model().eval(), torch.randn(5, 3, 4)
    quantizer = XNNPACKQuantizer().set_decompositions(max_steps=4)
    ready = prepare_pt2e(torch.export.export(model, (x,), **options), quantizer)
    ready(x)
    done = convert_pt2e(ready)
    assert len(nodes_of(done, ops.RECURRENT)) == 1
    (row,) = (
        r for r in quantizer.report() if "aten.gru" in r.operator or "aten.lstm" in r.operator
    )
    assert not row.quantized and f"not taken apart: {reason}" in row.how
    assert any(reason in str(note) for note in done.record.notes)
    assert sqnr(model(x), done(x)) > 30
