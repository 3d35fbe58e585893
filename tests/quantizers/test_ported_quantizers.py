"""Quantizers of ExecuTorch with their imports changed give the graphs that the adapter gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.ported_quantizers import CASES
from support.ported_stack import PEER, python, write_ported

PACKAGES = (
    "apple.coreml.quantizer",
    "arm",
    "cadence.aot",
    "cortex_m",
    "example",
    "qualcomm",
    "samsung",
    "vulkan",
    "xnnpack.quantizer",
)
MINUTES = 30

pytestmark = [pytest.mark.slow, pytest.mark.timeout(MINUTES * 60)]

Records = dict[str, dict[str, Any]]


def records(folder: Path, *ported: Path) -> Records:
    result = folder / "records.json"
    ran = python(
        "-m", "support.ported_quantizers", result, *ported, folder=folder, timeout=MINUTES * 30
    )
    assert result.exists(), ran.stdout[-3000:] + ran.stderr[-3000:]
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Records, Records]:
    """As they are installed, and with changed imports."""
    folder = tmp_path_factory.mktemp("ported")
    for package in PACKAGES:
        assert write_ported(f"executorch.backends.{package}", folder, (PEER,)), package
    return records(tmp_path_factory.mktemp("installed")), records(folder, folder)


@pytest.mark.parametrize("name", CASES)
def test_the_graph_is_that_of_the_adapter(name: str, both: tuple[Records, Records]) -> None:
    adapted, ported = (found[name] for found in both)
    assert (adapted["is_ours"], ported["is_ours"]) == (False, True)
    assert ported["graph"] == adapted["graph"]
    assert "quantized_decomposed" in ported["graph"] or "dequantize" in ported["graph"]
    assert ported["stored"] == adapted["stored"]
