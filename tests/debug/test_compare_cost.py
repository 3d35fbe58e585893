"""What a comparison runs, counted; and sums of large values against those in double precision."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from support.comparing import ConvBn, build, convert
from torch.fx import Node

from pt2q import debug
from pt2q.debug import graph_runner
from pt2q.debug.comparison.common_value import CommonValue
from pt2q.debug.error_sums import ErrorSums


def test_each_operator_runs_twice_per_batch_and_weights_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, program, inputs = build(ConvBn, 2, 3, 8, 8, batches=4)
    converted = convert(program, inputs)
    run: Counter[str] = Counter()
    original = graph_runner._called

    def counted(module: Any, node: Node) -> Any:
        run[f"{node.name} of {len(module.graph.nodes)}"] += 1
        return original(module, node)

    monkeypatch.setattr(graph_runner, "_called", counted)
    debug.compare(program, converted, inputs)
    weights = [name for name in run if "dequantize_per_channel" in name]
    assert len(weights) >= 3 and all(run[name] == 1 for name in weights)
    assert max(run.values()) == 2 * len(inputs)


def test_each_value_is_rounded_for_its_readers_three_times_per_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is seen in each of the two runs of the quantized model, and once for what is put in."""
    _, program, inputs = build(ConvBn, 2, 3, 8, 8, batches=2)
    converted = convert(program, inputs)
    rounded: Counter[int] = Counter()
    values: dict[int, CommonValue] = {}
    for name in ("seen", "rounded"):
        original = getattr(CommonValue, name)

        def counted(self: CommonValue, value: Any, original: Any = original) -> Any:
            rounded[id(self)] += 1
            values[id(self)] = self
            return original(self, value)

        monkeypatch.setattr(CommonValue, name, counted)
    debug.compare(program, converted, inputs[:1])
    assert len(values) >= 8
    assert all(rounded[key] == 3 * value.calls for key, value in values.items())


@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e18, math.nan])
def test_large_values_are_summed_as_in_double_precision(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(300, 401, generator=generator) * (1.0 if math.isnan(scale) else scale)
    other = one + one.std() * 1e-2 * torch.randn(300, 401, generator=generator)
    if math.isnan(scale):
        other[5, 7] = math.nan
    sums, exact = ErrorSums(), ErrorSums()
    assert not sums.add(one, other)
    assert not exact.add(one.double(), other.double())
    found, expected = sums.result(), exact.result()
    assert found is not None and expected is not None
    assert found.sqnr == pytest.approx(expected.sqnr, abs=1e-4)
    assert found.cosine == pytest.approx(expected.cosine, abs=1e-6)
    assert found.max_abs == pytest.approx(expected.max_abs, rel=1e-5)
    assert found.nonfinite == expected.nonfinite == int(math.isnan(scale))
