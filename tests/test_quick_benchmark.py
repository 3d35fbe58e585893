"""The quick benchmark's verdict: neither blind nor shy of noise."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    "before, after, word",
    [
        ([1.0, 1.01, 0.99], [1.2, 1.21, 1.19], "SLOWER"),
        ([1.0, 1.01, 0.99], [0.8, 0.81, 0.79], "faster"),
        ([1.0, 1.01, 0.99], [1.04, 1.04, 1.04], "as before"),
        ([1.0, 1.3, 0.7], [1.2, 1.5, 0.9], "as before"),
        ([1.0, 1.3, 0.7], [2.0, 2.3, 1.7], "SLOWER"),
    ],
)
def test_verdict(
    before: list[float], after: list[float], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    program = runpy.run_path(str(BENCHMARKS / "quick.py"))
    ratio, found = program["verdict"](before, after)
    assert found == word
    assert ratio == pytest.approx(after[0] / before[0])
