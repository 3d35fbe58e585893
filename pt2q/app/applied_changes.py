"""What the doctor or a search changes, put into a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch.export import ExportedProgram

from pt2q.algorithms import ALGORITHMS
from pt2q.app.recipe import Override, Recipe, Settings
from pt2q.app.recipe.config import FLOAT as FLOAT_MODE
from pt2q.app.recipe.config import WIDE, config_for, default_settings
from pt2q.debug.diagnosis.changes import (
    ALGORITHM,
    CHANNEL,
    DEFAULT,
    FLOAT,
    FORM,
    OBSERVER,
    WEIGHT_RANGES,
    Change,
    configurations,
)
from pt2q.deploy.registry import BACKENDS
from pt2q.errors import RecipeError
from pt2q.quantizers import QuantizationConfig


def with_changes(recipe: Recipe, program: ExportedProgram, changes: Iterable[Change]) -> Recipe:
    """A recipe that says what changes did.

    Args:
        recipe: what they were made to.
        program: the model.
        changes: in order; that of data is nothing that a recipe says.

    Raises:
        RecipeError: an algorithm is added to an effort, which chooses them itself.
    """
    asked = list(changes)
    configs = configurations(recipe.quantizer(), program) if any(c.nodes for c in asked) else {}
    nodes: dict[str, Settings] = {}
    for change in asked:
        for node in change.nodes:
            before = nodes.get(node) or ruling(recipe, configs, node)
            nodes[node] = _changed(before, change, recipe)
    own = [o for o in recipe.overrides if not (o.kind == "node" and o.name in nodes)]
    made = [Override("node", node, settings) for node, settings in nodes.items()]
    added = tuple(ALGORITHMS[c.value]() for c in asked if c.kind == ALGORITHM)
    if added and recipe.effort is not None:
        raise RecipeError(
            f"the recipe has an effort, which chooses algorithms: give [[algorithm]] tables "
            f"instead, among them {', '.join(a.name for a in added)}"
        )
    return replace(
        recipe,
        overrides=(*own, *made),
        algorithms=(*recipe.algorithms, *added),
    )


def ruling(recipe: Recipe, configs: Mapping[str, QuantizationConfig | None], node: str) -> Settings:
    """The settings of a recipe that rule a node.

    Args:
        recipe: the recipe.
        configs: what its quantizer was told about each node.
        node: its name.
    """
    backend, config = BACKENDS[recipe.backend], configs.get(node)
    said = [recipe.default, *(override.settings for override in recipe.overrides)]
    return next((s for s in said if config_for(backend, s) == config), recipe.default)


def _changed(settings: Settings, change: Change, recipe: Recipe) -> Settings:
    if change.kind == FLOAT:
        return replace(recipe.default, mode=FLOAT_MODE)
    if change.kind == OBSERVER:
        return replace(settings, activation_observer=change.value)
    if change.kind == CHANNEL:
        return replace(settings, weight_scales="channel")
    if change.kind == FORM and change.value == WIDE:
        return replace(settings, activation_dtype=WIDE)
    if change.kind == FORM:
        limits = WEIGHT_RANGES[change.value]
        return settings if limits is None else replace(settings, weight_range=limits)
    assert change.kind == DEFAULT
    return default_settings(BACKENDS[recipe.backend])
