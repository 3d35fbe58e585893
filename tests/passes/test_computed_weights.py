"""Weights that the graph computes from constants become constants that backends quantize."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.results import assert_same
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from pt2q import convert_pt2e, prepare_pt2e, prepare_qat_pt2e, sqnr, verify
from pt2q.ir import ops
from pt2q.ir.module import import_exported
from pt2q.passes import ComposeLinear, FoldComputedWeights
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)

X = (torch.linspace(-1, 1, 4 * 8).reshape(4, 8).sin(),)


class Computed(nn.Module):
    """A product with a weight that some function of parameters gives."""

    def __init__(self, weight: Callable[[Any], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(8, 16, generator=generator) / 3)
        self.low = nn.Parameter((torch.randn(8, 16, generator=generator) / 3).half())
        self.cube = nn.Parameter(torch.randn(2, 8, 8, generator=generator) / 3)
        self.other = nn.Linear(8, 8)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(self)).relu()


CHAINS: dict[str, Callable[[Any], Tensor]] = {
    "transpose": lambda m: m.w.t(),
    "view": lambda m: m.w.view(16, 8),
    "cast": lambda m: m.low.t().float(),
    "slice": lambda m: m.w[:, 4:12],
    "chunk": lambda m: m.w.t().chunk(2)[1],
    "permute": lambda m: m.cube.permute(0, 2, 1).reshape(16, 8),
    "scale": lambda m: (m.w * 0.5).t(),
    "cat": lambda m: torch.cat([m.w.t(), m.other.weight]),
    "factory": lambda m: torch.ones(8, 8) * 0.3,
}
QUANTIZERS: dict[str, Callable[[], Any]] = {
    "xnnpack": XNNPACKQuantizer,
    "x86": X86InductorQuantizer,
    "onnxruntime": OnnxQDQQuantizer.onnxruntime,
}


def check(model: nn.Module, quantizer: Any, program: Any = None, least: float = 30.0) -> Any:
    """Quantize; all linears are, with int8 weights, and the results are near."""
    program = torch.export.export(model, X) if program is None else program
    ready = prepare_pt2e(program, quantizer)
    with torch.no_grad():
        assert_same(ready(*X), model(*X), 1e-5)
        done = convert_pt2e(ready)
        assert float(sqnr(model(*X), done(*X))) > least
    rows = [row for row in quantizer.report() if "linear" in row.operator]
    assert rows and all(row.quantized for row in rows), str(quantizer.report())
    matrices = [t for t in done.state_dict().values() if t.dim() > 1]
    assert matrices and all(t.dtype is torch.int8 and t.is_contiguous() for t in matrices)
    verify(done, X).raise_if_broken()
    return done


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("chain", CHAINS)
def test_weights_reached_through_a_chain_are_quantized(chain: str, quantizer: str) -> None:
    check(Computed(CHAINS[chain]).eval(), QUANTIZERS[quantizer]())


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_decomposed_programs_are_quantized_like_the_others(quantizer: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False)).eval()
    program = torch.export.export(model, X)
    whole = check(model, QUANTIZERS[quantizer]())
    parts = check(model, QUANTIZERS[quantizer](), program.run_decompositions())
    assert not any(ops.is_op(n, ops.ADDMM | ops.MM) for n in parts.graph.nodes)
    assert set(parts.state_dict()) == set(whole.state_dict())
    assert_same(parts(*X), whole(*X), 1e-5)


def test_a_normalized_weight_is_computed_once() -> None:
    torch.manual_seed(0)
    check(nn.Sequential(weight_norm(nn.Linear(8, 8))).eval(), XNNPACKQuantizer())


def test_one_computation_in_two_places_is_stored_once() -> None:
    class Twice(Computed):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.cube[0] * 0.5).relu(), self.cube[0] * 0.5)

    done = check(Twice(CHAINS["view"]).eval(), XNNPACKQuantizer())
    assert sum(t.dtype is torch.int8 for t in done.state_dict().values()) == 1


def test_weights_computed_from_inputs_or_written_buffers_stay() -> None:
    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("moving", torch.ones(8, 8))

        moving: Tensor

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            self.moving.mul_(0.5)
            return F.linear(x, self.moving * 2.0), F.linear(x, x * 2.0)

    model = import_exported(torch.export.export(Open(), X))
    assert not FoldComputedWeights()(model) and not ComposeLinear()(model)


def test_training_keeps_what_weights_are_computed_from() -> None:
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    model = nn.Sequential(Computed(CHAINS["scale"]), nn.Linear(16, 4)).train()
    program = torch.export.export(copy.deepcopy(model), X)
    quantizer = XNNPACKQuantizer().set_global(config)
    ready = prepare_qat_pt2e(program, quantizer)
    assert "0.w" in {name for name, _ in ready.named_parameters()}
    assert "computed in the graph" in quantizer.report()["linear"].how
    decomposed = torch.export.export(nn.Linear(8, 4).train(), X).run_decompositions()
    ready = prepare_qat_pt2e(decomposed, quantizer)
    assert all(row.quantized for row in quantizer.report())
    ready(*X).sum().backward()
    assert all(p.grad is not None for p in ready.parameters())


def test_an_operator_that_the_user_names_stays_what_it_is() -> None:
    program = torch.export.export(nn.Linear(8, 4).eval(), X).run_decompositions()
    quantizer = XNNPACKQuantizer().set_operator_type(torch.ops.aten.addmm, None)
    with pytest.warns(UserWarning):  # nothing is left to quantize
        prepare_pt2e(program, quantizer)
    assert quantizer.report()["addmm"].how.startswith("float: operator type")


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_only_what_is_a_linear_becomes_one(alpha: float) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            column = torch.addmm(self.b[:1], x, self.w.t())
            stack = x[None] @ self.w.mT
            return torch.addmm(self.b, x, self.w.t(), alpha=alpha), column, stack

    model = Product()
    exported = import_exported(torch.export.export(model, X))
    assert ComposeLinear()(exported)
    exported.recompile()
    assert sum(ops.is_op(n, ops.LINEAR) for n in exported.graph.nodes) == (2 if alpha == 1 else 1)
    assert_same(exported(*X), model(*X), 1e-5)
    verify(exported, X).raise_if_broken()
