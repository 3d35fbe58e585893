"""`pt2q inspect` of programs and of finished files: what it prints, and what stands in its JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import Run, Small, fails

from pt2q import quantize_pt2e
from pt2q.deploy import executorch, onnx
from pt2q.deploy.exported import provenance_in, save
from pt2q.quantizers import XNNPACKQuantizer

QUANTIZED = ("quantized by", "for ONNX Runtime", "calibrated on", "SQNR", "versions", "recipe")


def _quantized(run: Run, folder: Path, out: Path, backend: str) -> dict[str, Any]:
    call = ("quantize", folder / "small.pt2", "--calibration", folder / "images.npz", "-o", out)
    assert run(*call, "--backend", backend)[0] == 0
    code, text, _ = run("inspect", out, "--json", out.with_suffix(".json"))
    assert code == 0 and all(len(line) <= 80 for line in text.splitlines())
    found: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    assert sum(found["sizes"].values()) == found["size"] == out.stat().st_size
    return {**found, "text": text}


def test_a_pte(run: Run, folder: Path, tmp_path: Path) -> None:
    found = _quantized(run, folder, tmp_path / "m.pte", "xnnpack")
    (method,) = found["methods"]
    assert method["name"] == "forward"
    assert [(s["dtype"], s["sizes"]) for s in method["inputs"]] == [
        ("float32", ["2", "3", "8", "8"])
    ]
    assert [(s["dtype"], s["sizes"]) for s in method["outputs"]] == [("float32", ["2", "4"])]
    loaded = executorch.load(tmp_path / "m.pte")
    assert found["provenance"] == loaded.provenance
    inside = dict(method["delegated"])
    assert inside["Conv2d"] == 1 and inside["FullyConnected"] == 1
    # Eight kernels of 3 x 3 x 3 and a matrix of 4 x 8 in int8; scales and biases.
    assert 8 * 27 + 4 * 8 <= found["sizes"]["weights of delegates"] <= 8 * 27 + 4 * 8 + 400


def test_an_onnx_file(run: Run, folder: Path, tmp_path: Path) -> None:
    found = _quantized(run, folder, tmp_path / "m.onnx", "onnxruntime")
    (method,) = found["methods"]
    assert [(s["name"], s["sizes"]) for s in method["inputs"]] == [("image", ["2", "3", "8", "8"])]
    counts = dict(method["operators"])
    assert counts["Conv"] == 1 and counts["DequantizeLinear"] > counts["QuantizeLinear"]
    assert all(word in found["text"] for word in QUANTIZED)
    provenance = found["provenance"]
    assert provenance == onnx.load(tmp_path / "m.onnx").provenance
    assert provenance["recipe"] == 'backend = "onnxruntime"\n'
    assert provenance["calibration"] == {"batches": 9, "sha256": _digest(folder)}
    assert provenance["sqnr"]["batches"] == 1 and 20 < provenance["sqnr"]["decibels"] < 80


def test_a_quantized_program(run: Run, tmp_path: Path) -> None:
    x = (torch.randn(2, 3, 8, 8),)
    converted = quantize_pt2e(torch.export.export(Small().eval(), x), XNNPACKQuantizer(), [x])
    save(converted, x, tmp_path / "m.pt2")
    call = ("inspect", tmp_path / "m.pt2", "--json", tmp_path / "m.json")
    code, text, err = run(*call)
    assert code == 0 and "quantized by" in text and "for XNNPACK" in text
    assert err.count("\n") == 1 and "quantize and dequantize operator(s) already" in err
    said = json.loads((tmp_path / "m.json").read_text())["provenance"]
    assert said == provenance_in(tmp_path / "m.pt2")


def _digest(folder: Path) -> str:
    """By hand: of ten batches of two images the seventh is held out; the last image is left."""
    images = np.load(folder / "images.npz")["arr_0"]
    found = hashlib.sha256()
    for start in (0, 2, 4, 6, 8, 10, 14, 16, 18):
        found.update(b"torch.float32(2, 3, 8, 8);")
        found.update(images[start : start + 2].tobytes())
    return found.hexdigest()


def test_a_float_file_says_nothing_of_where_it_comes_from(run: Run, tmp_path: Path) -> None:
    program = torch.export.export(
        Small().eval(),
        (torch.randn(3, 3, 8, 8),),
        dynamic_shapes=({0: torch.export.Dim("n", min=2, max=9)},),
    )
    executorch.lower(program).save(tmp_path / "m.pte")
    code, text, _ = run("inspect", tmp_path / "m.pte")
    assert code == 0 and "says nothing of where it comes from" in text
    assert "float32[up to 9, " in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.pte", b"no program", "no ExecuTorch program"),
        ("m.onnx", b"no model", "no ONNX model"),
        ("m.bin", b"????ET12 and no more", "no ExecuTorch program"),
        ("m.pt2", b"nothing", "not written by torch.export.save"),
    ],
)
def test_what_is_no_file_of_its_kind(
    run: Run, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    fails(run("inspect", tmp_path / name), 1, message)
    fails(run("inspect", tmp_path / "missing.pte"), 1, "no such file")


def test_a_finished_file_is_quantized_by_no_backend(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.pte").write_bytes(
        executorch.lower(torch.export.export(Small().eval(), (torch.randn(2, 3, 8, 8),))).buffer
    )
    result = run("inspect", tmp_path / "m.pte", "--backend", "x86")
    fails(result, 1, "is finished: nothing is quantized of it")
