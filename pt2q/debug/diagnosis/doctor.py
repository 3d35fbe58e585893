"""Find out why accuracy is lost: rank by the output, look, try what may help, measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import Node

from pt2q.algorithms.engine import Program
from pt2q.algorithms.task import Progress
from pt2q.debug.diagnosis.causes import OTHERWISE, cause_of, proposals
from pt2q.debug.diagnosis.changes import CALIBRATION, FLOAT, Change, Setup
from pt2q.debug.diagnosis.data import calibration_findings
from pt2q.debug.diagnosis.evidence import evidence_of
from pt2q.debug.diagnosis.findings import Diagnosis, Finding
from pt2q.debug.diagnosis.trials import Trials
from pt2q.debug.inspection.macs import macs
from pt2q.debug.sensitivities.judging import SqnrJudge
from pt2q.debug.sensitivities.result import SensitivityRow
from pt2q.debug.sensitivities.sensitivity import float_results, sensitivity
from pt2q.debug.sensitivities.subjects import Rounded, Subject, groups, rounded_tensors
from pt2q.errors import DataError
from pt2q.ir import ops
from pt2q.ir.graph import module_path
from pt2q.ir.module import QuantGraphModule
from pt2q.quantizers import Report

ENOUGH = 0.8
"""The share of what leaving a tensor in float wins that is enough for a cheaper fix."""
WORTH = 0.5
"""A change has to win so many dB to be worth it."""
AGAIN, KEPT = 3.0, 0.5
"""A further change has to win so many dB, and leave such a share of all roundings; the first one
has to leave some."""
TRIALS = 40
"""How many changes are tried at most, if nothing else is said."""
CANDIDATES = 5
"""How many groups of tensors are looked into."""


def doctor(
    setup: Setup,
    held_out: Sequence[Any],
    *,
    calibration: Sequence[Any] = (),
    trials: int = TRIALS,
    progress: Progress | None = None,
) -> Diagnosis:
    """Say why accuracy is lost and what wins it back, measured.

    The groups of tensors are ranked by `sensitivity`; those that the output feels most are looked
    into, for the causes of `CAUSES`, and what may help against each is tried, the cheapest first.

    Args:
        setup: quantizes the model, as it is and with changes; see `QuantizerSetup`.
        held_out: batches that were not calibrated on. Half of them judge, the other half is what a
            better calibration is tried with.
        calibration: what was calibrated on, to be compared with the held-out data.
        trials: how many changes are tried at most; each takes a calibration and a run of the
            batches that judge. Ranking takes 25 runs of these at most.
        progress: is told where it stands.

    Returns:
        The findings, those whose fixes win most first, and the changes that are worth making
        together.

    Raises:
        DataError: there is no held-out batch.
    """
    if not held_out:
        raise DataError("the doctor needs batches that were not calibrated on; none is given")
    return _Visit(setup, held_out, calibration, trials, progress).diagnosis()


class _Visit:
    """One look at a model."""

    def __init__(
        self,
        setup: Setup,
        held_out: Sequence[Any],
        calibration: Sequence[Any],
        trials: int,
        progress: Progress | None,
    ) -> None:
        self.calibration, self.progress = calibration, progress
        self.judged = held_out[1::2] or held_out
        self.fit = held_out[::2]
        self.model, self.report = setup.prepared()
        judge = SqnrJudge(float_results(self.model, self.judged))
        self.trials = Trials(setup, self.judged, judge, trials, progress)

    def diagnosis(self) -> Diagnosis:
        """All of it."""
        calls = rounded_tensors(Program(self.model))
        self.rounded = self.trials.start(self.model)
        before = self.trials.before
        if not calls:
            return Diagnosis((_nothing_quantized(self.report),), before, before, ())
        found = [*self._of_data(), *self._of_tensors(calls)]
        found = _ranked(found)
        changes, after = self._together(found)
        found += [*_batch_norms(self.model), *_left_float(self.report, macs(self.model))]
        return Diagnosis(tuple(found), before, after, changes)

    def _of_data(self) -> list[Finding]:
        change = Change(CALIBRATION)
        found = calibration_findings(self.model, self.calibration, self.fit)
        gain = self.trials.gain(change) if found else 0.0
        return [
            Finding(f.cause, f.nodes, f.modules, f.evidence, gain, change)
            for f in found
            if gain >= WORTH
        ]

    def _of_tensors(self, calls: Sequence[Rounded]) -> list[Finding]:
        ranked = sensitivity(
            self.model, self.judged, by_layer=False, passes=25.0, progress=self.progress
        )
        worst = _suspects(ranked.groups, ranked.whole)
        by_nodes = {(s.kind, s.nodes): s for s in groups(calls)}
        subjects = [by_nodes[row.kind, row.nodes] for row in worst]
        seen = evidence_of(self.model, subjects, calls, self.judged)
        found = []
        for row, subject in zip(worst, subjects, strict=True):
            if subject.name not in seen:
                continue
            cause = cause_of(seen[subject.name], subject.kind)
            nodes = _operators_of(subject, calls)
            change, gain = self._best(proposals(cause, nodes, subject.kind))
            if cause is OTHERWISE and gain < WORTH:
                continue  # nothing is odd, and nothing to be won
            words = f"{cause.words(seen[subject.name])}; alone {row.alone:.1f} dB"
            found.append(
                Finding(cause.name, row.nodes, row.modules, words, gain, change, row.alone)
            )
        return found

    def _best(self, options: Sequence[Change]) -> tuple[Change | None, float]:
        """The first that wins nearly as much as float does; else that which wins most."""
        most = self.trials.gain(options[-1])
        if most == -math.inf:
            return None, 0.0  # there was no trial left
        gains = (
            [(change, self.trials.gain(change)) for change in options[:-1]] if most >= WORTH else []
        )
        for change, gain in gains:
            if gain >= max(ENOUGH * most, WORTH):
                return change, gain
        return max([*gains, (options[-1], most)], key=lambda pair: pair[1])

    def _together(self, found: Sequence[Finding]) -> tuple[tuple[Change, ...], float]:
        """The fixes that are worth it one after the other."""
        made: tuple[Change, ...] = ()
        reached = self.trials.before
        for finding in found:
            if finding.fix is None or finding.gain_db < WORTH or finding.fix in made:
                continue
            after, left = self.trials.of(*made, finding.fix)
            enough, least = (AGAIN, KEPT * self.rounded) if made else (WORTH, 1)
            if after >= reached + enough and left >= least:
                made, reached = (*made, finding.fix), after
        return made, reached


def _ranked(found: Sequence[Finding]) -> list[Finding]:
    """Those that win most first; of those that win nearly as much, the cheapest and plainest."""
    most = max((f.gain_db for f in found), default=0.0)

    def key(finding: Finding) -> tuple[Any, ...]:
        small = finding.gain_db < max(ENOUGH * most, WORTH)
        is_float = finding.fix is not None and finding.fix.kind == FLOAT
        alone = -math.inf if finding.alone_db is None else finding.alone_db
        unknown = finding.cause == OTHERWISE.name
        return small, -finding.gain_db if small else 0.0, unknown, is_float, alone

    return sorted(found, key=key)


def _suspects(rows: Sequence[SensitivityRow], whole: float) -> list[SensitivityRow]:
    """Those that cost most alone, and those without which most is won."""
    alone = sorted(rows, key=lambda row: row.alone)[:CANDIDATES]
    without = sorted(rows, key=lambda row: -row.without)[:CANDIDATES]
    gaining = [row for row in without if row.without > whole + WORTH]
    return list(dict.fromkeys([*gaining[:2], *alone, *gaining]))[: CANDIDATES + 1]


def _operators_of(subject: Subject, calls: Sequence[Rounded]) -> tuple[str, ...]:
    """The operators that read a group's tensors or make them, with what is fused before these."""
    found: dict[str, None] = {}
    for call in calls:
        if id(call.observer) not in subject.observers:
            continue
        readers = [user for user in call.node.users if user.op == "call_function"]
        for node in [*_makers(call.source), *readers]:
            found[call.path + node.name] = None
    return tuple(found)


def _makers(node: Node) -> list[Node]:
    found = []
    while node.op == "call_function":
        found.append(node)
        before = [n for n in node.all_input_nodes if n.op == "call_function"]
        if len(before) != 1 or len(before[0].users) != 1:
            break
        (node,) = before
    return found


def _nothing_quantized(report: Report) -> Finding:
    reasons = "; ".join(f"{len(rows)} x {reason}" for reason, rows in report.reasons().items())
    return Finding("nothing quantized", (), (), reasons or "there is no operator to quantize", 0.0)


def _batch_norms(model: QuantGraphModule) -> list[Finding]:
    nodes = [node for node in model.graph.nodes if ops.is_op(node, ops.BATCH_NORM)]
    if not nodes:
        return []
    words = "\n".join(str(note) for note in model.record.notes) or "no convolution alone feeds it"
    names, modules = _places(nodes)
    return [Finding("batch norm not folded", names, modules, words, 0.0)]


def _places(nodes: Sequence[Node]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    modules = dict.fromkeys(filter(None, map(module_path, nodes)))
    return tuple(node.name for node in nodes), tuple(modules)


def _left_float(report: Report, costs: Mapping[str, int]) -> list[Finding]:
    """Operators that stay in float, with what they are of all multiply-accumulates."""
    whole = sum(costs.values())
    found = []
    for reason, rows in report.reasons().items():
        share = sum(costs.get(row.node, 0) for row in rows) / whole if whole else 0.0
        words = f"{reason}; {share:.1%} of the multiply-accumulates"
        nodes = tuple(row.node for row in rows)
        modules = tuple(dict.fromkeys(row.module for row in rows if row.module))
        words = f"{words}; {reason.advice}" if reason.advice else words
        found.append(Finding("left in float", nodes, modules, words, 0.0))
    return found
