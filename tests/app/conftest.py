"""What the tests of the commands run on: saved programs with data, and a program for recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import Masked, Run, Small
from support.recipe_programs import Net

from pt2q.app import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    torch.export.save(
        torch.export.export(Small().eval(), (torch.randn(2, 3, 8, 8),)), folder / "small.pt2"
    )
    inputs, mask = (torch.randn(3, 6), 0.5), {"mask": torch.ones(3, 4)}
    torch.export.save(torch.export.export(Masked().eval(), inputs, mask), folder / "masked.pt2")
    images = np.random.default_rng(0).standard_normal((21, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "images.npz", images)
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(arg) for arg in args])
        printed = capfd.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),))
