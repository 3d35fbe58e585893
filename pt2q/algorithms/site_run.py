"""A run of an algorithm that scales channels, site after site, each change judged first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import torch
from torch import Tensor

from pt2q.algorithms.engine import Lane, Walk
from pt2q.algorithms.engine.walk import FLOAT
from pt2q.algorithms.kept import Plain
from pt2q.algorithms.layers import Passed
from pt2q.algorithms.layerwise import Declined
from pt2q.algorithms.parting import Parting
from pt2q.algorithms.report import Report, Row, decibels
from pt2q.algorithms.task import Task
from pt2q.algorithms.transfer import Site, trial_of
from pt2q.algorithms.trial import Trial, energy, noise, outputs

Propose = Callable[[Site], tuple[Trial, str]]
"""Gives a change, and words for the report; may raise `Declined`."""


class SiteRun:
    """Walks a model in float and changes it at sites.

    Args:
        name: the algorithm's.
        walk: has a floating lane.
        task: what was asked for.

    Attributes:
        rounding: the lane of the quantized model.
        passed: what is passed over.
        parting: what changes are computed from, and what they are judged by.
    """

    def __init__(self, name: str, walk: Walk, task: Task) -> None:
        self.name = name
        self.walk = walk
        self.task = task
        self.steps = count()
        self.rounding = Lane.rounding()
        self.rows: list[Row] = []
        self.passed: list[Passed] = []
        self.parting = Parting.of(walk)

    def scaled(
        self,
        factor: Callable[[Site], tuple[Tensor, str]],
        covers: Callable[[str], bool] = lambda words: False,
    ) -> Propose:
        """Propose to scale the channels of a site by what a function says.

        Args:
            factor: of a site, with words for the report.
            covers: whether, by these words, ranges between have to cover all.
        """

        def search(site: Site) -> Plain:
            try:
                found, words = factor(site)
            except Declined as reason:
                return {"passed": str(reason)}
            return {"factor": found, "words": words}

        def propose(site: Site) -> tuple[Trial, str]:
            found = self.task.kept.recall(next(self.steps), partial(search, site))
            if "passed" in found:
                raise Declined(found["passed"])
            trial = trial_of(self.walk, self.rounding, site, found["factor"])
            return trial.covering() if covers(found["words"]) else trial, found["words"]

        return propose

    @torch.no_grad()
    def run(
        self, sites: Sequence[Site], propose: Propose, enough: Callable[[Site], float]
    ) -> Report:
        """Change the model.

        Args:
            sites: in the order of the graph.
            propose: says what to change.
            enough: the share of the error that has to be gone, by site; a change that leaves more
                is not made.
        """
        for done, site in enumerate(sites):
            if self.task.progress is not None:
                self.task.progress(done, len(sites), f"{self.name}: {site.name}")
            self.walk.advance(site.source.node)
            start = time.perf_counter()
            try:
                self._work_on(site, propose, enough(site), start)
            except Declined as reason:
                self.passed.append(Passed(site.name, str(reason)))
        return Report(tuple(self.rows), tuple((self.name, item) for item in self.passed))

    def _work_on(self, site: Site, propose: Propose, enough: float, start: float) -> None:
        trial, words = propose(site)
        exact = outputs(self.walk, site.targets, self.walk.lanes[FLOAT], self.parting)
        # Ranges as they are have seen what judges; those of the change have not.
        ranks = self.walk.ranks
        found = outputs(self.walk, site.targets, self.rounding, self.parting)
        before = noise(ranks, exact, found)
        trial.observe(site.observers, self.parting)
        after = noise(ranks, exact, trial.outputs(site.targets, self.parting))
        if kept := after < before * (1 - enough):
            if self.parting.apart:  # what is kept has seen all data, as calibration has
                trial.observe(site.observers, self.parting, rest=True)
            trial.make()
        signal = energy(ranks, exact)
        error = "less error" if kept else "too little gained"
        error += " on held-out batches" if self.parting.apart else " on the only batch"
        self.rows.append(
            Row(
                self.name,
                site.name,
                site.layers[0][0].module,
                decibels(signal, before),
                decibels(signal, after),
                kept,
                f"{words}: {error}" if words else error,
                time.perf_counter() - start,
            )
        )
