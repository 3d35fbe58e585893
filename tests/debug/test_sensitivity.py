"""Sensitivity: the figures against models quantized for the purpose, ranks, bounds, resuming."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.control_flow_models import Cond
from support.convnets import Bottleneck, ResNet
from support.stateful_models import IndexPut, steps
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import QuantGraphModule, convert_pt2e, debug, prepare_pt2e, sqnr
from pt2q.algorithms.engine import Program
from pt2q.algorithms.engine.runner import Runner
from pt2q.debug import Sensitivity, SensitivityRow
from pt2q.errors import DataError, NotExportedError
from pt2q.quantizers import XNNPACKQuantizer


class Residual(nn.Module):
    """One tensor that several operators read, an addition, a layer with an outlier channel."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.two.bias[0] += 300

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        return self.head((self.two(x) * self.scale()).mean((2, 3)) + x.mean((2, 3)))

    def scale(self) -> Tensor:
        return torch.tensor([1e-3, *[1.0] * 7]).reshape(8, 1, 1)


def calibrated(model: nn.Module, batches: list[Any]) -> QuantGraphModule:
    calls = [b if isinstance(b, tuple) else (b,) for b in batches]
    prepared = prepare_pt2e(torch.export.export(model.eval(), calls[0]), XNNPACKQuantizer())
    with torch.no_grad():
        for call in calls:
            prepared(*call)
    return prepared


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(4)]


@pytest.fixture(scope="module")
def prepared(batches: list[Tensor]) -> QuantGraphModule:
    torch.manual_seed(0)
    return calibrated(Residual(), batches)


@pytest.fixture(scope="module")
def found(prepared: QuantGraphModule, batches: list[Tensor]) -> Sensitivity:
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    found = debug.sensitivity(prepared, batches, passes=None)
    after = prepared.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    return found


def kept(prepared: QuantGraphModule, keep: Callable[[str], bool]) -> QuantGraphModule:
    """Converted with those observers alone whose tensor is kept; an independent way to the same."""
    model = copy.deepcopy(prepared)
    for node in list(model.graph.nodes):
        if node.op == "call_module" and not keep(node.args[0].name):
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    model.recompile()
    return convert_pt2e(model)


def decibels(reference: nn.Module, model: nn.Module, batches: list[Tensor]) -> float:
    with torch.no_grad():
        pairs = [(reference(b).flatten(), model(b).flatten()) for b in batches]
    return float(sqnr(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])))


def test_figures_are_those_of_models_quantized_so(
    prepared: QuantGraphModule, batches: list[Tensor], found: Sensitivity
) -> None:
    reference = kept(prepared, lambda name: False)
    whole = decibels(reference, kept(prepared, lambda name: True), batches)
    assert found.whole == pytest.approx(whole, abs=1e-3)
    assert len(found.groups) >= 7
    for row in found.groups:
        alone = kept(prepared, lambda name, row=row: name in row.nodes)
        without = kept(prepared, lambda name, row=row: name not in row.nodes)
        assert row.alone == pytest.approx(decibels(reference, alone, batches), abs=1e-3)
        assert row.without == pytest.approx(decibels(reference, without, batches), abs=1e-3)
        assert row.batches == len(batches)


def test_layers_have_their_inputs_weight_and_output(found: Sensitivity) -> None:
    assert {row.nodes for row in found.layers} == {("conv2d",), ("conv2d_1",), ("linear",)}
    alone = {row.nodes[0]: row.alone for row in found}
    modules = {row.nodes[0]: row.modules for row in found.layers}
    assert modules == {"conv2d": ("one",), "conv2d_1": ("two",), "linear": ("head",)}
    assert alone["conv2d_1"] < min(alone["relu"], alone["two_weight"])


def test_the_culprit_comes_first(found: Sensitivity) -> None:
    first = found.groups[0]
    assert (first.kind, first.nodes, first.modules) == ("activation", ("conv2d_1",), ("two",))
    assert first.without > found.whole + 10
    assert [row.alone for row in found] == sorted(row.alone for row in found)
    weights = {row.nodes for row in found.groups if row.kind == "weight"}
    assert weights == {("one_weight",), ("two_weight",), ("head_weight",)}


def test_as_text_and_json(found: Sensitivity) -> None:
    text = found.worst(3).text(80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[2].split()[0] in ("layer", "activation")
    row = found.to_dict()["rows"][0]
    assert list(row)[:5] == ["nodes", "modules", "kind", "alone_db", "without_db"]
    exact = SensitivityRow(("x",), (), "weight", math.inf, 3.0, 1)
    assert exact.to_dict()["alone_db"] is None
    assert "exact" in Sensitivity((exact,), 3.0, "SQNR in dB", 1, 1.0).text()


def test_a_metric_judges(prepared: QuantGraphModule, batches: list[Tensor]) -> None:
    model = copy.deepcopy(prepared)  # which observes what it is shown
    with torch.no_grad():
        labels = [model(b).argmax(1) for b in batches]

    def accuracy(results: list[Tensor], positions: list[int]) -> float:
        pairs = zip(results, positions, strict=True)
        return sum(float((r.argmax(1) == labels[i]).float().mean()) for r, i in pairs) / len(
            results
        )

    found = debug.sensitivity(prepared, batches, metric=accuracy, passes=None)
    assert found.measure == "metric"
    assert all(0 <= row.alone <= 1 for row in found)
    assert found.groups[0].alone <= found.groups[-1].alone == 1.0


def test_a_run_that_was_interrupted_goes_on(
    prepared: QuantGraphModule, batches: list[Tensor], found: Sensitivity, tmp_path: Path
) -> None:
    state, seen = tmp_path / "state.json", []

    def interrupt(done: int, total: int, name: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        debug.sensitivity(prepared, batches, passes=None, state=state, progress=interrupt)

    def note(done: int, total: int, name: str) -> None:
        seen.append((done, total))

    again = debug.sensitivity(prepared, batches, passes=None, state=state, progress=note)
    assert again == found
    assert seen == [(done, len(found)) for done in range(5, len(found))]
    seen.clear()
    assert debug.sensitivity(prepared, batches, passes=None, state=state, progress=note) == found
    assert seen == []
    with pytest.raises(DataError, match="measured with another model, other data"):
        debug.sensitivity(prepared, batches[:2], passes=None, state=state)
    state.write_text("[1, 2]")
    with pytest.raises(DataError, match="no saved measurement"):
        debug.sensitivity(prepared, batches, state=state)


def test_what_cannot_be_measured_is_said(prepared: QuantGraphModule, batches: list[Tensor]) -> None:
    with pytest.raises(DataError, match="no batch"):
        debug.sensitivity(prepared, [])
    with pytest.raises(NotExportedError, match="before convert"):
        debug.sensitivity(convert_pt2e(prepared), batches)


def test_bodies_of_control_flow_have_rows() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(2, 8) + shift,) for shift in (2.0, -2.0)]
    prepared = calibrated(Cond(), batches)
    found = debug.sensitivity(prepared, batches, passes=None)
    names = {name for row in found.groups for name in row.nodes}
    assert {"true_graph_0.linear", "false_graph_0.linear", "linear"} & names
    assert all(row.alone < 80 for row in found.groups if row.kind == "weight")


def test_state_that_a_model_writes_begins_anew_for_each_row() -> None:
    torch.manual_seed(0)
    batches: list[Any] = steps(4)
    prepared = calibrated(IndexPut(), batches)
    found = debug.sensitivity(prepared, batches, passes=None)
    again = debug.sensitivity(prepared, batches, passes=None)
    assert found == again
    assert all(math.isfinite(row.without) for row in found)


class Count:
    """Counts the operators that run on values of a batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, original = 0, Runner._result

        def counted(runner: Any, owner: Any, node: Any, args: Any, kwargs: Any) -> Any:
            constant = node in runner.program.schedules[owner].constants
            self.run += node.op == "call_function" and not constant
            return original(runner, owner, node, args, kwargs)

        monkeypatch.setattr(Runner, "_result", counted)


@pytest.fixture(scope="module")
def resnet() -> QuantGraphModule:
    """ResNet-50's graph, with few channels."""
    torch.manual_seed(0)
    return calibrated(ResNet(Bottleneck, (3, 4, 6, 3), 10, width=4), [torch.randn(1, 3, 16, 16)])


@pytest.mark.slow
@pytest.mark.parametrize("by_layer", [False, True])
def test_resnet_50_within_25_runs_of_float(
    resnet: QuantGraphModule, by_layer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [torch.randn(1, 3, 16, 16) for _ in range(8)]
    count = Count(monkeypatch)
    found = debug.sensitivity(resnet, batches, by_layer=by_layer)
    whole = sum(node.op == "call_function" for node in resnet.graph.nodes)
    assert len(found.groups) > 120
    assert found.passes == pytest.approx(count.run / whole / len(batches), rel=1e-6)
    assert found.passes <= 25


def test_the_worst_are_measured_on_more(
    prepared: QuantGraphModule, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Count(monkeypatch)
    found = debug.sensitivity(prepared, batches * 2, passes=10)
    constants = Program(prepared).schedule.constants
    run = [n for n in prepared.graph.nodes if n.op == "call_function" and n not in constants]
    assert found.passes == pytest.approx(count.run / len(run) / 8)
    assert found.passes <= 10
    measured = [row.batches for row in found]
    assert set(measured) == {min(measured), 8}
    least_of_rest = min(row.alone for row in found if row.batches < 8)
    assert found.rows[0].batches == 8
    assert found.rows[0].alone < least_of_rest
