"""What autograd keeps of a training step: fewer bytes, and not a bit of a gradient changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from support.qat_quantizer import prepare
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pt2q.ir.module import QuantGraphModule
from pt2q.ir.saved_tensors import saved_small
from pt2q.numerics.rounded_form import rounded_form

EXAMPLE = (4, 3, 16, 16)
Run = Callable[[nn.Module, Tensor], Tensor]


class Residual(nn.Module):
    """One activation that two convolutions and an addition read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last((self.left(y) + self.right(y) + y).mean((2, 3)))


@pytest.fixture(autouse=True)
def weights_are_not_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pt2q.ir.saved_tensors._FEW", 1)


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "plain"])
def prepared(request: pytest.FixtureRequest) -> QuantGraphModule:
    torch.manual_seed(0)
    found = prepare(Residual(), torch.randn(EXAMPLE), fast=request.param)
    found(torch.randn(EXAMPLE))  # ranges that the next batch leaves in places
    return found


def batch() -> Tensor:
    return 1.5 * torch.randn(EXAMPLE, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, run: Run, within: AbstractContextManager[None]) -> list[Tensor]:
    """The gradients of a step and the state after it."""
    model = copy.deepcopy(model)
    with within:
        out = run(model, batch())
    out.float().square().sum().backward()
    return [p.grad for p in model.parameters()] + list(model.buffers())


def twice(model: nn.Module, x: Tensor) -> Tensor:
    return model(x) + model(2 * x)


def recomputed(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = checkpoint(model, x, use_reentrant=False)
    return found


def elsewhere(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        found: Tensor = model(x)
    return found


def narrow(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        found: Tensor = model(x)
    return found


RUNS = [lambda model, x: model(x), twice, recomputed, elsewhere, narrow]


@pytest.mark.parametrize("run", RUNS, ids=["once", *(run.__name__ for run in RUNS[1:])])
def test_gradients_have_the_bits_of_tensors_kept_whole(
    prepared: QuantGraphModule, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = step(prepared, run, nullcontext())
    monkeypatch.setattr("pt2q.ir.module.graph_module.saved_small", nullcontext)
    expected = step(prepared, run, nullcontext())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_where_hooks_are_forbidden_tensors_are_kept_whole(prepared: QuantGraphModule) -> None:
    forbidden = torch.autograd.graph.disable_saved_tensors_hooks("no hooks")
    found = step(prepared, RUNS[0], forbidden)
    expected = step(prepared, RUNS[0], nullcontext())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def bytes_kept(model: nn.Module) -> int:
    """Of what is saved for the backward pass, parameters and the input left out."""
    x = batch()
    known = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    return sum(storage.nbytes() for storage in kept.values())


def test_a_step_keeps_no_more_than_the_float_step_and_a_quarter() -> None:
    torch.manual_seed(0)
    model = Residual()
    quantized = prepare(copy.deepcopy(model), torch.randn(EXAMPLE))
    quantized(batch())
    assert bytes_kept(quantized) <= 1.25 * bytes_kept(model)


def test_what_is_written_meanwhile_is_noticed(prepared: QuantGraphModule) -> None:
    model = copy.deepcopy(prepared)
    out = model(batch())
    with torch.no_grad():
        model.get_parameter("first.0.weight").add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_an_output_of_a_relu_is_its_signs_for_the_relu_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, requires_grad=True)
    outside = x.relu()

    def squares() -> Tensor:
        inside = (x * 2).relu()
        return (outside * outside).sum() + (inside * inside).sum()

    (expected,) = torch.autograd.grad(squares(), x, retain_graph=True)
    with saved_small():
        found = squares()
    assert torch.equal(torch.autograd.grad(found, x)[0], expected)


def test_signs_keep_nan() -> None:
    x = torch.tensor([torch.nan, 1.0, 0.0, -1.0], requires_grad=True)
    with saved_small():
        y = x.relu()
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x.grad is not None and x.grad.tolist() == [1.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("low", "high", "bytes_each"),
    [(-128, 127, 1), (0, 255, 1), (-255, 0, 1), (-7, 8, 1), (-32768, 32767, 2), (0, 65535, 2)],
)
@pytest.mark.parametrize("scale", [1e-6, 0.0123, 37.7, 2.0**-7])
def test_all_integers_come_back(low: int, high: int, bytes_each: int, scale: float) -> None:
    step = torch.tensor(scale)
    x = torch.arange(low, high + 1, dtype=torch.float32) * step
    per_channel = (1 / step).reshape(1, 1), step.reshape(1, 1)
    for inverse, factor in ((float(1 / step), float(step)), per_channel):
        form = rounded_form(inverse, factor, low, high)
        assert form is not None
        small = form.shrunk(x.reshape(1, -1))
        assert small.element_size() == bytes_each
        assert torch.equal(form.restored(small), x.reshape(1, -1))
    assert rounded_form(1.0, 1.0, 0, 2**16) is None
