"""AWQ: protect the weights that large activations meet.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
equations 4 and 5. A weight multiplied by ``s > 1`` before it is rounded, its input divided by the
same, errs ``s`` times less, as long as the range of its group stays what it is. The factor of input
channel ``j`` is

    s_j = mean |x_j|^a

with its largest and smallest value around 1, and the ``a`` between 0 and 1 with the least error of
the output. As in SmoothQuant the division goes into what makes the value; the weights' ranges are
then best searched, too (`ScaleSearch`, `GPTQ`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pt2q.algorithms.engine import Lane
from pt2q.algorithms.engine.runner import Values
from pt2q.algorithms.engine.walk import FLOAT
from pt2q.algorithms.layers import Passed, find_layers
from pt2q.algorithms.report import Report
from pt2q.algorithms.site_run import SiteRun
from pt2q.algorithms.sites import in_order, nearest_sites
from pt2q.algorithms.strength_search import Families, StrengthSearch, over_inputs, readers_of
from pt2q.algorithms.task import GraphAlgorithm, Task
from pt2q.algorithms.transfer import Site


@dataclass(frozen=True)
class AWQ(GraphAlgorithm):
    """Scale the input channels of weights by what they are multiplied with.

    Args:
        strengths: those to choose from, site by site.
    """

    name: ClassVar[str] = "awq"

    strengths: tuple[float, ...] = tuple(i / 20 for i in range(1, 20))

    def improve(self, task: Task) -> Report:
        """See `GraphAlgorithm.improve`."""
        with task.walk([Lane.floating()]) as walk:
            layers = find_layers(walk.program)
            found = nearest_sites(walk.program, layers)
            run = SiteRun(self.name, walk, task)
            run.passed = [
                *layers.passed,
                *(
                    Passed(layer.name, "nothing before it can take a factor")
                    for layer in layers.found
                    if layer.name not in found
                ),
            ]
            search = run.scaled(StrengthSearch(run, {"strength": self.strengths}, family))
            return run.run(in_order(walk.program, found), search, lambda site: 0.0)


def family(run: SiteRun, site: Site) -> Families:
    """``s`` for a strength, from the inputs to fit on.

    Args:
        run: stands before the site.
        site: whose channels they are.
    """
    total, count = torch.zeros(site.reach.count), torch.zeros(site.reach.count)
    readers = readers_of(site)
    wanted = list(dict.fromkeys(reader.use.x for reader in readers))

    def sums(row: Values) -> list[tuple[Tensor, int]]:
        inputs = [over_inputs(r.use, run.parting.to_fit(row[r.use.x])).float() for r in readers]
        return [(x.abs().sum(0), len(x)) for x in inputs]

    rows = run.walk.replay(wanted, run.walk.lanes[FLOAT], batches=run.parting.fit)
    for row in run.walk.shared(map(sums, rows), run.parting.fit):
        for reader, (found, positions) in zip(readers, row, strict=True):
            known = reader.labels >= 0
            places = reader.labels[known].long()
            total.index_add_(0, places, found[known])
            count.index_add_(0, places, torch.full(places.shape, float(positions)))
    mean = total / count.clamp(min=1)
    return {"strength": lambda strength: factor_of(mean, strength, site.reach.free)}


def factor_of(mean: Tensor, strength: float, free: Tensor) -> Tensor:
    """``mean |x_j|^a``, with the product of its largest and smallest value 1.

    Args:
        mean: of each channel.
        strength: ``a``.
        free: whether each channel may be scaled; others have 1.
    """
    usable = free & (mean > 0)
    factor = torch.ones_like(mean)
    if bool(usable.any()):
        logs = strength * mean[usable].double().log()
        middle = (logs.amax() + logs.amin()) / 2
        factor[usable] = (logs - middle).exp().clamp(1e-4, 1e4).float()
    return factor
