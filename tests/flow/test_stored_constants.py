"""Weights as they are stored: tied, computed, written, saved, let go."""

from __future__ import annotations

import gc
import io
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from support.flow import converted, exported, prepared
from support.golden import assert_golden_graph, exact, exact_input
from support.laws import assert_laws
from support.results import assert_same
from support.small_models import Tied
from support.small_quantizers import (
    ACTIVATION,
    WEIGHT_PER_TENSOR,
    FunctionQuantizer,
    SmallQuantizer,
    linears,
    weight_per_channel,
)
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

from pt2q import (
    QuantizationAnnotation,
    QuantizationSpec,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.ir import ops
from pt2q.passes import FoldQuantizedConstants, ObserversToQDQ, run_passes


def saved_size(value: Any) -> int:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.tell()


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
