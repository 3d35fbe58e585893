"""The flow step by step, with the laws of the graph checked at each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pt2q import (
    QuantGraphModule,
    Quantizer,
    convert_pt2e,
    prepare_pt2e,
)
from pt2q.ir.module import import_exported
from support.laws import assert_laws, assert_values_match
from support.results import assert_same


def imported(model: nn.Module, *inputs: Any, **options: Any) -> QuantGraphModule:
    """Exported in evaluation mode and imported: what passes are given."""
    return import_exported(torch.export.export(model.eval(), inputs, **options))


def calibrated(program: Any, quantizer: Quantizer, *calls: tuple[Any, ...]) -> QuantGraphModule:
    """An exported program, prepared and called with the arguments of each call."""
    ready = prepare_pt2e(program, quantizer)
    with torch.no_grad():
        for call in calls:
            ready(*call)
    return ready


def quantized(
    model: nn.Module, quantizer: Quantizer, *inputs: Any, calls: Any = None, **options: Any
) -> QuantGraphModule:
    """Exported, calibrated on the inputs (or on several calls) and converted."""
    program = torch.export.export(model, inputs, **options)
    done = convert_pt2e(calibrated(program, quantizer, *(calls or [inputs])))
    assert_laws(done, converted=True)
    return done


def exported(model: nn.Module, *inputs: Any, **options: Any) -> torch.fx.GraphModule:
    return torch.export.export(model.eval(), inputs, **options).module()


def prepared(model: nn.Module, quantizer: Quantizer, *inputs: Any) -> QuantGraphModule:
    """Exported, prepared and calibrated on the inputs."""
    result = prepare_pt2e(exported(model, *inputs), quantizer)
    assert_same(result(*inputs), model(*inputs), 1e-5)  # observers change nothing
    assert_laws(result, converted=False)
    assert_values_match(result, inputs)
    return result


def converted(model: nn.Module, quantizer: Quantizer, *inputs: Any, **options: Any) -> Any:
    """(converted, what it computes): calibrated on, checked on, and called with the inputs."""
    result = convert_pt2e(prepared(model, quantizer, *inputs), **options)
    assert_laws(result, converted=True)
    assert_values_match(result, inputs)
    value = result(*inputs)
    again = torch.export.export(result, inputs)
    assert_same(again.module()(*inputs), value)
    return result, value


def targets(model: QuantGraphModule) -> list[Any]:
    return [n.target for n in model.graph.nodes if n.op == "call_function"]
