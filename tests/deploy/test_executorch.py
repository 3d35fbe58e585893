"""Lowered programs compute what the graph does; what cannot be lowered is named."""

from __future__ import annotations

import sys

import pytest
import torch
from support.lowering import Lowered, quantized
from support.samples import images
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy.executorch import load, lower
from pt2q.deploy.executorch.delegation import delegation_of
from pt2q.errors import (
    InputShapeError,
    LoweringError,
    MissingDependencyError,
    UnboundedSizeWarning,
)
from pt2q.optional import optional_modules


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x) * 40)


def test_a_bias_that_two_calls_share_is_right_in_both() -> None:
    """The runtime stores a bias in the scale of one call; trained models come with it tied."""
    from support.small_quantizers import SmallQuantizer

    model = CalledTwice().eval()
    batches = [torch.randn(4, 8) for _ in range(4)]
    prepared = prepare_pt2e(torch.export.export(model, (batches[0],)), SmallQuantizer())
    for batch in batches:
        prepared(batch)
    converted = convert_pt2e(prepared)
    (found,) = lower(converted, (batches[0],)).load()(batches[0])
    assert sqnr(converted(batches[0]), found) > 35


def test_everything_is_delegated(small: Lowered) -> None:
    got = small.program.delegation
    assert (got.portable, got.quantized_left, got.blobs) == ((), (), 1)
    assert got.left == 0
    assert got.delegated > 20


def test_runtime_agrees_with_the_graph(small: Lowered) -> None:
    loaded, reference = small.program.load(), small.floating.load()
    batches = [images(1, 32, seed) for seed in range(100, 120)]
    with torch.no_grad():
        floating = torch.cat([small.model(*x) for x in batches])
        graph = torch.cat([small.converted(*x) for x in batches])
    ran = torch.cat([loaded(*x)[0] for x in batches])
    assert sqnr(graph, ran) > 25
    assert sqnr(floating, ran) > sqnr(floating, graph) - 1.0
    assert sqnr(floating, ran) > 20
    again = torch.cat([reference(*x)[0] for x in batches])
    torch.testing.assert_close(again, floating, rtol=1e-4, atol=1e-5)


def test_one_linear_is_right_to_one_step() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 8).eval()
    batches = [(torch.randn(4, 16),) for _ in range(4)]
    converted = quantized(model, *batches)
    (ran,) = lower(converted, batches[0]).load()(*batches[0])
    expected = converted(*batches[0])
    step = expected.unique().diff().min()
    assert (ran - expected).abs().max() <= 1.01 * step


def test_dynamic_quantization_runs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    inputs = (torch.randn(1, 32),)  # one token, for which per tensor and per token are the same
    program = lower(quantized(model, inputs, dynamic=True), inputs)
    assert program.delegation.quantized_left == ()
    assert sqnr(model(*inputs), program.load()(*inputs)[0]) > 30


def test_dynamic_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    shapes = ({0: torch.export.Dim("batch", min=1, max=32)},)
    inputs = (torch.randn(16, 3, 8, 8),)
    converted = quantized(model, inputs, dynamic_shapes=shapes)
    loaded = lower(converted, inputs, dynamic_shapes=shapes).load()
    for batch in (1, 16, 32):
        x = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
        assert sqnr(model(x), loaded(x)[0]) > 25
    with pytest.raises(InputShapeError, match=r"up to \(32, 3, 8, 8\), got \(33, 3, 8, 8\)"):
        loaded(torch.randn(33, 3, 8, 8))


def test_keyword_inputs_and_many_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, *, bias: Tensor) -> tuple[Tensor, Tensor]:
            return F.relu(x + bias), x * bias

    x, bias = torch.randn(2, 4), torch.randn(2, 4)
    outputs = lower(Two(), (x,), kwargs={"bias": bias}).load()(x, bias)
    torch.testing.assert_close(outputs, (F.relu(x + bias), x * bias))


def test_what_is_left_to_portable_kernels_is_named() -> None:
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(F.relu(x + x), 1) + torch.cumsum(x, 1)

    delegation = lower(Sorts(), (torch.randn(2, 4),)).delegation
    assert delegation.portable == (("aten.cumsum.default", 2),)
    assert delegation.left == 2
    assert "2 x aten.cumsum.default" in str(delegation)
    assert str(delegation).startswith(f"{delegation.delegated} of {delegation.delegated + 2} ")


def test_quantized_compute_that_is_left_is_named(small: Lowered) -> None:
    exported = torch.export.export(small.converted, small.inputs)
    (exir,) = optional_modules("executorch.exir", extra="executorch")
    edge = exir.to_edge_transform_and_lower(exported)  # no partitioner: nothing is delegated
    got = delegation_of(edge.exported_program().graph_module)
    assert (got.delegated, got.blobs) == (0, 0)
    convolutions = [name for name in got.quantized_left if "convolution" in name]
    expected = sum(isinstance(m, nn.Conv2d) for m in small.model.modules())
    assert len(convolutions) == expected
    assert f"not delegated: {convolutions[0]}" in str(got)


def test_uint8_activations_are_refused_by_name() -> None:
    from pt2q.ir.ops import QUANTIZE

    class Unsigned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
            dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
            assert quantize in QUANTIZE
            q = quantize(x, 0.1, 128, 0, 255, torch.uint8)
            return F.relu(dequantize(q, 0.1, 128, 0, 255, torch.uint8))

    with pytest.raises(LoweringError, match=r"quantize_per_tensor.* is uint8.*int8 alone"):
        lower(Unsigned(), (torch.randn(2, 2),))


def test_a_model_that_does_not_export() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(LoweringError, match=r"torch.export could not capture") as caught:
        lower(Branches(), (torch.randn(2),))
    assert caught.value.__cause__ is not None


def test_what_executorch_cannot_lower_is_named() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).abs()

    with pytest.raises(LoweringError, match=r"mismatched dtypes: .*aten.abs.*complex64"):
        lower(Spectrum(), (torch.randn(2, 8),))


def test_a_size_without_a_bound_is_said_to_be_the_example_s() -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    with pytest.warns(UnboundedSizeWarning, match=r"input input no upper bound|dimension\(s\) 0:"):
        loaded = lower(nn.ReLU(), (torch.randn(4, 2),), dynamic_shapes=shapes).load()
    assert loaded(torch.ones(3, 2))[0].tolist() == torch.ones(3, 2).tolist()
    with pytest.raises(InputShapeError, match=r"takes shapes up to \(4, 2\), got \(5, 2\)"):
        loaded(torch.ones(5, 2))


@pytest.mark.parametrize("module", ["executorch", "executorch.runtime"])
def test_missing_executorch(monkeypatch: pytest.MonkeyPatch, module: str, small: Lowered) -> None:
    for name in list(sys.modules):
        if name == module or name.startswith(module + "."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install \"pt2q\[executorch\]\""):
        if module == "executorch":
            lower(small.model, small.inputs)
        else:
            load(small.program.buffer)
