"""Additions behind products compute what the graph does, compiled too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.x86_inductor import converted
from torch import Tensor, nn

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.deploy import inductor
from pt2q.deploy.inductor.graph import for_inductor
from pt2q.ir import ops
from pt2q.numerics.sqnr import sqnr
from pt2q.quantizers import X86InductorQuantizer

ROWS = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
SIGNAL = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))


class Layers(nn.Module):
    """Layers of each kind, and a function of them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)
        self.signal = nn.Conv1d(4, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def doubled(y: Tensor) -> Tensor:
    return y + y


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], Tensor]] = {
    "alpha": (lambda m, x: torch.add(m.one(x), x, alpha=3), ROWS),
    "alpha of a product": (lambda m, x: torch.add(x, m.one(x), alpha=3), ROWS),
    "alpha in place": (lambda m, x: m.one(x).add_(x, alpha=3), ROWS),
    "alpha subtracted": (lambda m, x: torch.sub(m.one(x), m.two(x), alpha=3), ROWS),
    "a scalar": (lambda m, x: torch.add(m.one(x), 2.0, alpha=3), ROWS),
    "twice the same": (lambda m, x: m.two(doubled(m.one(x))), ROWS),
    "one dimension": (lambda m, x: m.signal(x).relu() + x, SIGNAL),
}


@pytest.mark.slow
@pytest.mark.usefixtures("no_gradients")
def test_additions_compute_what_the_graph_does() -> None:
    """All in one program: compiling takes seconds."""

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cases = nn.ModuleList(Layers(function) for function, _ in CASES.values())

        def forward(self, rows: Tensor, signal: Tensor) -> list[Tensor]:
            given = [signal if x is SIGNAL else rows for _, x in CASES.values()]
            return [case(x) for case, x in zip(self.cases, given, strict=True)]

    model, module = converted(All(), (ROWS, SIGNAL))
    compiled = inductor.compile(module)
    found, graph = compiled(ROWS.clone(), SIGNAL.clone()), module(ROWS, SIGNAL)
    for name, wanted, eager, got in zip(CASES, model(ROWS, SIGNAL), graph, found, strict=True):
        assert sqnr(wanted, got) > max(30.0, float(sqnr(wanted, eager)) - 1), name
    (row,) = compiled.fusion.not_fused
    assert row.reason is not None and row.reason.code == "inductor-1d"


@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize("name", ["alpha", "alpha in place", "twice the same", "one dimension"])
def test_no_addition_is_left_that_a_pattern_takes_in_wrongly(name: str) -> None:
    function, x = CASES[name]
    _, module = converted(Layers(function), (x,))
    written = for_inductor(module)
    assert sqnr(module(x), written(x)) > 100
    for node in written.graph.nodes:
        if ops.is_op(node, ops.ADD):
            assert ops.argument(node, "alpha") == 1
            assert ops.argument(node, "self") is not ops.argument(node, "other")
        if ops.is_op(node, ops.CONV1D):
            assert not ops.is_op(ops.argument(node, "weight"), ops.DEQUANTIZE)


@pytest.mark.slow
@pytest.mark.usefixtures("no_gradients")
def test_attention_of_any_batch_compiles(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return found

    model, x = Attention().eval(), torch.randn(4, 6, 32)
    batch = ({0: torch.export.Dim("batch", min=2, max=64)},)
    ready = prepare_pt2e(
        torch.export.export(model, (x,), dynamic_shapes=batch), X86InductorQuantizer()
    )
    ready(x)
    module = convert_pt2e(ready)
    compiled = inductor.compile(module)
    for size in (4, 9):
        other = torch.randn(size, 6, 32)
        assert sqnr(module(other), compiled(other)) > 35
    assert len(compiled.fusion.fused) == 2

    both = ({0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=64)},)
    ready = prepare_pt2e(
        torch.export.export(model, (x,), dynamic_shapes=both), X86InductorQuantizer()
    )
    ready(x)
    module = convert_pt2e(ready)
    path = inductor.package(module, (x,), tmp_path / "any.pt2", dynamic_shapes=both)
    packaged = inductor.load_package(path)
    for size, length in ((4, 6), (9, 3), (1, 20)):
        other = torch.randn(size, length, 32)
        assert sqnr(module(other), packaged(other)) > 35
