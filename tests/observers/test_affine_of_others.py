"""Observers of torchao that write its own operators: each call of one gives one quantize."""

from __future__ import annotations

import torch
from support.own_observers import ActivationAndWeight, inputs, prepared_net, small_net
from torchao.quantization.granularity import PerGroup, PerToken
from torchao.quantization.pt2e._affine_quantization import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedPlaceholderObserver,
)
from torchao.quantization.pt2e.observer import MappingType

import pt2q

ACTIVATION = AffineQuantizedPlaceholderObserver.with_args(
    mapping_type=MappingType.ASYMMETRIC,
    target_dtype=torch.uint8,
    granularity=PerToken(),
    eps=torch.finfo(torch.float32).eps,
)
WEIGHT = AffineQuantizedMinMaxObserver.with_args(
    mapping_type=MappingType.ASYMMETRIC,
    target_dtype=torch.uint8,
    granularity=PerGroup(8),
    eps=torch.finfo(torch.float32).eps,
)


def test_groups_of_weights_are_stored_and_tokens_quantized_once() -> None:
    activation = pt2q.QuantizationSpec(torch.uint8, ACTIVATION, is_dynamic=True)
    weight = pt2q.QuantizationSpec(torch.uint8, WEIGHT, quant_min=0, quant_max=255)
    prepared = prepared_net(ActivationAndWeight(activation, weight))
    x = inputs()
    prepared(x)
    converted = pt2q.convert_pt2e(prepared)
    targets = [str(n.target) for n in converted.graph.nodes if n.op == "call_function"]
    calls = sum(1 for n in prepared.graph.nodes if n.op == "call_module")
    # Two weights are stored quantized; every other call of an observer is one quantize.
    assert targets.count("torchao.quantize_affine") == calls - 2
    assert targets.count("torchao.dequantize_affine") == calls
    stored = [v for v in converted.state_dict().values() if v.dtype == torch.uint8]
    assert sorted(tuple(v.shape) for v in stored) == [(4, 8), (8, 16)]
    assert pt2q.sqnr(small_net()(x), converted(x)) > 30
    unfolded = pt2q.convert_pt2e(prepared, fold_quantize=False)
    assert torch.equal(unfolded(x), converted(x))
