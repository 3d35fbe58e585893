"""Data types other than int8 and float32, of models and of what is stored."""

from __future__ import annotations

import pytest
import torch
from support.flow import converted, exported, prepared
from support.golden import assert_golden_graph, exact, exact_input
from support.laws import assert_laws, assert_values_match
from support.nodes import nodes_of
from support.results import assert_same
from support.rounding_reference import rounded
from support.small_quantizers import (
    ACTIVATION,
    DYNAMIC,
    PER_TOKEN,
    UNSIGNED,
    WEIGHT_PER_TENSOR,
    SmallQuantizer,
    everything,
    linears,
    weight_per_channel,
)
from torch import nn

from pt2q import (
    HistogramObserver,
    MinMaxObserver,
    PlaceholderObserver,
    QuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.errors import (
    NothingQuantizedWarning,
)
from pt2q.ir import ops

STATIC = torch.per_tensor_affine


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


def test_double_precision_stays() -> None:
    model, x = nn.Linear(4, 3).double(), torch.randn(2, 4, dtype=torch.float64)
    with pytest.warns(NothingQuantizedWarning):
        ready = prepare_pt2e(exported(model, x), SmallQuantizer())
    done = convert_pt2e(ready)
    assert torch.equal(done(x), model(x))
    assert "float64" in "\n".join(map(str, done.record.notes))
