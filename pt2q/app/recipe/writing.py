"""A recipe as text that `parse` reads back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from pt2q.app.recipe.config import FLOAT, Settings, default_settings
from pt2q.app.recipe.recipe import Override, Recipe
from pt2q.app.requirements import Requirements
from pt2q.deploy.registry import BACKENDS

_LISTS = {
    "module": "modules",
    "module_type": "module_types",
    "operator": "operators",
    "node": "nodes",
}


def recipe_text(recipe: Recipe, comments: Iterable[str] = ()) -> str:
    """A recipe as TOML.

    Args:
        recipe: the recipe; what it says as its backend does by itself is left out.
        comments: lines at the beginning.
    """
    usual = default_settings(BACKENDS[recipe.backend])
    parts = [
        "".join(f"# {line}\n" for line in comments),
        _head(recipe),
        _table("[decompositions]", _said(recipe.decompositions)),
        _table("[default]", _stated(recipe.default, usual)),
        _table("[skip]", _skipped(recipe)),
        *(_override(o, recipe.default) for o in recipe.overrides if not _is_skip(o, recipe)),
        *map(_algorithm, recipe.algorithms),
        _table("[require]", _required(recipe.require)),
        _table("[calibration]", {} if recipe.limit is None else {"limit": recipe.limit}),
    ]
    return "\n".join(filter(None, parts))


def _head(recipe: Recipe) -> str:
    lines = [f"backend = {json.dumps(recipe.backend)}\n"]
    for name in ("effort", "residual_projections", "embeddings", "seed"):
        value = getattr(recipe, name)
        if value != getattr(Recipe, name):
            lines.append(f"{name} = {json.dumps(value)}\n")
    return "".join(lines)


def _said(settings: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(settings).items() if value is not None}


def _required(found: Requirements) -> dict[str, Any]:
    usual = asdict(Requirements())
    return {key: value for key, value in asdict(found).items() if value != usual[key]}


def _algorithm(algorithm: Any) -> str:
    """An algorithm with the settings that are not its usual ones."""
    usual = {field.name: field.default for field in fields(algorithm)}
    said = {k: v for k, v in asdict(algorithm).items() if v != usual[k]}
    return _table("[[algorithm]]", {"name": algorithm.name, **said})


def _stated(settings: Settings, usual: Settings) -> dict[str, Any]:
    known = asdict(usual)
    return {k: v for k, v in asdict(settings).items() if v != known[k] and v is not None}


def _is_skip(override: Override, recipe: Recipe) -> bool:
    return override.settings == replace(recipe.default, mode=FLOAT)


def _skipped(recipe: Recipe) -> dict[str, Sequence[str]]:
    names: dict[str, list[str]] = {}
    for override in recipe.overrides:
        if _is_skip(override, recipe):
            names.setdefault(_LISTS[override.kind], []).append(override.name)
    return dict(names)


def _override(override: Override, default: Settings) -> str:
    said = {"mode": override.settings.mode, **_stated(override.settings, default)}
    return _table("[[override]]", {override.kind: override.name, **said})


def _table(header: str, values: dict[str, Any]) -> str:
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items()]
    return "".join([f"{header}\n", *lines]) if lines else ""
