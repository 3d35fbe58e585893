"""Recipes: how to quantize a model, as a TOML file that can be reviewed and kept.

A recipe says what a quantizer can be told: a backend, how everything is quantized, what is left
in float, and what is done in another way. `load` reads one, `Recipe.quantizer` makes the quantizer
and `template` writes a commented file whose defaults are those of the backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pt2q.app.recipe.config import Settings
from pt2q.app.recipe.recipe import Override, Recipe
from pt2q.app.recipe.template import template

if TYPE_CHECKING:
    from pt2q.app.recipe.reading import load, parse

__all__ = ["Override", "Recipe", "Settings", "load", "parse", "template"]


def __getattr__(name: str) -> Any:
    """What reads files is imported when it is used: pydantic takes 0.15 s to import."""
    if name in ("load", "parse"):
        return getattr(import_module("pt2q.app.recipe.reading"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
