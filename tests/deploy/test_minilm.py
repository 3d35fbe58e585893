"""The real MiniLM, exported as Hugging Face ships it, quantized and run by ExecuTorch."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from support import minilm
from torch import Tensor

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.deploy import executorch
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config

HELD_OUT = 12
CALIBRATION = 24
LAYERS = (1, pytest.param(6, marks=pytest.mark.slow))  # all of it takes minutes


@functools.cache
def encoder(layers: int) -> tuple[Any, torch.export.ExportedProgram, list[dict[str, Tensor]]]:
    model = minilm.load(num_hidden_layers=layers)
    texts = minilm.sentences()
    batches = minilm.encode(texts[:CALIBRATION] + texts[-HELD_OUT:])
    return model, minilm.export(model, batches[0]), batches


def mean_cosine(program: executorch.Program, layers: int) -> float:
    model, _, batches = encoder(layers)
    loaded = program.load()
    values = []
    for batch in batches[-HELD_OUT:]:
        mask = batch["attention_mask"]
        with torch.no_grad():
            expected = minilm.embedding(model(**batch).last_hidden_state, mask)
        found = minilm.embedding(loaded(*batch.values())[0], mask)
        values.append((expected * found).sum().item())
    return sum(values) / len(values)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize(("dynamic", "least"), [(False, 0.98), (True, 0.998)])
def test_embeddings_survive_quantization(dynamic: bool, least: float, layers: int) -> None:
    _, exported, batches = encoder(layers)
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = XNNPACKQuantizer().set_global(config)
    prepared = prepare_pt2e(exported, quantizer)
    if not dynamic:
        with torch.no_grad():
            for batch in batches[:CALIBRATION]:
                prepared(**batch)
    converted = convert_pt2e(prepared)
    program = executorch.lower(converted, kwargs=batches[0])
    assert program.delegation.quantized_left == ()
    assert mean_cosine(program, layers) >= least
    decisions = {row.operator: row.how for row in quantizer.report().rows}
    assert "int8" in decisions["aten.linear.default"]
