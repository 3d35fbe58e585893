"""Decoders of transformers in bfloat16: every linear layer is quantized, in every way."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "checkpoint_decoder.py"
# Least SQNR in dB.
LEAST = {"8da4w, groups of 32": 12}


@pytest.mark.slow
def test_every_linear_layer_is_quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As measured for 309 million parameters, here with a few thousand."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    benchmark = runpy.run_path(str(BENCHMARK))
    path = tmp_path / "decoder.pt2"
    benchmark["export"]("tiny", path)
    for name in benchmark["QUANTIZERS"]:
        found = benchmark["measure"](name, path, "tiny", low=False)
        assert found["linears"] == [15, 15], name
        assert found["embeddings"] == [int("embedding" in name), 1]
        assert found["linears_types"] == found["embeddings_types"] == ["torch.bfloat16"]
        assert found["sqnr_db"] > LEAST.get(name, 30), name
    low = benchmark["measure"]("dynamic and embedding", path, "tiny", low=True)
    plain = benchmark["measure"]("dynamic and embedding", path, "tiny", low=False)
    assert {k: low[k] for k in ("linears", "sqnr_db")} == {
        k: plain[k] for k in ("linears", "sqnr_db")
    }
