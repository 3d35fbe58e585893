"""Faults known from another library of this kind: here each is a test.

Those of training and of single backends are tested beside their passes.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.laws import assert_laws, assert_values_match
from support.nets import NETS
from support.nodes import nodes_of
from support.results import assert_same
from support.small_quantizers import (
    ACTIVATION,
    DYNAMIC,
    PER_TOKEN,
    FunctionQuantizer,
    NoopQuantizer,
    SmallQuantizer,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import (
    QuantGraphModule,
    QuantizationAnnotation,
    Quantizer,
    SharedQuantizationSpec,
    convert_pt2e,
    move_exported_model_to_eval,
    move_exported_model_to_train,
    prepare_pt2e,
    sqnr,
)
from pt2q.errors import NoDataError
from pt2q.ir import ops
from pt2q.ir.graph import is_float_tensor
from pt2q.passes import verified_passes
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

aten = torch.ops.aten

pytestmark = [
    pytest.mark.filterwarnings("ignore::pt2q.errors.NothingQuantizedWarning"),
    pytest.mark.filterwarnings("ignore::pt2q.errors.BatchNormNotFoldedWarning"),
]


@pytest.fixture(autouse=True)
def every_pass_is_verified():
    with verified_passes(), torch.no_grad():
        yield


def settled(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


def prepared(model: nn.Module, quantizer: Quantizer, *inputs: Any, **options: Any) -> Any:
    return prepare_pt2e(torch.export.export(model, inputs, **options), quantizer)


def quantized(model: nn.Module, quantizer: Quantizer, *inputs: Any) -> QuantGraphModule:
    ready = prepared(model, quantizer, *inputs)
    ready(*inputs)
    done = convert_pt2e(ready)
    assert_laws(done, converted=True)
    return done


def assert_noop(model: nn.Module, *inputs: Any) -> None:
    """Prepared and converted without annotations, the model computes what it computed."""
    model = settled(model)
    assert_same(quantized(model, NoopQuantizer(), *inputs)(*inputs), model(*inputs), 1e-4)


def everything(node: Node) -> QuantizationAnnotation | None:
    """Any floating point input and output of any operator."""
    if node.op == "output":
        return None
    inputs: Any = {n: ACTIVATION for n in node.all_input_nodes if is_float_tensor(n)}
    return QuantizationAnnotation(inputs, ACTIVATION if is_float_tensor(node) else None)


def xnnpack(**options: Any) -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**options))


# ------------------------------------------------------------------------ batch norms that fold

IMAGE = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) * torch.sigmoid(y)


class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.conv(x)) + self.two(self.conv(x)) + self.conv(x)


@pytest.mark.parametrize("quantizer", [NoopQuantizer(), SmallQuantizer()])
@pytest.mark.parametrize(
    "make",
    [
        Branching,
        OneWeight,
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()
        ),
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)),
    ],
    ids=["used_twice", "one_weight_two_norms", "grouped_transposed", "no_statistics", "no_affine"],
)
def test_batch_norm_folding_keeps_the_function(make: Any, quantizer: Quantizer) -> None:
    model = settled(make())
    expected = model(IMAGE)
    done = quantized(model, quantizer, IMAGE)
    if isinstance(quantizer, SmallQuantizer):
        assert sqnr(expected, done(IMAGE)) > 25
    else:
        torch.testing.assert_close(done(IMAGE), expected, rtol=1e-4, atol=1e-4)


def test_a_norm_exported_in_train_mode_leaves_no_counter_behind() -> None:
    model = settled(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    module = torch.export.export(copy.deepcopy(model).train(), (IMAGE,)).module()
    ready = prepare_pt2e(move_exported_model_to_eval(module), SmallQuantizer())
    ready(IMAGE)
    done = convert_pt2e(ready)
    assert not [n for n in done.graph.nodes if ops.is_mutating(n)]
    assert "1.num_batches_tracked" not in done.state_dict()
    assert sqnr(model(IMAGE), done(IMAGE)) > 30


# ----------------------------------------------------------------------------------- train, eval


class Dropouts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.whole = nn.Dropout(0.25), nn.Dropout2d(0.125)
        self.alpha = nn.AlphaDropout(0.375)

    def forward(self, x: Tensor) -> Tensor:
        y = self.alpha(self.whole(self.plain(x)))
        return nn.functional.scaled_dot_product_attention(
            y, y, y, dropout_p=0.0625 if self.training else 0.0
        )


def test_dropout_keeps_its_p_and_is_off_in_evaluation() -> None:
    module = torch.export.export(Dropouts().train(), (IMAGE,)).module()
    ready = prepare_pt2e(module, NoopQuantizer())
    for _ in range(2):
        move_exported_model_to_eval(ready)
        assert_same(ready(IMAGE), Dropouts().eval()(IMAGE), 1e-5)
        move_exported_model_to_train(ready)
        assert not torch.equal(ready(IMAGE), ready(IMAGE))
    found = {n.args[1] for n in nodes_of(ready, ops.DROPOUT)}
    assert found == {0.25, 0.125, 0.375}
    (attention,) = nodes_of(ready, ops.SDPA)
    assert ops.argument(attention, "dropout_p") == 0.0625


# ---------------------------------------------------------------------------------------- sharing


def test_a_shared_spec_may_point_at_a_later_node() -> None:
    def annotate(node: Node) -> QuantizationAnnotation | None:
        if node.target is aten.cat.default:
            return QuantizationAnnotation(dict.fromkeys(node.args[0], ACTIVATION), ACTIVATION)
        if node.target is aten.relu.default:
            cat = next(iter(node.users))
            return QuantizationAnnotation({}, SharedQuantizationSpec(cat))
        return None

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.relu(), (3 * x).relu()])

    x = torch.randn(2, 4)
    done = quantized(Model(), FunctionQuantizer(annotate), x)
    assert sqnr(Model()(x), done(x)) > 35


# ------------------------------------------------------------------------------------------ state


class MulThenAdd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.ones(4))
        self.linear = nn.Linear(4, 4)

    state: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.state.mul_(0.5)
        self.state.add_(x.abs().mean(0))
        return self.linear(x + self.state)


class Cache(nn.Module):
    """Attention of one head with a cache written at a position."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.key, self.value, self.query = (nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("keys", torch.zeros(1, 6, 8))
        self.register_buffer("values", torch.zeros(1, 6, 8))

    keys: Tensor
    values: Tensor

    def write(self, cache: Tensor, at: Tensor, new: Tensor) -> Tensor:
        if self.how == "index_put_":
            cache[:, at] = new
        elif self.how == "index_copy_":
            cache.index_copy_(1, at, new)
        elif self.how == "copy_":
            cache.copy_(torch.cat([cache[:, 1:], new], 1))
        else:  # a slice is written, a shifted view is read
            cache[:, :-1] = cache[:, 1:].clone()
            cache[:, -1:] = new
        return cache

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        keys = self.write(self.keys, at, self.key(x))
        values = self.write(self.values, at, self.value(x))
        scores = self.query(x) @ keys.transpose(1, 2)
        return torch.softmax(scores, -1) @ values


STATEFUL = {
    "mul_then_add_": (MulThenAdd, lambda step: (torch.randn(3, 4),)),
    **{
        how: (
            lambda how=how: Cache(how),
            lambda step: (torch.randn(1, 1, 8), torch.tensor([step])),
        )
        for how in ("index_put_", "index_copy_", "copy_", "slice")
    },
}


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize(
    "quantizer",
    [
        NoopQuantizer(),
        SmallQuantizer(),
        SmallQuantizer(DYNAMIC),
        SmallQuantizer(PER_TOKEN),
        FunctionQuantizer(everything),
        xnnpack(),
        xnnpack(is_dynamic=True, is_per_channel=True),
    ],
    ids=["noop", "static", "dynamic", "per_token", "everything", "xnnpack", "xnnpack_dynamic"],
)
def test_written_buffers_are_written(name: str, quantizer: Quantizer) -> None:
    make, sample = STATEFUL[name]
    steps = [sample(step) for step in range(6)]
    model = make().eval()
    start = {k: b.clone() for k, b in model.named_buffers()}
    program = torch.export.export(copy.deepcopy(model), steps[0])
    ready = prepare_pt2e(program, quantizer)
    for step in steps:
        ready(*step)
    for key, value in start.items():
        ready.get_buffer(key).copy_(value)
    done = convert_pt2e(ready)
    assert_laws(done, converted=True)
    again = torch.export.export(copy.deepcopy(done), steps[0])
    written = again.graph_signature.buffers_to_mutate.values()
    assert set(written) == set(program.graph_signature.buffers_to_mutate.values())
    module = again.module()
    for step in steps:
        expected, value = model(*step), done(*step)
        assert sqnr(expected, value) > 22
        assert_same(module(*step), value)
    for key, buffer in model.named_buffers():
        assert sqnr(buffer, done.get_buffer(key)) > 25


class ShiftedInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        first = y[:, 0]
        y += 1
        return torch.relu(first) + y[:, 1]


class WritesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return self.linear(x)


class DropoutAlias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        z = self.dropout(y)  # in evaluation this is y itself
        y.mul_(2)
        return z + y


@pytest.mark.parametrize("make", [ShiftedInput, WritesItsInput, DropoutAlias])
def test_aliases_still_alias(make: Any) -> None:
    model, x = make().eval(), torch.randn(3, 4)
    ready = prepared(model, FunctionQuantizer(everything), x.clone())
    ready(x.clone())
    done = convert_pt2e(ready)
    mine, theirs = x.clone(), x.clone()
    assert sqnr(model(theirs), done(mine)) > 25
    torch.testing.assert_close(mine, theirs, atol=0.05, rtol=0)
    again = torch.export.export(done, (x.clone(),)).module()
    assert_same(again(x.clone()), done(x.clone()))


# ------------------------------------------------------------------------------------------ masks


class Masked(nn.Module):
    def __init__(self, low: float) -> None:
        super().__init__()
        self.low = low
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        scores = self.linear(x)
        mask = torch.zeros_like(scores).masked_fill(~keep, self.low)
        return torch.softmax(scores + mask, -1)


@pytest.mark.parametrize("low", [float("-inf"), torch.finfo(torch.float32).min])
@pytest.mark.parametrize(
    "quantizer",
    [FunctionQuantizer(everything), SmallQuantizer(), xnnpack()],
    ids=["everything", "small", "xnnpack"],
)
def test_masks_give_finite_scales(low: float, quantizer: Quantizer) -> None:
    x, keep = torch.randn(4, 8), torch.ones(4, 8, dtype=torch.bool)
    keep[:, 6:] = False
    done = quantized(Masked(low).eval(), quantizer, x, keep)  # its laws ask for finite scales
    for node in nodes_of(done, ops.QUANTIZE):
        if isinstance(node.args[1], float):
            assert node.args[1] < 1.0
    assert torch.isfinite(done(x, keep)).all()


def test_xnnpack_leaves_masks_in_float() -> None:
    x, keep = torch.randn(4, 8), torch.ones(4, 8, dtype=torch.bool)
    keep[:, 6:] = False
    model = Masked(float("-inf")).eval()
    done = quantized(model, xnnpack(), x, keep)
    assert sqnr(model(x, keep), done(x, keep)) > 30
    assert (done(x, keep)[:, 6:] == 0).all()


# ------------------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("spec", [DYNAMIC, PER_TOKEN, None])
def test_dynamic_models_need_no_forward(spec: Any) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    x = torch.randn(8, 16)
    done = convert_pt2e(prepared(model, SmallQuantizer(spec), x))
    assert sqnr(model(x), done(x)) > 35


@pytest.mark.parametrize("quantizer", [SmallQuantizer(), xnnpack()], ids=["small", "xnnpack"])
def test_static_models_without_data_do_not_convert(quantizer: Quantizer) -> None:
    ready = prepared(nn.Linear(4, 4), quantizer, torch.randn(2, 4))
    with pytest.raises(NoDataError, match=r"input.*set_module_name"):
        convert_pt2e(ready)


# -------------------------------------------------------------------------------------- selection


class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


def int8_weights(model: QuantGraphModule) -> set[str]:
    return {n for n, b in model.named_buffers() if b.dtype == torch.int8}


def test_a_packet_names_all_its_overloads() -> None:
    config = get_symmetric_quantization_config()
    x = torch.randn(3, 4)
    for given in (torch.ops.aten.linear, torch.ops.aten.linear.default):
        quantizer = XNNPACKQuantizer().set_operator_type(given, config)
        done = quantized(TwoLinears().eval(), quantizer, x)
        assert int8_weights(done) == {"one.weight_quantized", "two.weight_quantized"}
    assert torch.ops.aten.add.Tensor in ops.overloads(torch.ops.aten.add)
    assert torch.ops.aten.add.Scalar in ops.overloads(torch.ops.aten.add)


def test_a_module_can_be_left_out_by_name() -> None:
    quantizer = xnnpack().set_module_name("two", None)
    x = torch.randn(3, 4)
    done = quantized(TwoLinears().eval(), quantizer, x)
    assert int8_weights(done) == {"one.weight_quantized"}
    assert isinstance(done.get_parameter("two.weight"), nn.Parameter)


# ------------------------------------------------------------------------------- odds and ends


class Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(16, 4), nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        shifted = (tokens + 3) * 2 - 1
        places = torch.cumsum((tokens != 0).int(), 1) + 1
        y = self.embedding(shifted % 16) + self.embedding(places)
        return self.linear(y)


@pytest.mark.parametrize(
    "quantizer",
    [FunctionQuantizer(everything), SmallQuantizer(), xnnpack()],
    ids=["everything", "small", "xnnpack"],
)
def test_integer_arithmetic_is_left_alone(quantizer: Quantizer) -> None:
    model, tokens = Integers().eval(), torch.randint(0, 8, (2, 5))
    program = torch.export.export(model, (tokens,))
    before = [_text(n) for n in program.module().graph.nodes if _is_integer(n)]
    done = quantized(model, quantizer, tokens)
    assert [
        _text(n) for n in done.graph.nodes if _is_integer(n) and n.name in str(before)
    ] == before
    assert_values_match(done, (tokens,))
    assert sqnr(model(tokens), done(tokens)) > 25


def _is_integer(node: Node) -> bool:
    value = node.meta.get("val")
    return (
        node.op == "call_function"
        and isinstance(value, Tensor)
        and value.dtype in (torch.int64, torch.int32, torch.bool)
        and value.dim() == 2
        and not ops.is_op(node, ops.QUANTIZE)
    )


def _text(node: Node) -> str:
    return f"{node.name}: {node.target}({node.args}, {node.kwargs})"


class Dead(nn.Module):
    """A pooler whose output nobody reads, and a parameter nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.pooler = nn.Linear(4, 4), nn.Linear(4, 4)
        self.unused = nn.Parameter(torch.randn(100))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        torch.tanh(self.pooler(y))
        return y


@pytest.mark.parametrize(
    "quantizer",
    [FunctionQuantizer(everything), SmallQuantizer(), SmallQuantizer(DYNAMIC), xnnpack()],
    ids=["everything", "static", "dynamic", "xnnpack"],
)
def test_dead_nodes_are_tolerated(quantizer: Quantizer) -> None:
    model, x = Dead().eval(), torch.randn(3, 4)
    done = quantized(model, quantizer, x)
    assert sqnr(model(x), done(x)) > 25
    assert "unused" not in done.state_dict()
    assert_same(torch.export.export(done, (x,)).module()(x), done(x))


@pytest.mark.parametrize("guards", [True, False])
def test_the_guard_call_of_export_is_gone(guards: bool) -> None:
    x = torch.randn(3, 4)
    module = torch.export.export(TwoLinears().eval(), (x,)).module(check_guards=guards)
    assert bool([n for n in module.graph.nodes if n.op == "call_module"]) == guards
    ready = prepare_pt2e(module, SmallQuantizer())
    assert not hasattr(ready, "_guards_fn")
    assert hasattr(module, "_guards_fn") == guards
    ready(x)
    done = copy.deepcopy(convert_pt2e(ready))
    assert not [n for n in done.graph.nodes if n.op == "call_module"]


@pytest.mark.parametrize("quantizer", [SmallQuantizer(), SmallQuantizer(DYNAMIC)])
def test_a_language_model_with_a_mask(quantizer: Quantizer) -> None:
    net, inputs = NETS["small_bert"].build(), NETS["small_bert"].inputs(2)
    done = quantized(net, quantizer, *inputs)
    assert sqnr(net(*inputs), done(*inputs)) > 10
    assert all(p.dtype != torch.int8 for p in done.parameters())


def test_nothing_annotated_changes_nothing() -> None:
    assert_noop(Dead(), torch.randn(2, 4))
    assert_noop(Integers(), torch.randint(0, 8, (2, 5)))
