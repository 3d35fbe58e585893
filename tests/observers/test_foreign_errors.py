"""What is wrong in a foreign annotation is named."""

from __future__ import annotations

import pytest
import torch
import torchao.quantization.pt2e as peer
from support.foreign_quantizer import Foreign, OnlyWeights, flow
from torch.fx import Node
from torchao.quantization.pt2e import quantizer as peer_quantizer

import pt2q
from pt2q.errors import AnnotationError


@pytest.mark.parametrize(
    "spec, message",
    [
        (object(), "carries neither an observer"),
        (
            peer_quantizer.QuantizationSpec(
                dtype=torch.int8,
                quant_min=0,
                quant_max=255,
                qscheme=torch.per_tensor_affine,
                observer_or_fake_quant_ctr=peer.MinMaxObserver,
            ),
            r"linear is annotated with a QuantizationSpec .*\[0, 255\] does not fit torch.int8",
        ),
    ],
)
def test_a_spec_that_cannot_be_used_is_named(spec, message) -> None:
    with pytest.raises(AnnotationError, match=message):
        flow(pt2q.prepare_pt2e, pt2q.convert_pt2e, OnlyWeights(spec))


def test_a_foreign_annotation_that_is_none() -> None:
    class Odd(Foreign):
        def _linear(self, node: Node) -> None:
            node.meta["quantization_annotation"] = "int8"

    with pytest.raises(AnnotationError, match="carries a str as its annotation"):
        flow(pt2q.prepare_pt2e, pt2q.convert_pt2e, Odd())
