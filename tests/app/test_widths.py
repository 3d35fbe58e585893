"""Every table that a command prints keeps within 80 columns, whatever layers are called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import Run
from torch import Tensor, nn

from pt2q.app import cli

NAME = "a_layer_with_a_name_that_goes_on_and_on_as_those_of_generated_models_do"


class Long(nn.Module):
    """Layers, inputs and modules with names that fill a line."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.ModuleDict({f"{NAME}_{i}": nn.Linear(8, 8) for i in range(2)})
        self.add_module(f"{NAME}_outer", inner)

    def forward(self, an_input_with_a_name_that_is_longer_than_what_is_usual: Tensor) -> Tensor:
        x = an_input_with_a_name_that_is_longer_than_what_is_usual
        for layer in self.get_submodule(f"{NAME}_outer").children():
            x = torch.sin(layer(x))
        return x


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[object, ...]]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("long")
    model = folder / f"{NAME}.pt2"
    torch.export.save(torch.export.export(Long().eval(), (torch.randn(2, 8),)), model)
    np.savez(folder / "x.npz", np.random.default_rng(0).standard_normal((20, 8), np.float32))
    yield model, "--calibration", folder / "x.npz"


COMMANDS: dict[str, tuple[str, ...]] = {
    "quantize": ("-o", "{out}.onnx", "--backend", "onnxruntime", "--report", "--effort", "fast"),
    "compare": (),
    "sensitivity": ("--batches", "1"),
    "doctor": ("--trials", "1"),
    "search": ("--min-sqnr", "20", "--batches", "1", "-o", "{out}.toml"),
    "report": ("-o", "{out}.html", "--batches", "1"),
    "draw": ("-o", "{out}.dot"),
    "inspect": (),
}


def too_wide(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > 80]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(
    command: str,
    run: Run,
    given: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # what is written is named in a line of its own
    options = [option.format(out="m") for option in COMMANDS[command]]
    data = () if command == "inspect" else given[1:]
    code, text, _ = run(command, given[0], *data, *options)
    assert code == 0 and not too_wide(text)
    if command == "quantize":
        assert "it holds" in text
        for more in (("inspect", "m.onnx"), ("compare", *given, "--file", "m.onnx")):
            code, text, _ = run(*more)
            assert code == 0 and not too_wide(text)


def test_every_command_is_among_them() -> None:
    found = cli.app.registered_commands
    known = {each.name or getattr(each.callback, "__name__", "") for each in found}
    assert known == {*COMMANDS, "demo"}
