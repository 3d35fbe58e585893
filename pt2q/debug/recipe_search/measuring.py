"""The ranking: what each layer loses in each form, one pass over the model for each form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.fx import Node

from pt2q.algorithms.engine import Program
from pt2q.algorithms.task import Progress
from pt2q.debug.diagnosis.changes import FLOAT, FORM, Change, Setup
from pt2q.debug.inspection.macs import macs
from pt2q.debug.recipe_search.table import Assignment, Unit
from pt2q.debug.sensitivities.result import Sensitivity
from pt2q.debug.sensitivities.sensitivity import sensitivity
from pt2q.debug.sensitivities.subjects import Rounded, layers, rounded_tensors
from pt2q.errors import AnnotationError
from pt2q.ir.module import QuantGraphModule

LOST = 1e6
"""The noise of what gives NaN, or nothing of the signal."""


def measured_units(
    setup: Setup,
    forms: Sequence[str],
    batches: Sequence[Any],
    passes: float,
    processes: int,
    progress: Progress | None,
) -> tuple[tuple[Unit, ...], tuple[str, ...]]:
    """The units of a model with what they lose in each form.

    Args:
        setup: quantizes the model.
        forms: those to choose from; forms that the backend does not run are passed over.
        batches: to measure on.
        passes: bounds each pass, see `sensitivity`.
        processes: how many share a pass.
        progress: is told where it stands.

    Returns:
        The units, and the forms that are left.
    """
    base, _ = setup.prepared()
    found = _units(base)
    noise: dict[str, dict[str, float]] = {unit.name: {} for unit in found}
    kept = []
    for form in forms:
        lost = _noise(setup, form, found, batches, passes, processes, progress)
        if lost is None:
            continue
        kept.append(form)
        for unit in found:
            noise[unit.name][form] = lost.get(unit.name, 0.0)
    units = tuple(Unit(u.name, u.nodes, u.module, u.macs, u.numbers, noise[u.name]) for u in found)
    return units, tuple(kept)


def _noise(
    setup: Setup,
    form: str,
    units: Sequence[Unit],
    batches: Sequence[Any],
    passes: float,
    processes: int,
    progress: Progress | None,
) -> dict[str, float] | None:
    """What each unit loses in one form; None if the backend does not run it."""
    if form == FLOAT:
        return {unit.name: 0.0 for unit in units}
    changes = changes_of(units, {unit.name: form for unit in units})
    try:
        model, _ = setup.prepared(changes)
    except AnnotationError:
        return None
    names = {unit.name for unit in units}
    found = sensitivity(
        model,
        batches,
        by_group=False,
        nodes=names,
        passes=passes,
        processes=processes,
        progress=progress,
    )
    return shares(found)


def shares(found: Sensitivity) -> dict[str, float]:
    """What each layer has to do with the noise of all, so that they add up to it.

    The noise of a layer alone leaves out what the others' makes of it; how much less there is
    without the layer leaves out that others may lose the same. The mean of the two is the Shapley
    value of two layers, and near that of more. Where the signal is lost in the noise of all, the
    first alone says something.

    Args:
        found: the sensitivity of all layers.
    """
    whole = _noise_of(found.whole)
    alone = {row.nodes[0]: _noise_of(row.alone) for row in found}
    if whole >= 1:
        return alone
    relief = {row.nodes[0]: whole - _noise_of(row.without) for row in found}
    means = {name: max((noise + relief[name]) / 2, 0.0) for name, noise in alone.items()}
    total = sum(means.values())
    return {name: mean * whole / total for name, mean in means.items()} if total else alone


def _noise_of(decibels: float) -> float:
    return min(10 ** (-decibels / 10), LOST) if not math.isnan(decibels) else LOST


def changes_of(units: Iterable[Unit], assignment: Assignment) -> tuple[Change, ...]:
    """What an assignment says to a quantizer.

    Args:
        units: the units.
        assignment: the form of each.
    """
    by_form: dict[str, list[str]] = {}
    for unit in units:
        by_form.setdefault(assignment[unit.name], []).extend(unit.nodes)
    return tuple(
        Change(FLOAT, tuple(nodes)) if form == FLOAT else Change(FORM, tuple(nodes), form)
        for form, nodes in by_form.items()
    )


def _units(model: QuantGraphModule) -> list[Unit]:
    program = Program(model)
    calls = rounded_tensors(program)
    counted = macs(model)
    readers = _readers(calls)
    found = []
    for subject in layers(calls):
        path, node = readers[subject.nodes[0]]
        mine = [c for c in calls if c.is_weight and c.path == path and node in c.node.users]
        numbers = sum(_numel(c.source) for c in mine)
        nodes = tuple(path + n.name for n in _chain(model, node))
        module = subject.modules[0] if subject.modules else ""
        name = subject.nodes[0]
        found.append(Unit(name, nodes, module, counted.get(name, 0), numbers, {}))
    return found


def _readers(calls: Iterable[Rounded]) -> Mapping[str, tuple[str, Node]]:
    return {c.path + u.name: (c.path, u) for c in calls if c.is_weight for u in c.node.users}


def _numel(node: Node) -> int:
    value = node.meta.get("val")
    return 0 if value is None else int(value.numel())


def _chain(model: QuantGraphModule, node: Node) -> list[Node]:
    """An operator with what is fused after it: values between are not rounded."""
    found = [node]
    while len(node.users) == 1:
        (user,) = node.users
        if user.op != "call_function" or len(user.all_input_nodes) != 1:
            break
        found.append(user)
        node = user
    return found
