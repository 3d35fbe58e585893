"""What a layer's inputs are like: the sums that say what an error in a weight does to the output.

For ``y = x W^T`` the squared error of the output is ``tr(D H D^T)``, where ``D`` is the error of
the weight and ``H = sum x x^T`` (Hassibi and Stork 1993, "Second order derivatives for network
pruning: Optimal Brain Surgeon", section 2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pt2q.algorithms.samples import Sample

_ROWS = 8192


@dataclass(frozen=True)
class Moments:
    """Sums over all positions of all calls.

    Attributes:
        within: ``sum x x^T`` of the quantized inputs, ``[groups, k, k]``, float64.
        across: ``sum (f - x) x^T`` with the float inputs ``f``, of the same shape.
        count: how many positions.
    """

    within: Tensor
    across: Tensor
    count: int

    @property
    def importance(self) -> Tensor:
        """The mean square of each input, ``[groups, 1, k]`` in float32."""
        return (self.within.diagonal(dim1=1, dim2=2) / max(self.count, 1)).float()[:, None]


@torch.no_grad()
def moments(samples: Iterable[Sample]) -> Moments:
    """The sums over a layer's calls.

    Args:
        samples: at least one.
    """
    within = across = torch.zeros((), dtype=torch.float64)
    count = 0
    for sample in samples:
        form = sample.use.form
        rounded = form.columns(sample.rounded).float()
        missing = form.columns(sample.floating).float() - rounded
        for start in range(0, rounded.shape[1], _ROWS):
            x, d = rounded[:, start : start + _ROWS], missing[:, start : start + _ROWS]
            within = within + (x.transpose(1, 2) @ x).double()
            across = across + (d.transpose(1, 2) @ x).double()
        count += rounded.shape[1]
    return Moments(within, across, count)
