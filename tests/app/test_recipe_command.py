"""Recipes on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import Run
from torch import Tensor, nn

import pt2q
from pt2q.app.program_file import read_program
from pt2q.app.recipe import template


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, program: Any) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    torch.export.save(program, folder / "net.pt2")
    np.savez(folder / "images.npz", image=np.random.default_rng(0).normal(size=(12, 3, 8, 8)))
    data = np.load(folder / "images.npz")["image"].astype(np.float32)
    np.savez(folder / "images.npz", image=data)
    return folder


def quantize(run: Run, folder: Path, *args: object) -> tuple[int, str, str]:
    data = folder / "images.npz"
    return run("quantize", folder / "net.pt2", "--calibration", data, *args)


def test_init_prints_or_writes(run, tmp_path) -> None:
    assert run("recipe", "init", "--backend", "x86") == (0, template("x86"), "")
    assert run("recipe", "init", "-o", "-") == (0, template(), "")
    assert not Path("-").exists()
    path = tmp_path / "new" / "recipe.toml"
    assert run("recipe", "init", "-o", path) == (0, f"written: {path}\n", "")
    assert path.read_text() == template()
    code, _, err = run("recipe", "init", "-o", path)
    assert code == 1
    assert "is there already" in err


def test_quantize_with_a_recipe(run, folder, tmp_path) -> None:
    path = tmp_path / "recipe.toml"
    text = template().replace("modules = []", 'modules = ["blocks.*"]')
    path.write_text(text + "limit = 2\n")
    out = tmp_path / "net.pte"
    code, text, err = quantize(run, folder, "-o", out, "--recipe", path, "--report")
    assert (code, err) == (0, "")
    assert "2 batch(es), 1 more held out" in text
    assert text.count("float: module name 'blocks.*' is set to None") == 8
    assert re.search(r"quantized +│ 3 of \d+ operators", text)
    assert out.is_file()


@pytest.mark.parametrize(
    "backend, expected",
    [
        ("onnxruntime", r"integer kernels +│ .*1 QLinearConv"),
        ("tensorrt", r"in ONNX Runtime"),
    ],
)
def test_onnx_backends(run, folder, tmp_path, backend, expected) -> None:
    pytest.importorskip("onnxruntime")
    from pt2q.deploy import onnx

    out = tmp_path / "net.onnx"
    code, text, err = quantize(run, folder, "-o", out, "--backend", backend)
    assert (code, err) == (0, "")
    assert re.search(expected, text)
    assert float(re.search(r"(\d+\.\d) dB", text)[1]) > 20  # type: ignore[index]
    x = torch.randn(2, 3, 8, 8)
    exact = read_program(folder / "net.pt2").module()(x)
    (found,) = onnx.load(out)(x)
    assert pt2q.sqnr(exact, found) > 15


@pytest.mark.slow
def test_x86(run, folder, tmp_path) -> None:
    out = tmp_path / "net.pt2"
    code, text, err = quantize(run, folder, "-o", out, "--backend", "x86")
    assert (code, err) == (0, "")
    assert re.search(r"int8 kernels +│ \d of \d convolutions and products", text)
    assert re.search(r"MB, with code; float tensors", text)
    assert float(re.search(r"(\d+\.\d) dB", text)[1]) > 20  # type: ignore[index]


def test_command_line_mistakes(run, folder, tmp_path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(template("x86"))
    cases = [
        (("-o", tmp_path / "a.pte", "--backend", "x86"), "x86 reads .pt2 files: write .*a.pt2"),
        (("-o", tmp_path / "a.pt2", "--recipe", tmp_path / "no.toml"), "cannot be read"),
        (
            ("-o", tmp_path / "a.pte", "--recipe", path, "--backend", "xnnpack"),
            r"is for x86, not for xnnpack: leave --backend out",
        ),
        (("-o", tmp_path / "a.onnx", "--backend", "tensorrt", "--dynamic"), "does not run mode"),
        (("-o", folder / "x" / ".." / "net.pt2", "--backend", "x86"), "read by this command"),
    ]
    for args, message in cases:
        code, text, err = quantize(run, folder, *args)
        assert (code, text) == (1, "")
        assert err.count("\n") == 1
        assert re.search(message, err), err


def test_the_report_comes_before_a_failure(run, tmp_path) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    x = torch.randn(2, 1, 4, 4, 4)
    torch.export.save(torch.export.export(Deep().eval(), (x,)), tmp_path / "deep.pt2")
    np.savez(tmp_path / "x.npz", x=np.zeros((6, 1, 4, 4, 4), np.float32))
    code, text, err = run(
        *("quantize", tmp_path / "deep.pt2", "--calibration", tmp_path / "x.npz"),
        *("-o", tmp_path / "deep.pte", "--report"),
    )
    assert code == 3
    assert "aten.conv3d.default" in text
    assert "pt2q: " in err
