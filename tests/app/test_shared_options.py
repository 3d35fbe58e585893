"""Options that commands share mean the same in each, and are there before torch is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from support.command_line import Run, fails
from typer.main import get_command

from pt2q import offers
from pt2q.algorithms import ALGORITHMS
from pt2q.app import cli
from pt2q.app.program_file import read_program
from pt2q.deploy.registry import BACKENDS

HOW = {"backend", "recipe", "per_tensor", "dynamic"}
DATA = {"calibration", "limit", "seed", "held_out"}
COMMANDS = {
    "quantize": {*HOW, *DATA, "metric", "json"},
    "compare": {*HOW, *DATA, "metric", "json", "worst"},
    "sensitivity": {*HOW, *DATA, "metric", "json", "worst", "batches"},
    "search": {*HOW, *DATA, "metric", "json", "batches"},
    "doctor": {*HOW, *DATA, "json"},
    "report": {*HOW, *DATA, "batches"},
    "draw": {*HOW, *DATA},
    "inspect": {*HOW, "json"},
}


def _options(command: str) -> dict[str, Any]:
    group: Any = get_command(cli.app)
    return {option.name: option for option in group.commands[command].params}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_what_makes_sense(command: str) -> None:
    assert COMMANDS[command] <= set(_options(command))


def test_an_option_means_the_same_everywhere() -> None:
    said: dict[str, set[tuple[Any, ...]]] = {}
    for command, names in COMMANDS.items():
        for name in names - ({"calibration"} if command == "draw" else set()):
            option = _options(command)[name]
            what = (*option.opts, option.help, str(option.default))
            said.setdefault(name, set()).add(what)
    assert {name: len(what) for name, what in said.items()} == dict.fromkeys(said, 1)


def test_names_are_known_before_things_are_loaded() -> None:
    assert tuple(ALGORITHMS) == offers.ALGORITHMS
    assert tuple(offers.BACKENDS) == tuple(BACKENDS)[: len(offers.BACKENDS)]
    assert offers.DEFAULT_BACKEND in offers.BACKENDS


WITHOUT = """
import sys
sys.argv[0] = "pt2q"  # as the installed command has it
from pt2q.app import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    print("loaded:", [name for name in ("torch", "numpy") if name in sys.modules])
    sys.exit(end.code)
"""


@pytest.mark.parametrize("words", ["--help", "quantize --help", "inspect --help", "--version"])
def test_help_is_there_before_torch(words: str) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, *words.split()], capture_output=True)
    assert done.returncode == 0 and done.stdout.decode().splitlines()[-1] == "loaded: []"


def test_an_option_that_is_missing_is_said_before_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "quantize", "m.pt2"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "loaded: []\n"
    assert "--calibration" in done.stderr or "--out" in done.stderr


METRIC = """
import torch

def accuracy(results, positions):
    labels = torch.load(LABELS)
    right = [result.argmax(1) == labels[2 * at : 2 * at + 2]
             for result, at in zip(results, positions, strict=True)]
    return torch.cat(right).float().mean()

def place(results, positions):
    return positions[0] + 100 * len(positions)

def lost(results, positions):
    raise KeyError("labels")

def words(results, positions):
    return "good"
"""


@pytest.fixture
def metric(folder: Path, tmp_path: Path) -> Path:
    """Of labels that the float model itself gave."""
    images = torch.from_numpy(np.load(folder / "images.npz")["arr_0"][:20])
    model = read_program(folder / "small.pt2").module()
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(1) for part in images.split(2)])
    torch.save(labels, tmp_path / "labels.pt")
    path = tmp_path / "metric.py"
    path.write_text(f"LABELS = {str(tmp_path / 'labels.pt')!r}\n{METRIC}")
    return path


def test_a_metric_and_json(run: Run, folder: Path, tmp_path: Path, metric: Path) -> None:
    given = (folder / "small.pt2", "--calibration", folder / "images.npz")
    out, written = tmp_path / "m.onnx", tmp_path / "m.json"
    code, text, err = run(
        *("quantize", *given, "-o", out, "--json", written, "--seed", 4, "--limit", 5),
        *("--metric", f"{metric}:accuracy", "--per-tensor", "--backend", "onnxruntime"),
    )
    assert (code, err) == (0, "")
    assert "metric" in text and "float 1, quantized 1, file 1" in text
    found = json.loads(written.read_text())
    assert (found["calibrated"], found["held_out"]) == (5, 1)
    assert found["held_out_how"] == "drawn by seed 4"
    assert found["metric"] == {"float": 1.0, "quantized": 1.0, "file": 1.0}
    assert found["bytes"]["quantized"] == out.stat().st_size
    assert 20 < found["sqnr"]["file"] < 80 and found["file"] == str(out)
    assert {row["node"] for row in found["operators"] if row["quantized"]} >= {"conv2d", "linear"}
    code, text, err = run(
        *("compare", *given, "--metric", f"{metric}:place", "--json", written, "--seed", 4),
    )
    assert (code, err) == (0, "")
    # One batch is held out, the fourth of ten; positions are those in the data.
    line = text.splitlines()[-1]
    position = int(float(line.split()[2].rstrip(",")) - 100)
    assert line == f"metric: float {100 + position}, quantized {100 + position}"
    assert json.loads(written.read_text())["metric"]["float"] == 100 + position
    assert 0 <= position < 10


@pytest.mark.parametrize(
    ("name", "message"),
    [("lost", "metric .*:lost: it fails: KeyError"), ("words", "it fails: ValueError")],
)
def test_a_metric_that_is_wrong(
    run: Run, folder: Path, tmp_path: Path, metric: Path, name: str, message: str
) -> None:
    given = (folder / "small.pt2", "--calibration", folder / "images.npz")
    out, options = tmp_path / "m.onnx", ("--backend", "onnxruntime")
    fails(
        run("quantize", *given, "-o", out, *options, "--metric", f"{metric}:{name}"),
        1,
        message,
    )
    assert not out.exists()
    same = run("compare", *given, "--metric", f"{metric}:place", "--json", metric)
    fails(same, 1, r"is read by this command \(--metric\)")


def test_an_option_of_its_own_takes_the_place_of_the_shared_one() -> None:
    assert not _options("draw")["calibration"].required
    assert _options("report")["calibration"].required
    assert isinstance(cli.app, typer.Typer)


def test_inspecting_in_another_mode(run: Run, folder: Path, tmp_path: Path) -> None:
    code, text, err = run("inspect", folder / "small.pt2", "--dynamic", "--backend", "xnnpack")
    assert (code, err) == (0, "") and "dynamic" in text
    written = tmp_path / "found.json"
    code, _, _ = run("inspect", folder / "small.pt2", "--dynamic", "--json", written)
    assert code == 0 and "openvino" not in written.read_text()
