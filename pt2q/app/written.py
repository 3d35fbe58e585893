"""What commands that examine a model leave in files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pt2q.account import Account
from pt2q.app.recipe import Recipe
from pt2q.app.recipe.writing import recipe_text
from pt2q.files import write_bytes


def write_json(path: Path | None, found: Account, **beside: Any) -> None:
    """Write all of a result.

    Args:
        path: the file; None where none was asked for.
        found: the result.
        **beside: what else is known, under its name; None is left out.
    """
    if path is not None:
        more = {name: value for name, value in beside.items() if value is not None}
        text = json.dumps({**found.to_dict(), **more}, indent=2, allow_nan=False)
        write_bytes(path, f"{text}\n".encode())


def write_recipe(path: Path, recipe: Recipe, notes: Sequence[str]) -> None:
    """Write a recipe and say so.

    Args:
        path: the file.
        recipe: what stands in it.
        notes: comments above it.
    """
    write_bytes(path, recipe_text(recipe, notes).encode())
    print(f"written: {path}")
