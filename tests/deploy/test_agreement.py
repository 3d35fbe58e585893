"""After an export the file is compared with its model in its own runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pt2q import QuantGraphModule, Quantizer, quantize_pt2e
from pt2q.deploy import executorch, inductor, onnx
from pt2q.deploy.agreement import Call, check_agreement
from pt2q.deploy.executorch import lowering
from pt2q.deploy.onnx.openvino_session import OpenVinoSession
from pt2q.deploy.running import open_file
from pt2q.deploy.signature import signature_of
from pt2q.errors import DisagreementError, MissingDependencyError, NotCheckedWarning
from pt2q.quantizers import OnnxQDQQuantizer, X86InductorQuantizer, XNNPACKQuantizer


class Net(nn.Module):
    """Two results, a number that is compiled in, a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, scale: float, *, shift: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(x) + shift)
        return {"hidden": hidden, "result": self.second(hidden) * scale}


def inputs(seed: int = 0) -> tuple[tuple[Tensor, float], dict[str, Tensor]]:
    made = torch.Generator().manual_seed(seed)
    return (torch.randn(4, 16, generator=made), 2.0), {"shift": torch.randn(16, generator=made)}


def exported() -> ExportedProgram:
    torch.manual_seed(0)
    args, kwargs = inputs()
    return torch.export.export(Net().eval(), args, kwargs)


def converted(quantizer: Quantizer) -> QuantGraphModule:
    batches = [{"x": a[0], "scale": a[1], **k} for a, k in map(inputs, range(3))]
    return quantize_pt2e(exported(), quantizer, batches)


@pytest.fixture(scope="module")
def model() -> QuantGraphModule:
    return converted(XNNPACKQuantizer())


def in_pytorch(model: Any) -> Callable[[Call], list[Any]]:
    def run(call: Call) -> list[Any]:
        args, kwargs = call.own()
        with torch.no_grad():
            return list(model(*args, **kwargs).values())

    return run


def check(model: Any, change: Callable[[list[Any]], list[Any]]) -> None:
    call, run = Call.of(model, *inputs()), in_pytorch(model)
    check_agreement(model, call, lambda call: change(run(call)), "the runtime")


def test_what_is_the_same_but_for_roundings(model: QuantGraphModule) -> None:
    check(model, lambda found: found)
    check(model, lambda found: [x + 1e-3 * x.abs().max() for x in found])
    step = 0.05  # more than one of this model: an activation fell the other way
    check(model, lambda found: [found[0] + step * (found[0] > 0), found[1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: [x[0], -x[1]], r"in output 1: -6\.0 dB where rounding makes \d\d"),
        (lambda x: [x[0], x[1] * 1.2], "in output 1: 14"),
        (lambda x: [x[0] * float("nan"), x[1]], "in output 0: -inf dB"),
        (lambda x: [x[0][:2], x[1]], "in output 0"),
        (lambda x: x[:1], "gives 1 results, the model 2"),
    ],
)
def test_what_is_something_else(
    model: QuantGraphModule, change: Callable[[list[Any]], list[Any]], message: str
) -> None:
    with pytest.raises(DisagreementError, match=message):
        check(model, change)


def test_what_cannot_be_compared(model: QuantGraphModule) -> None:
    check(exported().module(), lambda found: [-x for x in found])  # nothing is quantized

    def missing(found: list[Any]) -> list[Any]:
        raise MissingDependencyError("no such runtime here")

    check(model, missing)
    args, kwargs = inputs()
    call = Call.of(model, (args[0].double(), args[1]), kwargs)
    with pytest.warns(NotCheckedWarning, match="fails on the example inputs"):
        check_agreement(model, call, lambda call: [], "the runtime")


def test_every_road_compares_and_leaves_nothing(
    model: QuantGraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, kwargs = inputs()

    def wrong(run: Any) -> Any:
        return lambda *given, **named: [-x for x in run(*given, **named)]

    method = executorch.LoadedProgram.method
    lowered = executorch.lower(model, args, kwargs=kwargs)
    assert len(lowered.load()(*Call.of(model, args, kwargs).leaves())) == 2
    # What is compared is the same each time, and making it takes seconds.
    monkeypatch.setattr(lowering, "packed", lambda *given, **named: (lowered, None))
    monkeypatch.setattr(executorch.LoadedProgram, "method", lambda *given: wrong(method(*given)))
    with pytest.raises(DisagreementError, match="ExecuTorch computes something else"):
        executorch.lower(model, args, kwargs=kwargs)
    program = torch.export.export(model, args, kwargs)
    with pytest.raises(DisagreementError):
        executorch.lower(program)
    assert executorch.lower(program, check=False) is lowered


def test_onnx_compares_before_the_file_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    affine, (args, kwargs) = converted(OnnxQDQQuantizer.onnxruntime()), inputs()
    path, load = tmp_path / "m.onnx", onnx.load
    path.write_text("old")
    monkeypatch.setattr(
        "pt2q.deploy.onnx.judging.load", lambda path: lambda *x: [-y for y in load(path)(*x)]
    )
    with pytest.raises(DisagreementError, match="ONNX Runtime computes something else"):
        onnx.export(affine, args, path, kwargs=kwargs, external_data=True)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    onnx.export(affine, args, path, kwargs=kwargs, check=False)
    monkeypatch.undo()
    onnx.export(affine, args, path, kwargs=kwargs)


def test_a_file_for_openvino_is_compared_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    affine, (args, kwargs) = converted(OnnxQDQQuantizer.openvino()), inputs()
    path = tmp_path / "m.onnx"
    onnx.export(affine, args, path, kwargs=kwargs)
    run = OpenVinoSession.__call__
    opened = open_file(path, signature_of(exported()))
    assert opened.runtime == "OpenVINO"
    assert open_file(path, signature_of(exported()), "onnxruntime").runtime == "ONNX Runtime"
    monkeypatch.setattr(OpenVinoSession, "__call__", lambda s, *x: [-y for y in run(s, *x)])
    with pytest.raises(DisagreementError, match="OpenVINO computes something else"):
        onnx.export(affine, args, path, kwargs=kwargs)
    monkeypatch.setattr("pt2q.deploy.onnx.judging.find_spec", lambda name: None)
    onnx.export(affine, args, path, kwargs=kwargs)  # in ONNX Runtime, where it is not installed
    assert open_file(path, signature_of(exported())).runtime == "ONNX Runtime"


@pytest.mark.slow
def test_a_package_is_compared_before_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    affine, (args, kwargs) = converted(X86InductorQuantizer()), inputs()
    inductor.package(affine, args, tmp_path / "m.pt2", kwargs=kwargs)
    (tmp_path / "m.pt2").unlink()
    monkeypatch.setattr("pt2q.deploy.inductor.ahead_of_time._run", lambda path, call: [-1.0])
    with pytest.raises(DisagreementError, match="Inductor gives 0 results, the model 2"):
        inductor.package(affine, args, tmp_path / "m.pt2", kwargs=kwargs)
    assert not list(tmp_path.iterdir())
