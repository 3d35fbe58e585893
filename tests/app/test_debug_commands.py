"""The commands that look for lost accuracy, on small models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.command_line import Run, fails

from pt2q.app.recipe import parse
from pt2q.app.recipe.writing import recipe_text


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the model with a constant and a keyword."""
    path = tmp_path_factory.mktemp("data") / "data.pt"
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(12, 6, generator=generator), torch.rand(12, 4, generator=generator)
    torch.save({"x": x, "mask": mask}, path)
    return path


def within_80(out: str) -> bool:
    """All but the paths of files."""
    lines = [line for line in out.splitlines() if not line.startswith("written: ")]
    return max(map(len, lines)) <= 80


def test_sensitivity(run: Run, folder: Path, tmp_path: Path) -> None:
    given = ("sensitivity", folder / "small.pt2", "--calibration", folder / "images.npz")
    metric = tmp_path / "metric.py"
    metric.write_text("def spread(results, positions):\n    return float(results[0].std())\n")
    written = tmp_path / "rows.json"
    code, out, err = run(*given, "--json", written, "--worst", 4, "--batches", 2)
    assert (code, err) == (0, "")
    assert within_80(out) and "SQNR in dB; everything quantized: " in out
    found = json.loads(written.read_text())
    assert {row["kind"] for row in found["rows"]} == {"weight", "activation", "layer"}
    assert found["batches"] == 2
    code, out, err = run(*given, "--metric", f"{metric}:spread", "--state", tmp_path / "state")
    assert (code, err) == (0, "") and "metric; everything" in out
    fails(run(*given, "--metric", f"{metric}:none"), 1, "no function 'none'")
    fails(run(*given, "--metric", "metric.py"), 1, "expected FILE.py:FUNCTION")
    fails(run(*given, "--metric", "none.py:f"), 1, "no such file")


def test_sensitivity_takes_constants_and_keywords(run: Run, folder: Path, data: Path) -> None:
    code, out, err = run("sensitivity", folder / "masked.pt2", "--calibration", data)
    assert (code, err) == (0, "")
    assert "linear" in out


def test_inspect(run: Run, folder: Path, tmp_path: Path) -> None:
    written = tmp_path / "model.json"
    code, out, err = run("inspect", folder / "small.pt2", "--json", written)
    assert (code, err) == (0, "")
    assert within_80(out) and "left in float" in out and "onnxruntime" in out
    found = json.loads(written.read_text())
    assert set(found) == {"inputs", "outputs", "operators", "parameters", "macs", "backends"}
    assert found["macs"] == 2 * 8 * 3 * 9 * 64 + 2 * 8 * 4
    code, out, err = run("inspect", folder / "small.pt2", "--backend", "xnnpack")
    assert (code, err) == (0, "") and within_80(out) and "operators quantized" in out
    fails(run("inspect", folder / "small.pt2", "--backend", "none"), 1, "none")


def test_draw(run: Run, folder: Path, tmp_path: Path) -> None:
    model, data = folder / "small.pt2", folder / "images.npz"
    text, node_data = tmp_path / "graph.dot", tmp_path / "overlay.json"
    assert run("draw", model, "-o", text) == (0, f"written: {text}\n", "")
    assert "cluster_conv" in text.read_text() and " dB" not in text.read_text()
    assert run("draw", model, "--calibration", data, "-o", text)[0] == 0
    assert " dB" in text.read_text()
    assert run("draw", model, "--calibration", data, "-o", node_data)[0] == 0
    assert json.loads(node_data.read_text())["graph"]["results"]["linear"]["value"] > 10
    fails(run("draw", model, "-o", node_data), 1, "give --calibration")
    fails(run("draw", model, "-o", tmp_path / "graph.txt"), 1, "write one of")


def test_report(run: Run, folder: Path, tmp_path: Path) -> None:
    given = ("report", folder / "small.pt2", "--calibration", folder / "images.npz")
    page = tmp_path / "report.html"
    assert run(*given, "-o", page) == (0, f"written: {page}\n", "")
    assert "<h1>small.pt2</h1>" in page.read_text()
    fails(run(*given, "-o", tmp_path / "report.pdf"), 1, "write .*report.html")


def test_doctor_writes_a_recipe_that_mends(run: Run, folder: Path, tmp_path: Path) -> None:
    model, data = folder / "small.pt2", folder / "images.npz"
    few, mended = tmp_path / "few.toml", tmp_path / "mended.toml"
    few.write_text('[[override]]\nmodule = "conv"\nweight_range = [-2, 1]\n')
    given = ("doctor", model, "--calibration", data, "--recipe", few)
    code, out, err = run(*given, "-o", mended, "--json", tmp_path / "found.json")
    assert (code, err) == (0, "")
    assert within_80(out) and "1. few bits" in out and f"written: {mended}" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["after_db"] > found["before_db"] + 5
    code, out, err = run(
        "sensitivity", model, "--calibration", data, "--recipe", mended, "--batches", 1,
        "--json", tmp_path / "again.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["whole_db"] == pytest.approx(found["after_db"], abs=0.01)


def test_a_recipe_is_written_as_it_is_read() -> None:
    text = """
    [default]
    weight_scales = "tensor"
    [skip]
    modules = ["head"]
    nodes = ["add"]
    [[override]]
    node = "linear_1"
    activation_observer = "minmax"
    [[override]]
    module_type = "torch.nn.Linear"
    mode = "dynamic"
    weight_scales = "channel"
    [[algorithm]]
    name = "smooth_quant"
    [[algorithm]]
    name = "gptq"
    damping = 0.02
    [calibration]
    limit = 7
    """
    recipe = parse(text)
    assert parse(recipe_text(recipe, ["why"])) == recipe
    assert recipe_text(recipe, ["why"]).startswith("# why\n")
    effort = parse('effort = "fast"\nseed = 3')
    assert parse(recipe_text(effort)) == effort


def test_search(run: Run, folder: Path, tmp_path: Path) -> None:
    given = ("search", folder / "small.pt2", "--calibration", folder / "images.npz")
    recipe = tmp_path / "chosen.toml"
    code, out, err = run(*given, "--min-sqnr", 25, "-o", recipe, "--json", tmp_path / "found.json")
    assert (code, err) == (0, "") and within_80(out)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["met"] and found["value"] >= 25 and len(found["layers"]) == 2
    assert parse(recipe.read_text()).backend == "xnnpack"
    recipe.unlink()
    code, out, err = run(*given, "--min-sqnr", 90, "--candidates", "int8", "-o", recipe)
    assert code == 3 and "no recipe is written" in err and not recipe.exists()
    fails(run(*given), 1, "give one bound")
