"""From a recipe file to a recipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pt2q.algorithms import ALGORITHMS
from pt2q.app.recipe.allowed import Allowed
from pt2q.app.recipe.config import FLOAT, Settings, config_for, default_settings, has_scales
from pt2q.app.recipe.mistakes import SELECTORS, Place, RecipeText
from pt2q.app.recipe.recipe import Override, Recipe, TakenApart
from pt2q.app.recipe.schema import (
    AlgorithmTable,
    BackendOnly,
    OverrideTable,
    RecipeTable,
    SkipTable,
    settings_table,
)
from pt2q.app.requirements import Requirements
from pt2q.deploy.backend import Backend
from pt2q.deploy.registry import BACKENDS
from pt2q.errors import AnnotationError, RecipeError, SpecError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load(path: str | PathLike[str]) -> Recipe:
    """Read a recipe file.

    Args:
        path: a TOML file; `template` writes one to start from.

    Raises:
        RecipeError: the file cannot be read, or says what cannot be; the message names the line,
            the key and what is allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, name: str = "recipe") -> Recipe:
    """Read a recipe from text.

    Args:
        text: TOML.
        name: what messages call it.

    Raises:
        RecipeError: see `load`.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name}: no valid TOML: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"{name}: nested too deeply") from error
    source = RecipeText(name, text.splitlines())
    backend, table = _validated(found, source)
    default = replace(default_settings(backend), **table.default.stated())
    skipped = _skipped(table.skip, default)
    overrides = [
        _override(index, override, backend, default, source)
        for index, override in enumerate(table.override)
    ]
    _check_once(skipped, overrides, source)
    algorithms = tuple(_algorithm(i, found, source) for i, found in enumerate(table.algorithm))
    if algorithms and table.effort is not None:
        raise source.error(("effort",), "it chooses the algorithms: leave it or [[algorithm]] out")
    _check_kernels(backend, default, overrides, source)
    return Recipe(
        backend.name,
        default,
        (*skipped, *overrides),
        table.calibration.limit,
        table.effort,
        algorithms,
        table.seed,
        Requirements(**table.require.model_dump()),
        table.residual_projections,
        table.embeddings,
        TakenApart(**table.decompositions.model_dump()),
    )


def _algorithm(index: int, table: AlgorithmTable, source: RecipeText) -> Any:
    """An algorithm with the settings of its table."""
    known = settings_table(table.name)
    try:
        found = known.model_validate(table.settings())
    except ValidationError as error:
        raise source.first_mistake(error, ("algorithm", index), known) from error
    stated = found.model_dump(exclude_unset=True)
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in stated.items()}
    return ALGORITHMS[table.name](**settings)


def _validated(found: Mapping[str, Any], source: RecipeText) -> tuple[Backend, RecipeTable]:
    try:
        backend = BACKENDS[BackendOnly.model_validate(found).backend]
        return backend, RecipeTable.model_validate(found, context=Allowed.by(backend))
    except ValidationError as error:
        raise source.first_mistake(error) from error


def _skipped(table: SkipTable, default: Settings) -> list[Override]:
    named = (
        ("module", table.modules),
        ("module_type", table.module_types),
        ("operator", table.operators),
        ("node", table.nodes),
    )
    settings = replace(default, mode=FLOAT)
    return [Override(kind, name, settings) for kind, names in named for name in names]


def _override(
    index: int, table: OverrideTable, backend: Backend, default: Settings, source: RecipeText
) -> Override:
    place = ("override", index)
    given = {kind: name for kind in SELECTORS if (name := getattr(table, kind)) is not None}
    if len(given) != 1:
        raise source.error(
            place,
            f"name what it is for with one of {', '.join(SELECTORS)}; found "
            f"{', '.join(given) or 'none'}",
        )
    ((kind, name),) = given.items()
    stated = table.stated()
    if "mode" not in stated and default.mode == FLOAT:
        raise source.error(
            place,
            f"it needs a mode, or {name!r} stays in float as [default] says; add "
            f'mode = "{backend.modes[0]}"',
        )
    return Override(kind, name, replace(default, **stated))


def _check_kernels(
    backend: Backend, default: Settings, overrides: list[Override], source: RecipeText
) -> None:
    """Find what no kernel takes where it is said, before any work."""
    made = backend.quantizer()
    stated: list[tuple[Place, Settings]] = [(("default", "mode"), default)]
    stated += [(("override", i), override.settings) for i, override in enumerate(overrides)]
    for place, settings in stated:
        try:
            config = config_for(backend, settings)
            if config is not None and has_scales(config):
                made.table.check_configuration(config)
        except (AnnotationError, RecipeError, SpecError) as error:
            raise source.error(place, str(error)) from error


def _check_once(skipped: list[Override], overrides: list[Override], source: RecipeText) -> None:
    seen = {(override.kind, override.name) for override in skipped}
    for index, override in enumerate(overrides):
        if (override.kind, override.name) in seen:
            raise source.error(
                ("override", index, override.kind),
                f"{override.name!r} is in [skip] or in another [[override]] already; say it once",
            )
        seen.add((override.kind, override.name))
