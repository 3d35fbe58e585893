"""Dynamic and weight-only quantization from end to end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.flow import converted, exported, prepared, targets
from support.golden import assert_golden_graph, exact, exact_input
from support.laws import assert_laws, assert_values_match
from support.small_quantizers import (
    DYNAMIC,
    PER_TOKEN,
    WEIGHT_PER_TENSOR,
    linears,
    weight_per_channel,
)
from torch import Tensor, nn

from pt2q import (
    PlaceholderObserver,
    QuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.errors import (
    AnnotationError,
)

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed


STATIC = torch.per_tensor_affine


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
