"""No output is half-written, replaced by a worse one, or left over from a run that failed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import Run, fails
from support.processes import run_code
from torch import Tensor, nn

from pt2q.app.figures import Figures
from pt2q.app.requirements import Requirements
from pt2q.deploy.registry import BACKENDS
from pt2q.errors import DisagreementError, RequirementError

OPTION, LINE = ("--backend", "onnxruntime"), "backend = 'onnxruntime'\n"  # the quickest to write


def _call(folder: Path, out: Path) -> tuple[object, ...]:
    data = folder / "images.npz"
    return ("quantize", folder / "small.pt2", "--calibration", data, "-o", out)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("[require]\nquantized = 0.99\n[skip]\nmodules = ['head']", r"2 of 4 .* asks for 0.99"),
        ("[require]\nmin_sqnr = 90", r"\d\d\.\d dB against float in ONNX Runtime, .* asks for 90"),
        ("[default]\nmode = 'float'", "nothing was quantized, and nothing is written"),
    ],
)
def test_what_is_required(run: Run, folder: Path, tmp_path: Path, lines: str, message: str) -> None:
    recipe, out = tmp_path / "r.toml", tmp_path / "m.onnx"
    recipe.write_text(LINE + lines)
    out.write_text("old")
    code, text, err = run(*_call(folder, out), "--recipe", recipe)
    assert (code, text) == (3, "")
    fails((code, text, err.splitlines(True)[-1]), 3, message)
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "r.toml"]


def test_what_is_required_and_is_so(run: Run, folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f"{LINE}[require]\nquantized = 0.5\nmin_sqnr = 20\n")
    code, text, err = run(*_call(folder, tmp_path / "m.onnx"), "--recipe", recipe)
    assert (code, err) == (0, "")
    assert "dB, held-out data, in ONNX Runtime" in text


def test_a_runtime_that_computes_something_else_is_an_error(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = BACKENDS["onnxruntime"]

    def wrong(model, example, path):  # type: ignore[no-untyped-def]
        deployed = row.deploy(model, example, path)
        return replace(deployed, run=lambda batch: [-x for x in deployed.run(batch)])

    monkeypatch.setitem(BACKENDS._loaded, "onnxruntime", replace(row, deploy=wrong))
    out = tmp_path / "m.onnx"
    fails(
        run(*_call(folder, out), *OPTION),
        4,
        "ONNX Runtime computes something else than the converted",
    )
    assert not list(tmp_path.iterdir())


def test_figures_and_what_they_are_compared_with() -> None:
    for figures, agrees in (
        (Figures(40.0, 40.0, 45.0), True),
        (Figures(5.1, 40.0, 5.1), False),
        (Figures(18.0, 20.0, 16.0), True),  # deep: roundings fall the other way
        (Figures(30.0, 60.0, 30.0), True),
        (Figures(float("nan"), float("nan"), float("nan")), True),
        (Figures(float("nan"), 40.0, float("-inf")), False),
    ):
        assert figures.agrees is agrees
    with pytest.raises(DisagreementError, match=r"5\.1 dB .*converted model 40\.0"):
        Requirements().check_figures(Figures(5.1, 40.0, 5.1), "OpenVINO")
    Requirements(agreement=False).check_figures(Figures(5.1, 40.0, 5.1), "OpenVINO")
    with pytest.raises(RequirementError, match="asks for 30"):
        Requirements(min_sqnr=30).check_figures(Figures(29.0, 29.0, 40.0), "OpenVINO")


@pytest.mark.parametrize(
    "call",
    [
        ("compare", "--json"),
        ("inspect", "--json"),
        ("draw", "--out"),
        ("doctor", "--json"),
        ("sensitivity", "--json"),
    ],
)
def test_no_command_overwrites_what_it_reads(
    run: Run, folder: Path, tmp_path: Path, call: tuple[str, str]
) -> None:
    model = tmp_path / "model.svg"
    model.write_bytes((folder / "small.pt2").read_bytes())
    os.link(model, tmp_path / "same.svg")
    before = model.read_bytes()
    command, option = call
    data = () if command == "inspect" else ("--calibration", folder / "images.npz")
    fails(
        run(command, model, *data, option, tmp_path / "same.svg"),
        1,
        r"is read by this command \(the model\): write",
    )
    assert model.read_bytes() == before


ASKED_TO_END = """
import os, signal, sys
from pt2q.app import cli, quantize_job
figures = quantize_job.References.figures
def end(*args):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return figures(*args)
quantize_job.References.figures = end
cli.main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("name", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")]
)
def test_a_process_asked_to_end_leaves_nothing(
    folder: Path, tmp_path: Path, name: str, code: int, word: str
) -> None:
    out = tmp_path / "new" / "m.onnx"
    done = run_code(ASKED_TO_END, name, *_call(folder, out), *OPTION)
    assert done.returncode == code
    assert done.stderr == f"pt2q: {word}\n"
    assert not list(tmp_path.iterdir())


def test_state_is_compared_step_by_step(run: Run, tmp_path: Path) -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.register_buffer("mean", torch.zeros(1, 8))

        def forward(self, x: Tensor) -> Tensor:
            self.mean.copy_(0.9 * self.mean + self.linear(x))
            return self.mean + 0.0

    torch.manual_seed(0)
    program = torch.export.export(Remembers().eval(), (torch.randn(1, 8),))
    torch.export.save(program, tmp_path / "m.pt2")
    data = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", data)
    code, text, _ = run(
        *("quantize", tmp_path / "m.pt2", "--calibration", tmp_path / "x.npz"),
        *("-o", tmp_path / "m.onnx", "--backend", "onnxruntime"),
    )
    assert code == 0 and "in ONNX Runtime" in text
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
