"""Narrow, mixed, double, complex and sparse values, and devices."""

from __future__ import annotations

import pytest
import torch
from support.every_operator import everything, quantizers
from support.flow import quantized
from support.laws import assert_values_match
from support.nodes import nodes_of
from support.results import assert_same
from support.small_quantizers import (
    FunctionQuantizer,
    SmallQuantizer,
)
from torch import Tensor, nn
from torch.fx import Node

from pt2q import (
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.ir import ops

pytestmark = [
    pytest.mark.filterwarnings("ignore::pt2q.errors.NothingQuantizedWarning"),
    pytest.mark.usefixtures("every_pass_is_verified"),
]


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
    if name == "xnnpack":
        assert not {"one.weight", "two.weight", "three.weight"} & done.state_dict().keys()


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
