"""Comparing changes nothing that it is given and keeps no batch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import torch
from support.comparing import ConvBn, Mlp, build, convert
from torch import Tensor

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.debug import (
    compare,
)
from pt2q.ir.graph import dump
from pt2q.quantizers import XNNPACKQuantizer


def test_nothing_of_the_models_given_changes() -> None:
    _, program, inputs = build(ConvBn, 4, 3, 8, 8)
    prepared = prepare_pt2e(program, XNNPACKQuantizer())
    prepared(inputs[0])
    converted = convert_pt2e(prepared)
    module = program.module()
    models = (module, prepared, converted)
    texts = [dump(m) for m in models]
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    records = [(list(m.record.notes), dict(m.record.facts)) for m in (prepared, converted)]
    modes = [[x.training for x in m.modules()] for m in models]
    compare(module, prepared, [10 * x for x in inputs])
    compare(module, converted, inputs)
    assert [dump(m) for m in models] == texts
    assert [[x.training for x in m.modules()] for m in models] == modes
    for model, state in zip(models, states, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [(m.record.notes, m.record.facts) for m in (prepared, converted)] == records
    convert_pt2e(prepared)


def test_batches_are_not_kept() -> None:
    _, program, inputs = build(Mlp, 64, 16)
    converted = convert(program, inputs)
    alive: list[int] = []
    made: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for _ in range(4):
            gc.collect()
            alive.append(sum(ref() is not None for ref in made))
            batch = torch.randn(64, 16)
            made.append(weakref.ref(batch))
            yield batch
            del batch

    compare(program, converted, stream())
    assert len(alive) == 4 and max(alive) <= 1
