"""Arm's quantizer, which rewrites a model before it annotates, on language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pt2q import convert_pt2e, prepare_pt2e, sqnr

arm = pytest.importorskip("executorch.backends.arm.quantizer")
pytest.importorskip("transformers")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# What int8 everywhere leaves of them on this net: 13.9, 12.0, 12.8 and 17.4 dB. Its own stack gives
# 2.8 dB, and fails on the others.
LEAST = {"opt": 10.0, "gpt2": 9.0, "mixtral": 9.0, "falcon": 13.0}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_gradients"),
    pytest.mark.filterwarnings("ignore"),
]


def quantizer() -> Any:
    from executorch.backends.arm.tosa.specification import TosaSpecification

    made = arm.TOSAQuantizer(TosaSpecification.create_from_string("TOSA-1.0+INT"))
    return made.set_global(arm.get_symmetric_quantization_config())


@pytest.mark.parametrize("name", LEAST)
def test_integers_of_a_language_model_stay_integers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from zoo import subject

    work = subject(name)
    exported = torch.export.export(work.model, work.calibration[0])
    prepared = prepare_pt2e(exported.module(check_guards=False), quantizer())
    for batch in work.calibration:
        prepared(*batch)
    converted = convert_pt2e(prepared)
    pairs = [(work.model(*batch), converted(*batch)) for batch in work.held_out]
    wanted, found = (torch.cat([t.flatten() for t in side]) for side in zip(*pairs, strict=True))
    assert sqnr(wanted, found) > LEAST[name]
