"""Bias correction: give back what rounding shifts a layer's outputs by, on average.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section
4.2, in its empirical form (appendix D): for every output channel

    b' = b + mean (y - y'),

where ``y`` is the float output and ``y'`` what the quantized layer gives for the inputs that the
quantized layers before it give. Layers are gone through in order, each behind those corrected. A
layer without a bias gets one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pt2q.algorithms.layerwise import Declined, LayerAlgorithm, Proposal, Work
from pt2q.algorithms.samples import Sample
from pt2q.ir import ops
from pt2q.ir.graph import observed_value, real_readers


@dataclass(frozen=True)
class BiasCorrection(LayerAlgorithm):
    """Correct the mean of each output channel."""

    name: ClassVar[str] = "bias_correction"

    def propose(self, work: Work) -> Iterator[Proposal]:
        """The bias that makes the means equal on the calls to fit on."""
        if work.use.bias is None and not ops.is_op(work.use.node, TAKES_BIAS):
            raise Declined("its operator takes no bias")
        if len(work.layer.uses) > 1 and len({use.bias for use in work.layer.uses}) > 1:
            raise Declined("its calls have different biases")
        if work.use.bias is not None and (reason := fixed_bias(work)):
            raise Declined(reason)
        missing = mean_error(work)
        if not bool(torch.isfinite(missing).all()):
            raise Declined("its outputs are not finite")
        yield Proposal(bias=missing if work.rounded_bias is None else work.rounded_bias + missing)


TAKES_BIAS = ops.LINEAR | ops.CONV | ops.CONV_GENERIC


def fixed_bias(work: Work) -> str:
    """Why the bias of a layer cannot be changed; nothing if it can."""
    owner, calls = work.use.owner, {use.node for use in work.layer.uses}
    assert work.use.bias is not None
    source = observed_value(owner, work.use.bias)
    if source.op != "get_attr":
        return f"its bias is computed in the graph, at {source.name}"
    others = sorted(user.name for user in real_readers(owner, source) - calls)
    return f"its bias is also read by {', '.join(others)}" if others else ""


def mean_error(work: Work) -> Tensor:
    """``mean (y - y')`` of each output channel, over all positions of the calls to fit on."""

    def of_one(sample: Sample) -> tuple[Tensor, int]:
        exact = sample.use.run(sample.floating, work.weight, work.bias)
        found = sample.use.run(sample.rounded, work.rounded, work.rounded_bias)
        channels = sample.use.form.channels(exact - found)
        return channels.double().sum(0), channels.shape[0]

    total, count = torch.zeros((), dtype=torch.float64), 0
    for errors, positions in work.samples.fitted(of_one):
        total, count = total + errors, count + positions
    return (total / max(count, 1)).to(work.weight.dtype)
