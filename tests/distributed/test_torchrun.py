"""``torchrun ... -m pt2q quantize`` writes what one process writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import Small


@pytest.fixture
def job(tmp_path: Path) -> Path:
    example = (torch.randn(1, 3, 8, 8),)
    torch.export.save(torch.export.export(Small().eval(), example), tmp_path / "small.pt2")
    np.savez(tmp_path / "images.npz", torch.randn(14, 3, 8, 8).numpy())
    return tmp_path


def run(folder: Path, processes: int, out: str, *options: str) -> subprocess.CompletedProcess[str]:
    given = ("small.pt2", "--calibration", "images.npz", "-o", out, *options)
    return run_pt2q(folder, processes, *given)


def run_pt2q(folder: Path, processes: int, *given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command += ["pt2q", "quantize", *given]
    # As many threads in each process as torchrun gives it.
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=settings, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend, suffix", [("xnnpack", ".pte"), ("onnxruntime", ".onnx")])
def test_the_same_file_byte_for_byte(job: Path, backend: str, suffix: str) -> None:
    for processes in (1, 2, 3, 4):
        done = run(job, processes, f"{processes}{suffix}", "--backend", backend)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written:") == 1
    first, *others = ((job / f"{n}{suffix}").read_bytes() for n in (1, 2, 3, 4))
    assert all(other == first for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("backend, suffix", [("xnnpack", ".pte"), ("onnxruntime", ".onnx")])
def test_the_same_file_with_an_algorithm(job: Path, backend: str, suffix: str) -> None:
    for processes in (1, 2, 3, 4):
        out = f"{processes}{suffix}"
        done = run(job, processes, out, "--backend", backend, "--algorithm", "gptq")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written:") == done.stdout.count("layers changed by") == 1
    first, *others = ((job / f"{n}{suffix}").read_bytes() for n in (1, 2, 3, 4))
    assert all(other == first for other in others)


@pytest.mark.slow
def test_the_same_file_of_several_programs(job: Path) -> None:
    pair = torch.export.export(Small().eval(), (torch.randn(2, 3, 8, 8),))
    weights = torch.export.load(job / "small.pt2").state_dict
    pair.state_dict.update(weights)
    torch.export.save(pair, job / "pair.pt2")
    np.savez(job / "pairs.npz", torch.randn(28, 3, 8, 8).numpy())
    given = ["--calibration", "one=images.npz", "--calibration", "two=pairs.npz"]
    for processes in (1, 2, 3):
        options = [*given, "--algorithm", "gptq"]
        done = run_pt2q(
            job, processes, "one=small.pt2", "two=pair.pt2", *options, "-o", f"{processes}.pte"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written:") == 1
    first, *others = ((job / f"{n}.pte").read_bytes() for n in (1, 2, 3))
    assert all(other == first for other in others)


@pytest.mark.slow
def test_nothing_is_written_when_it_fails(job: Path) -> None:
    np.savez(job / "images.npz", np.full((14, 3, 8, 8), np.nan, dtype=np.float32))
    done = run(job, 2, "never.pte")
    assert done.returncode != 0
    assert "NaN or infinity in input image" in done.stderr
    assert not (job / "never.pte").exists()
