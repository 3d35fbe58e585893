"""Sizes that vary, tensors that are no activations, types, devices, and constants of all kinds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
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
    SmallQuantizer,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import (
    QuantGraphModule,
    QuantizationAnnotation,
    Quantizer,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.errors import InputShapeError
from pt2q.ir import ops
from pt2q.passes import verified_passes
from pt2q.quantizers import (
    WeightQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
)

AUTO = torch.export.Dim.AUTO

pytestmark = pytest.mark.filterwarnings("ignore::pt2q.errors.NothingQuantizedWarning")


@pytest.fixture(autouse=True)
def verified_without_gradients() -> Iterator[None]:
    with verified_passes(), torch.no_grad():
        yield


def everything(node: Node) -> QuantizationAnnotation | None:
    """Each input and output of each operator, whatever it is."""
    if node.op == "output":
        return None
    return QuantizationAnnotation(dict.fromkeys(node.all_input_nodes, ACTIVATION), ACTIVATION)


def quantized(
    model: nn.Module, quantizer: Quantizer, *inputs: Any, calls: Any = None, **options: Any
) -> QuantGraphModule:
    ready = prepare_pt2e(torch.export.export(model, inputs, **options), quantizer)
    for call in calls or [inputs]:
        ready(*call)
    done = convert_pt2e(ready)
    assert_laws(done, converted=True)
    return done


# ---------------------------------------------------------------------------------------- sizes


def quantizers() -> dict[str, Quantizer]:
    return {
        "everything": FunctionQuantizer(everything),
        "static": SmallQuantizer(),
        "dynamic": SmallQuantizer(DYNAMIC),
        "per token": SmallQuantizer(PER_TOKEN),
        "xnnpack": XNNPACKQuantizer(),
        "xnnpack, all apart": XNNPACKQuantizer().set_decompositions(attention=True),
        "x86": X86InductorQuantizer(),
        "8da4w": WeightQuantizer(get_dynamic_activation_4bit_weight_config()),
    }


class Sentence(nn.Module):
    """Embeds, counts positions, attends, averages: every size symbolic, many tensors structural."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(32, 32), nn.Embedding(16, 32)
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length = tokens.shape
        seen = (tokens != 0).int()
        places = torch.cumsum(seen, 1) * seen
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        x = self.tokens(tokens) + self.places(places)
        q, k, v = (
            f(x).view(batch, length, 2, 16).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        weight = torch.arange(length, 0, -1) / length
        y = self.out(y.transpose(1, 2).reshape(batch, length, 32))
        return (y * weight[None, :, None]).sum(1) / (seen.sum(1, keepdim=True) + 1)


def sentence(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 32, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", quantizers())
def test_batch_and_sequence_may_vary(name: str) -> None:
    torch.manual_seed(0)
    model = Sentence().eval()
    calls = [(sentence(i % 3 + 1, 5 + i % 8, i),) for i in range(24)]
    shapes = {"tokens": {0: AUTO, 1: AUTO}}
    done = quantized(model, quantizers()[name], sentence(2, 9), calls=calls, dynamic_shapes=shapes)
    again = torch.export.export(
        copy.deepcopy(done), (sentence(2, 9),), dynamic_shapes=shapes
    ).module()
    for size in ((2, 9), (1, 12), (5, 3)):
        x = sentence(*size, 4)
        assert_values_match(done, (sentence(2, 9),))
        assert sqnr(model(x), done(x)) > (14 if name in ("everything", "8da4w") else 22)
        assert_same(again(x), done(x))


def test_only_floating_point_values_are_observed() -> None:
    """Whatever a quantizer asks for: sizes, counts, places and masks are not activations."""
    program = torch.export.export(
        Sentence().eval(), (sentence(2, 9),), dynamic_shapes={"tokens": {0: AUTO, 1: AUTO}}
    )
    ready = prepare_pt2e(program, FunctionQuantizer(everything))
    for node in ready.graph.nodes:
        if node.op == "call_module":
            value = node.args[0].meta["val"]
            assert isinstance(value, Tensor) and value.dtype is torch.float32, node.format_node()
    skipped = [n for n in ready.record.notes if "not a floating point tensor" in n.text]
    assert {"cumsum", "ones", "tril"} <= {n.node.split(" ")[0] for n in skipped}


@pytest.mark.parametrize("name", ["static", "xnnpack", "x86", "8da4w"])
def test_structural_tensors_are_never_observed(name: str) -> None:
    program = torch.export.export(Sentence().eval(), (sentence(2, 9),))
    ready = prepare_pt2e(program, quantizers()[name])
    structural = {"arange", "ones", "tril", "cumsum", "ne", "sum_1", "_assert_tensor_metadata"}
    watched = [n.args[0] for n in ready.graph.nodes if n.op == "call_module"]
    made_from = {a.name for n in watched for a in (n, *n.all_input_nodes)}
    assert watched and not structural & made_from


class Scalars(nn.Module):
    """Tensors without dimensions, numbers read from tensors, sizes in arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("scale", torch.tensor(0.5))

    scale: Tensor

    def forward(self, x: Tensor, factor: float, count: int) -> Tensor:
        y = self.linear(x) * self.scale * factor + x.shape[0] / count
        return y * y.mean() - torch.tensor(2.0)


@pytest.mark.parametrize("name", ["everything", "static", "dynamic", "xnnpack"])
def test_scalars(name: str) -> None:
    model, inputs = Scalars().eval(), (torch.randn(6, 8), 1.5, 3)
    done = quantized(model, quantizers()[name], *inputs)
    assert sqnr(model(*inputs), done(*inputs)) > 25
    again = torch.export.export(done, inputs).module()
    assert_same(again(*inputs), done(*inputs))


def test_a_model_exported_at_one_size_says_so_when_calibrated_at_another() -> None:
    net = NETS["small_mobilenet"]
    ready = prepare_pt2e(torch.export.export(net.build(), net.inputs(1)), XNNPACKQuantizer())
    with pytest.raises(InputShapeError) as caught:
        ready(*net.inputs(4))
    text = str(caught.value)
    assert "was exported with size 1 in dimension 0, found 4" in text
    assert "dynamic_shapes={'x': {0: torch.export.Dim.AUTO}}" in text
    assert "2 or more" in text
    ready(*net.inputs(1))
    with pytest.raises(InputShapeError, match="exported with size 1 in dimension 0"):
        convert_pt2e(ready)(*net.inputs(4))


def test_empty_tensors_are_no_data() -> None:
    model = nn.Linear(4, 4).eval()
    x = torch.randn(3, 4)
    shapes = {"input": {0: AUTO}}
    done = quantized(
        model, SmallQuantizer(), x, calls=[(x[:0],), (x,), (x[:0],)], dynamic_shapes=shapes
    )
    assert sqnr(model(x), done(x)) > 30
    assert done(x[:0]).shape == (0, 4)


# ---------------------------------------------------------------------------------------- types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["everything", "static", "dynamic", "per token"])
def test_narrow_models_stay_narrow(dtype: torch.dtype, name: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8)
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x)).relu().transpose(1, 2)
            return torch.softmax(self.linear(y) + y, -1)

    torch.manual_seed(0)
    model, x = Block().to(dtype).eval(), torch.randn(2, 4, 8, dtype=dtype)
    done = quantized(model, quantizers()[name], x)
    expected, found = model(x), done(x)
    assert found.dtype is dtype and sqnr(expected, found) > 22
    assert_values_match(done, (x,))
    floats = {n.meta["val"].dtype for n in done.graph.nodes if _is_activation(n)}
    assert floats == {dtype}
    weights = [n for n, b in done.named_buffers() if b.dtype == torch.int8]
    assert len(weights) >= 2


def _is_activation(node: Node) -> bool:
    value = node.meta.get("val")
    computed = node.op == "call_function" and node.target not in ops.CHOOSE_QPARAMS
    wide = isinstance(value, Tensor) and value.dtype.is_floating_point and value.numel() > 2
    per_token = computed and node.target is ops.GETITEM
    return computed and wide and not per_token


class Mixed(nn.Module):
    """A narrow middle between wide ends."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(8, 8) for _ in range(3))
        self.two.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).relu()
        return self.three(self.two(y.bfloat16()).float() + y) + x.double().sum(1, keepdim=True)


@pytest.mark.parametrize("name", ["everything", "static", "dynamic", "xnnpack"])
def test_mixed_types(name: str) -> None:
    model, x = Mixed().eval(), torch.randn(4, 8)
    done = quantized(model, quantizers()[name], x)
    assert done(x).dtype is torch.float64 and sqnr(model(x), done(x)) > 25
    assert_values_match(done, (x,))
    if name == "xnnpack":  # what computes in bfloat16 is not for this backend
        assert "two.weight" in done.state_dict() and "one.weight" not in done.state_dict()


def test_double_precision_is_left_alone_and_said_so() -> None:
    model, x = nn.Linear(4, 4).double().eval(), torch.randn(2, 4).double()
    ready = prepare_pt2e(torch.export.export(model, (x,)), SmallQuantizer())
    assert any("torch.float64" in note.text for note in ready.record.notes)
    assert_same(convert_pt2e(ready)(x), model(x))


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.turn = (
            nn.Linear(8, 8),
            nn.Parameter(torch.randn(5, dtype=torch.complex64)),
        )

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.linear(x)) * self.turn
        return torch.fft.irfft(spectrum) + torch.view_as_real(spectrum).mean()


@pytest.mark.parametrize("name", ["everything", "static", "xnnpack"])
def test_complex_values_are_left_alone(name: str) -> None:
    model, x = Spectrum().eval(), torch.randn(4, 8)
    quantizer = quantizers()[name]
    done = quantized(model, quantizer, x)
    assert sqnr(model(x), done(x)) > 25
    assert done.get_parameter("turn").dtype is torch.complex64
    if name == "everything":
        reasons = {n.text for n in done.record.notes if "fft" in n.node}
        assert "not a floating point tensor" in reasons


def test_sparse_weights_are_left_alone() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.register_buffer("pattern", torch.eye(6).to_sparse())

        pattern: Tensor

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(self.pattern, self.linear(x))

    model, x = Sparse().eval(), torch.randn(6, 6)
    done = quantized(model, FunctionQuantizer(everything), x)
    assert sqnr(model(x), done(x)) > 25
    assert any("pattern" in n.node and "sparse" in n.text for n in done.record.notes)


# -------------------------------------------------------------------------------------- devices


class Spread(nn.Module):
    """Two parts on two devices; what passes between them is moved."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.one, self.two = (nn.Linear(32, 32, device=d) for d in (first, second))
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu().to(self.second))


@pytest.mark.parametrize("name", ["everything", "static", "dynamic", "xnnpack", "8da4w"])
def test_what_is_on_the_meta_device_stays_in_float(name: str) -> None:
    model, x = Spread("cpu", "meta").eval(), torch.randn(4, 32)
    done = quantized(model, quantizers()[name], x)
    assert done(x).device.type == "meta" and done(x).shape == (4, 32)
    assert "two.weight" in done.state_dict() and "one.weight" not in done.state_dict()
    reasons = {n.text for n in done.record.notes if "two" in n.node}
    assert reasons == {"on the meta device: it has no data to find parameters from"}
    for node in nodes_of(done, ops.QUANTIZE | ops.DEQUANTIZE):
        assert node.meta["val"].device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["static", "dynamic", "per token"])
def test_a_model_on_cpu_and_cuda(name: str) -> None:
    model, x = Spread("cpu", "cuda").eval(), torch.randn(4, 32)
    done = quantized(model, quantizers()[name], x)
    assert done(x).device.type == "cuda" and sqnr(model(x), done(x)) > 25


# ------------------------------------------------------------------------------------ constants


class Reached(nn.Module):
    """A weight that is read through a chain of operators that know their result beforehand."""

    def __init__(self, chain: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.chain = chain
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.chain(self.weight))


CHAINS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "transpose": (lambda w: w.t(), (8, 6)),
    "view": (lambda w: w.view(6, 8), (2, 3, 8)),
    "cast": (lambda w: w.half().float(), (6, 8)),
    "permute, reshape": (lambda w: w.permute(2, 0, 1).reshape(6, 8), (2, 4, 6)),
    "scaled, sliced": (lambda w: (w * 2.0 + 0.5)[1:7], (8, 8)),
    "einsum": (lambda w: torch.einsum("abc,c->ab", w, torch.ones(3) / 3), (6, 8, 3)),
    "normalized": (lambda w: w / w.norm(dim=1, keepdim=True), (6, 8)),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("spec", [ACTIVATION, DYNAMIC], ids=["static", "dynamic"])
def test_weights_are_folded_through_chains(name: str, spec: Any) -> None:
    chain, shape = CHAINS[name]
    model, x = Reached(chain, shape).eval(), torch.randn(5, 8)
    done = quantized(model, SmallQuantizer(spec), x)
    assert sqnr(model(x), done(x)) > 30
    (linear,) = nodes_of(done, ops.LINEAR)
    stored = linear.args[1].args[0]
    assert stored.op == "get_attr" and done.get_buffer(stored.target).dtype == torch.int8
    assert "weight" not in done.state_dict()
    assert sum(t.numel() for t in done.state_dict().values()) <= 6 * 8 + 2 * 6


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bhi,hij->bhj", x, self.weight)


def test_weights_of_a_decomposed_einsum_are_folded() -> None:
    """A product of three-dimensional tensors, its weight reached through permutations."""

    def annotate(node: Node) -> QuantizationAnnotation | None:
        if not ops.is_op(node, ops.BMM):
            return None
        return QuantizationAnnotation(dict.fromkeys(node.all_input_nodes, ACTIVATION), ACTIVATION)

    model, x = Einsum().eval(), torch.randn(3, 2, 8)
    program = torch.export.export(model, (x,)).run_decompositions()
    ready = prepare_pt2e(program, FunctionQuantizer(annotate))
    ready(x)
    done = convert_pt2e(ready)
    assert sqnr(model(x), done(x)) > 30
    (stored,) = [b for b in done.state_dict().values()]
    assert stored.dtype == torch.int8 and stored.numel() == 64


class Lifted(nn.Module):
    """Constants that stand in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.tensor([1.0, -2.0, 3.0, 0.5])
        weight = torch.tensor([[0.5, 1.0, 0.0, 2.0]] * 4)
        return nn.functional.linear(self.linear(x) + shift, weight) + shift


@pytest.mark.parametrize("name", ["everything", "static", "dynamic", "xnnpack"])
def test_lifted_constants(name: str) -> None:
    model, x = Lifted().eval(), torch.randn(5, 4)
    done = quantized(model, quantizers()[name], x)
    assert sqnr(model(x), done(x)) > 25
    assert_same(torch.export.export(copy.deepcopy(done), (x,)).module()(x), done(x))
    if name == "everything":  # what is done to a constant is done once, not in every call
        assert not [n for n in done.graph.nodes if "lift_fresh" in n.name or "detach" in n.name]
        floats = {n for n, t in done.state_dict().items() if t.is_floating_point()}
        assert floats == set()


class OneStorage(nn.Module):
    """Two weights that are parts of one, a bias that is shared, a weight that is tied."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(8, 4)
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))
        self.one.weight, self.two.weight = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])
        self.two.bias = self.one.bias
        self.three.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(self.one(x)).relu())


@pytest.mark.parametrize("name", ["everything", "static", "dynamic"])
def test_tied_tensors_and_views_keep_their_identity(name: str) -> None:
    model, x = OneStorage().eval(), torch.randn(5, 4)
    ready = prepare_pt2e(torch.export.export(model, (x,)), quantizers()[name])
    own = dict(ready.named_parameters(remove_duplicate=False))
    theirs = dict(model.named_parameters(remove_duplicate=False))
    shared = [n for n, p in own.items() if n in theirs and p.data_ptr() == theirs[n].data_ptr()]
    assert len(shared) == len(own) and len({id(p) for p in own.values()}) == 4
    ready(x)
    done = convert_pt2e(ready)
    assert sqnr(model(x), done(x)) > 25
    weights = [b for n, b in done.named_buffers() if n.endswith("weight_quantized")]
    assert len(weights) == 2
    with torch.no_grad():
        model.one.weight.mul_(2)  # the float model's tensors are not those of the converted
    assert all(b.dtype == torch.int8 for b in weights)
