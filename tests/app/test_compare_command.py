"""pt2q compare."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from support.command_line import Run, fails

from pt2q.app.data.holding_out import read_data
from pt2q.app.program_file import read_program


def test_compare(run: Run, folder: Path, tmp_path: Path) -> None:
    from pt2q import convert_pt2e, debug, prepare_pt2e
    from pt2q.quantizers import XNNPACKQuantizer

    code, out, err = run(
        "compare", folder / "small.pt2", "--calibration", folder / "images.npz",
        "--json", tmp_path / "report.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    program = read_program(folder / "small.pt2")
    data = read_data(program, folder / "images.npz")
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    for batch in data.calibration:
        prepared(*batch)
    expected = debug.compare(program, convert_pt2e(prepared), data.held_out)
    assert out == f"{expected.text(80)}\n"
    assert max(map(len, out.splitlines())) <= 80
    assert (tmp_path / "report.json").read_text() == f"{expected.to_json()}\n"
    short = run(
        "compare", folder / "small.pt2", "--calibration", folder / "images.npz", "--worst", 2
    )
    assert short[:2] == (0, f"{expected.worst(2).text(80)}\n")


def test_compare_in_the_runtime(run: Run, folder: Path, tmp_path: Path) -> None:
    given = (
        "compare", folder / "small.pt2", "--calibration", folder / "images.npz", "--in-runtime"
    )  # fmt: skip
    code, out, err = run(*given, "--json", tmp_path / "values.json")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80 and "values inside the runtime" in out
    rows = json.loads((tmp_path / "values.json").read_text())["rows"]
    assert min(row["total"]["sqnr"] for row in rows) > 20
    fails(run(*given, "--backend", "x86"), 1, "shows no values inside; those of xnnpack")


def test_compare_takes_constants_and_keywords(run: Run, folder: Path, tmp_path: Path) -> None:
    data = {"x": torch.randn(12, 6), "mask": torch.rand(12, 4)}
    torch.save(data, tmp_path / "data.pt")
    code, out, err = run(
        "compare", folder / "masked.pt2", "--calibration", tmp_path / "data.pt",
        "--backend", "onnxruntime",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "linear" in out and "outputs over 1 batch: " in out
    missing = folder / "none.pt2"
    fails(run("compare", missing, "--calibration", tmp_path / "data.pt"), 1, "no such file")
