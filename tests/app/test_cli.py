"""The command line: what works, and what each mistake says."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from support.command_line import Run, fails

from pt2q import __version__
from pt2q.app.program_file import read_program
from pt2q.deploy.executorch import load


def test_quantize(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "small.pte"
    code, text, err = run(
        "quantize", folder / "small.pt2", "--calibration", folder / "images.npz", "-o", out
    )
    assert (code, err) == (0, "")
    # 21 images make 10 batches of 2, and the last tenth is held out
    assert "9 batch(es), 1 more held out" in text
    assert re.search(r"\d+\.\d+ MB(, \d\.\d\dx smaller)?; float tensors 0\.\d+ MB", text)
    assert float(re.search(r"(\d+\.\d) dB", text)[1]) > 25  # type: ignore[index]
    held = re.search(r"it holds +│ weights (\d+) bytes int8 \+ (\d+) bytes float32", text)
    program = read_program(folder / "small.pt2")
    named = program.named_parameters()
    assert held and int(held[1]) == sum(w.numel() for n, w in named if n.endswith("weight"))
    assert re.search(r"runs on XNNPACK +│ (\d+) of \1 operators", text)
    assert re.search(r"portable +│ none ", text)
    assert str(out) in text
    x = torch.randn(2, 3, 8, 8)
    exact = read_program(folder / "small.pt2").module()(x)
    (ran,) = load(out)(x)
    assert (ran - exact).abs().max() < 0.05 * exact.abs().max()


def test_report_and_options(run: Run, folder: Path, tmp_path: Path) -> None:
    code, text, _ = run(
        *("quantize", folder / "small.pt2", "--calibration", folder / "images.npz"),
        *("-o", tmp_path / "a.onnx", "--backend", "onnxruntime"),
        *("--report", "--per-tensor", "--limit", 3),
    )
    assert code == 0
    assert "3 batch(es), 1 more held out" in text
    assert "aten.conv2d.default" in text
    per_tensor = (tmp_path / "a.onnx").stat().st_size
    run(
        *("quantize", folder / "small.pt2", "--calibration", folder / "images.npz"),
        *("-o", tmp_path / "b.onnx", "--backend", "onnxruntime"),
    )
    assert (tmp_path / "b.onnx").stat().st_size != per_tensor


def test_low_memory(run: Run, folder: Path, tmp_path: Path) -> None:
    call = ("quantize", folder / "small.pt2", "--calibration", folder / "images.npz")
    written = []
    for options in ((), ("--low-memory", "--resume", tmp_path / "kept")):
        out = tmp_path / f"{len(options)}.pte"
        assert run(*call, "-o", out, *options)[::2] == (0, "")
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert (tmp_path / "kept" / "pieces-0-of-1" / "index").exists()


def test_winning_accuracy_back(run: Run, folder: Path, tmp_path: Path) -> None:
    call = ("quantize", folder / "small.pt2", "--calibration", folder / "images.npz")
    out = tmp_path / "a.pte"
    code, text, err = run(*call, "-o", out, "--effort", "best", "--seed", 3, "--report")
    assert (code, err) == (0, "")
    assert re.search(r"layers changed by +│ .*gptq \d", text)
    assert re.search(r"gptq +conv2d +\d+\.\d\d dB -> +\d+\.\d\d dB", text)
    done = load(out).algorithms
    assert done is not None and (done["seed"], done["algorithms"][-1]["name"]) == (
        3,
        "bias_correction",
    )
    code, text, _ = run(*call, "-o", out, "--algorithm", "gptq", "--algorithm", "bias_correction")
    assert code == 0
    done = load(out).algorithms
    assert done is not None and [a["name"] for a in done["algorithms"]] == [
        "gptq",
        "bias_correction",
    ]
    fails(run(*call, "-o", out, "--algorithm", "gpt"), 1, "unknown algorithm 'gpt'.*gptq")
    fails(run(*call, "-o", out, "--effort", "much"), 1, "fast, balanced, best")
    fails(run(*call, "-o", out, "--effort", "best", "--algorithm", "awq"), 1, "not both")


def test_dynamic_activations(run: Run, folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.pt"
    torch.save([{"x": torch.randn(6, 6), "mask": torch.ones(6, 4)}], data)
    code, text, err = run(
        *("quantize", folder / "masked.pt2", "--calibration", data),
        *("-o", tmp_path / "m.pte", "--dynamic"),
    )
    assert (code, err) == (0, "")
    assert float(re.search(r"(\d+\.\d) dB", text)[1]) > 25  # type: ignore[index]


def test_version_and_help(run: Run) -> None:
    assert run("--version")[:2] == (0, f"pt2q {__version__}\n")
    for args in (["--help"], ["quantize", "--help"]):
        code, text, _ = run(*args)
        assert (code, "quantize" in text) == (0, True)


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pt2q", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pt2q {__version__}\n", "")


def test_a_bad_command_line(run: Run, folder: Path, tmp_path: Path) -> None:
    fails(run("quantize", folder / "small.pt2", "-o", "x.pte"), 2, "--calibration")
    fails(run("quantise"), 2, "quantise")
    model, data = folder / "small.pt2", folder / "images.npz"
    call = ("quantize", model, "--calibration", data, "-o", tmp_path / "x.pte")
    fails(run(*call, "--limit", 0), 2, "limit|range")
    fails(run(*call, "--backend", "abacus"), 1, r"unknown backend 'abacus'.*xnnpack")


def test_a_bad_model(run: Run, folder: Path, tmp_path: Path) -> None:
    def call(model: Path) -> tuple[int, str, str]:
        return run(
            *("quantize", model, "--calibration", folder / "images.npz"),
            *("-o", tmp_path / "x.pte"),
        )

    fails(call(tmp_path / "missing.pt2"), 1, r"missing.pt2: no such file")
    cut = tmp_path / "cut.pt2"
    whole = (folder / "small.pt2").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    fails(call(cut), 1, r"cut.pt2: truncated")
    fails(call(folder / "images.npz"), 1, r"images.npz: no exported program")
    torch.save({"weight": torch.ones(2)}, tmp_path / "state.pt2")
    fails(call(tmp_path / "state.pt2"), 1, "what torch.save writes.*export the model.*export.save")
    with zipfile.ZipFile(tmp_path / "script.pt2", "w") as archive:
        archive.writestr("script/code/model.py", "")
    fails(call(tmp_path / "script.pt2"), 1, "TorchScript, not an exported program: export")
    for name, kind in (("m.pte", "a finished ExecuTorch program"), ("m.onnx", "an ONNX file")):
        (tmp_path / name).write_bytes(b"whatever")
        fails(call(tmp_path / name), 1, f"{kind}, not an exported program: give the float program")
    trusted = run("--trust", *("compare", tmp_path / "state.pt2", "--calibration", cut))
    fails(trusted, 1, "what torch.save writes")
    assert not (tmp_path / "x.pte").exists()


def test_an_output_that_cannot_be_written(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    call = ("quantize", folder / "small.pt2", "--calibration", folder / "images.npz")
    fails(run(*call, "-o", tmp_path / "file" / "x.pte"), 1, "cannot write .*x.pte")
    fails(run(*call, "-o", tmp_path), 1, "cannot write .*folder")
