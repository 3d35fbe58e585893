"""What a layer's inputs are like: the sums that say what an error in a weight does to the output.

For ``y = x W^T`` the squared error of the output is ``tr(D H D^T)``, where ``D`` is the error of
the weight and ``H = sum x x^T`` (Hassibi and Stork 1993, "Second order derivatives for network
pruning: Optimal Brain Surgeon", section 2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

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
        rounded: ``sum x``, ``[groups, k]``, float64.
        missing: ``sum f - x``, of the same shape.
    """

    within: Tensor
    across: Tensor
    count: int
    rounded: Tensor
    missing: Tensor

    @property
    def importance(self) -> Tensor:
        """The mean square of each input, ``[groups, 1, k]`` in float32."""
        return (self.within.diagonal(dim1=1, dim2=2) / max(self.count, 1)).float()[:, None]

    @property
    def mean_rounded(self) -> Tensor:
        """The mean of the quantized inputs, ``[groups, k]``."""
        return self.rounded / max(self.count, 1)

    @property
    def mean_floating(self) -> Tensor:
        """The mean of the float inputs, ``[groups, k]``."""
        return (self.rounded + self.missing) / max(self.count, 1)

    def centred(self) -> Moments:
        """The sums of what the means leave: all that counts where a bias makes up for means."""
        means = self.mean_rounded[:, None]
        within = self.within - self.rounded[..., None] * means
        return replace(self, within=within, across=self.across - self.missing[..., None] * means)


@torch.no_grad()
def moments(samples: Iterable[Sample]) -> Moments:
    """The sums over a layer's calls.

    Args:
        samples: at least one.
    """
    within = across = first = second = torch.zeros((), dtype=torch.float64)
    count = 0
    for sample in samples:
        form = sample.use.form
        rounded = form.columns(sample.rounded).float()
        missing = form.columns(sample.floating).float() - rounded
        for start in range(0, rounded.shape[1], _ROWS):
            x, d = rounded[:, start : start + _ROWS], missing[:, start : start + _ROWS]
            within = within + (x.transpose(1, 2) @ x).double()
            across = across + (d.transpose(1, 2) @ x).double()
            first, second = first + x.double().sum(1), second + d.double().sum(1)
        count += rounded.shape[1]
    return Moments(within, across, count, first, second)
