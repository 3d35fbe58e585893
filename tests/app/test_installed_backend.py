"""A target in a package of its own: installed, found by name, run through the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import run_code
from torch import nn

from pt2q import sqnr

EXAMPLE = Path(__file__).parents[2] / "examples" / "eager_backend"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed where nothing else is."""
    source = tmp_path_factory.mktemp("source") / "package"
    shutil.copytree(EXAMPLE, source)  # building leaves its traces beside the source
    site = tmp_path_factory.mktemp("site")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    install = (sys.executable, "-m", "pip", "install", *options, "--target", site, source)
    subprocess.run(install, check=True, capture_output=True)
    return site


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def pt2q(site: Path, *args: object) -> subprocess.CompletedProcess[str]:
    return python(site, "-m", "pt2q", *args)


def python(site: Path, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: nn.Module) -> Path:
    folder = tmp_path_factory.mktemp("model")
    exported = torch.export.export(model, (torch.randn(2, 3, 8, 8),))
    torch.export.save(exported, folder / "net.pt2")
    images = np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "images.npz", images)
    return folder


SEVERAL = """
import contextlib, io, json, sys
from pt2q.app import cli
results = []
for call in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(call)
    except SystemExit as done:
        results.append((done.code, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


def several(site: Path, *calls: tuple[object, ...]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of commands, run one after the other."""
    words = json.dumps([[str(word) for word in call] for call in calls])
    # A new process: one that is forked may have looked for packages already, where these are not.
    done = python(site, "-c", SEVERAL, words)
    assert (done.returncode, done.stderr) == (0, "")
    return [tuple(result) for result in json.loads(done.stdout)]


def test_help_recipes_and_limits_know_it(site: Path, folder: Path, tmp_path: Path) -> None:
    call = ("quantize", folder / "net.pt2", "--calibration", folder / "images.npz")
    eager = ("--backend", "eager", "--out", tmp_path / "net.eager")
    listed = pt2q(site, "quantize", "--help")
    assert listed.returncode == 0
    assert "eager" in listed.stdout
    written, dynamic = several(
        site, ("recipe", "init", "--backend", "eager"), (*call, *eager, "--dynamic")
    )
    code, text, err = written
    assert (code, err) == (0, "")
    assert 'backend = "eager"' in text
    assert '# "static" | "float"' in text
    assert "activation_range = [-128, 127]" in text
    refusal = "pt2q: eager does not run mode 'dynamic': choose from static, float\n"
    assert dynamic == (1, "", refusal)


def test_quantize_with_a_recipe_and_run(
    site: Path, folder: Path, model: nn.Module, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "net.eager"
    recipe.write_text('backend = "eager"\n[skip]\nmodules = ["4"]\n')
    call = ("quantize", folder / "net.pt2", "--calibration", folder / "images.npz")
    done = pt2q(site, *call, "--recipe", recipe, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "net.pt2 for eager" in done.stdout
    assert re.search(r"quantized +│ 2 of 4 operators", done.stdout)  # a convolution and its relu
    assert re.search(r"rounds +│ 2 values", done.stdout)

    x = torch.randn(2, 3, 8, 8)
    torch.save(x, tmp_path / "x.pt")
    script = f"""
import pathlib, torch, pt2q
from pt2q_eager.program_file import load
x = torch.load({str(tmp_path / "x.pt")!r})
torch.save(load(pathlib.Path({str(out)!r}))(x), {str(tmp_path / "y.pt")!r})
"""
    ran = run_code(script, path=site)
    assert (ran.returncode, ran.stderr) == (0, "")
    found = torch.load(tmp_path / "y.pt")
    with torch.no_grad():
        expected = model(x)
    assert sqnr(expected, found) > 30
    assert not torch.equal(expected, found)


def test_a_broken_package_is_named_and_harms_nobody_else(site: Path, tmp_path: Path) -> None:
    broken = tmp_path / "site"
    shutil.copytree(site, broken)
    (broken / "pt2q_eager" / "target.py").write_text("import no_such_runtime")
    init = ("recipe", "init", "--backend")
    (code, text, err), other = several(broken, (*init, "eager"), (*init, "xnnpack"))
    assert (code, text) == (1, "")
    assert err.startswith("pt2q: package pt2q-eager offers backend 'eager'")
    assert "No module named 'no_such_runtime'" in err
    assert (other[0], other[2]) == (0, "")
