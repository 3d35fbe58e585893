"""pt2q compare."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from support.command_line import Masked, Run, fails
from torch import nn

from pt2q import sqnr
from pt2q.app.data.holding_out import read_data
from pt2q.app.data.reading import read_batches
from pt2q.app.program_file import read_program
from pt2q.deploy import executorch, onnx
from pt2q.deploy.signature import signature_of


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


def test_an_input_may_be_called_as_a_function_of_python(run: Run, tmp_path: Path) -> None:
    """As that of nn.Sequential is: the graph's node then has another name than the argument."""
    program = torch.export.export(nn.Sequential(nn.Linear(8, 4)).eval(), (torch.randn(1, 8),))
    torch.export.save(program, tmp_path / "a.pt2")
    torch.save(torch.randn(20, 8), tmp_path / "data.pt")
    given = ("compare", tmp_path / "a.pt2", "--calibration", tmp_path / "data.pt")
    code, out, err = run(*given)
    assert (code, err) == (0, "") and "outputs over 2 batches" in out
    executorch.lower(program).save(tmp_path / "a.pte")
    code, out, err = run(*given, "--file", tmp_path / "a.pte")
    assert (code, err) == (0, "") and "over 20 batches" in out
    other = nn.Sequential(nn.Linear(8, 5)).eval()
    executorch.lower(other, (torch.randn(1, 8),)).save(tmp_path / "b.pte")
    fails(run(*given, "--file", tmp_path / "b.pte"), 1, r"gives linear\).*made from this model")


@pytest.mark.parametrize(("suffix", "backend"), [("pte", "xnnpack"), ("onnx", "onnxruntime")])
def test_compare_of_a_finished_file(
    run: Run, folder: Path, tmp_path: Path, suffix: str, backend: str
) -> None:
    model, data, out = folder / "small.pt2", folder / "images.npz", tmp_path / f"m.{suffix}"
    call = ("--calibration", data, "--backend", backend)
    assert run("quantize", model, *call, "-o", out)[0] == 0
    given = ("compare", model, *call, "--file", out, "--json", tmp_path / "found.json")
    code, text, err = run(*given)
    assert (code, err) == (0, "") and "linear" in text and "over 10 batches" in text
    (row,) = json.loads((tmp_path / "found.json").read_text())["rows"]
    program = read_program(model)
    batches = read_batches(data, signature_of(program))
    loaded = executorch.load(out) if suffix == "pte" else onnx.load(out)
    exact = torch.cat([program.module()(*batch) for batch in batches])
    ran = torch.cat([loaded(*batch)[0] for batch in batches])
    assert row["node"] == "linear"
    assert row["total"]["sqnr"] == pytest.approx(float(sqnr(exact, ran)), abs=1e-3)
    assert f"results of {out.name} in" in text and "values inside" not in text
    metric = tmp_path / "metric.py"
    metric.write_text(
        "def mean(results, places):\n    return sum(float(r.mean()) for r in results)\n"
    )
    code, text, _ = run(*given, "--metric", f"{metric}:mean")
    said = json.loads((tmp_path / "found.json").read_text())["metric"]
    assert code == 0 and "metric: float " in text and said["quantized"] is None
    means = [sum(float(row.detach().mean()) for row in whole.split(2)) for whole in (exact, ran)]
    assert [said["float"], said["file"]] == pytest.approx(means, abs=1e-5)
    inside = run(*given, "--in-runtime")
    if suffix == "onnx":
        assert inside[0] == 0 and "relu" in inside[1]
    else:
        fails(inside, 1, "the values inside can be had of .onnx files alone")


def test_what_cannot_be_compared_as_a_file(run: Run, folder: Path, tmp_path: Path) -> None:
    model, data = folder / "small.pt2", folder / "images.npz"
    call = ("compare", model, "--calibration", data, "--file")
    fails(run(*call, model), 1, "is no finished .pte, .onnx or .pt2 package")
    fails(run(*call, tmp_path / "none.pte"), 1, "cannot read .*: No such file")
    two = torch.export.export(Masked().eval(), (torch.randn(3, 6), 0.5), {"mask": torch.ones(3, 4)})
    executorch.lower(two).save(tmp_path / "two.pte")
    fails(run(*call, tmp_path / "two.pte"), 1, "input 0 of method 'forward'|takes 3 input")
    package = tmp_path / "m.pt2"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("m/data/aotinductor/model/code.so", b"")
    fails(run(*call, package), 1, "machine code, which comparing runs: .* --trust compare")
