"""State in ONNX files: inputs and outputs that the session carries; names of outputs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e
from pt2q.deploy import onnx as onnx_road
from pt2q.deploy.onnx.openvino_session import OpenVinoSession
from pt2q.deploy.onnx.state import State
from pt2q.errors import DataError
from pt2q.quantizers import OnnxQDQQuantizer

pytest.importorskip("onnxruntime")
SHAPES = ({0: Dim("rows", max=9)}, None)


class Remembers(nn.Module):
    """A running mean that starts from something, a counter, and a cache that the caller holds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)
        self.register_buffer("mean", torch.rand(1, 8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, cache: Tensor) -> dict[str, Tensor]:
        self.calls.add_(1)
        self.mean.copy_(0.9 * self.mean + self.linear(x).mean(0, True))
        cache.mul_(0.5).add_(1)
        return {"sum": self.mean + x, "calls": self.calls * 1, "last": cache[0] + self.linear(x)}


def _x(rows: int) -> Tensor:
    return torch.linspace(-2, 2, rows * 8).sin().reshape(rows, 8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantGraphModule, Path]:
    example = (_x(3), torch.zeros(1, 8))
    program = torch.export.export(Remembers().eval(), example, dynamic_shapes=SHAPES)
    prepared = prepare_pt2e(program, OnnxQDQQuantizer.onnxruntime())
    prepared(_x(3), torch.zeros(1, 8))
    converted = convert_pt2e(prepared)
    path = tmp_path_factory.mktemp("state") / "m.onnx"
    onnx_road.export(converted, example, path, dynamic_shapes=SHAPES)
    return converted, path


def test_a_hundred_steps_are_those_of_the_converted_model(
    written: tuple[QuantGraphModule, Path],
) -> None:
    converted, path = written
    model, session = copy.deepcopy(converted), onnx_road.load(path, fuse=False)
    ours, theirs = torch.zeros(1, 8), torch.zeros(1, 8)
    first: tuple[Tensor, ...] = ()
    for step in range(100):
        x = _x(2 + step % 5)
        expected = model(x, ours)
        found = session(x, theirs)
        for a, b in zip(expected.values(), found, strict=True):
            torch.testing.assert_close(b.float(), a.float(), atol=0.05, rtol=0)
        torch.testing.assert_close(theirs, ours)
        first = first or found
    assert set(session.state) == {"mean", "calls"} and session.state["calls"] == 100
    session.reset()
    again = session(_x(2), torch.zeros(1, 8))
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_names_and_initial_values_stand_in_the_file(
    written: tuple[QuantGraphModule, Path],
) -> None:
    onnx = pytest.importorskip("onnx")
    converted, path = written
    model = onnx.load(path)
    assert [v.name for v in model.graph.input] == ["x", "cache", "mean", "calls"]
    outputs = [v.name for v in model.graph.output]
    assert outputs[:3] == ["add_1", "mul_1", "add_2"]
    assert set(outputs[3:]) == {"calls.next", "mean.next", "cache.next"}
    session = onnx_road.load(path)
    assert session.inputs == ("x", "cache") and session.outputs == ("add_1", "mul_1", "add_2")
    state = State.read({entry.key: entry.value for entry in model.metadata_props})
    assert torch.equal(torch.from_numpy(state.initial["mean"]), converted.get_buffer("mean"))
    with pytest.raises(DataError, match="account of its state is broken"):
        State.read({"pt2q.state": '{"initial": {"mean": "no"}}'})


def test_openvino_carries_it_too(written: tuple[QuantGraphModule, Path]) -> None:
    pytest.importorskip("openvino")
    converted, path = written
    model, session = copy.deepcopy(converted), OpenVinoSession(path, threads=1)
    ours, theirs = torch.zeros(1, 8), torch.zeros(1, 8)
    for _ in range(3):
        expected, found = model(_x(4), ours), session(_x(4), theirs)
        for a, b in zip(expected.values(), found, strict=True):
            torch.testing.assert_close(b.float(), a.float(), atol=0.05, rtol=0)
    assert torch.equal(theirs, ours)


def test_outputs_are_called_as_in_the_float_program(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, y.relu()

    x = _x(24).reshape(1, 3, 8, 8)
    program = torch.export.export(Two().eval(), (x,))
    prepared = prepare_pt2e(program, OnnxQDQQuantizer.onnxruntime())
    prepared(x)
    names = program.graph_signature.user_outputs
    for name, model in (("float", program), ("int8", convert_pt2e(prepared))):
        path = tmp_path / f"{name}.onnx"
        onnx_road.export(model, (x,), path)
        assert onnx_road.load(path).outputs == tuple(names) == ("conv2d", "relu")
