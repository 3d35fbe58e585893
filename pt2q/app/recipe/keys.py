"""All keys of a recipe as tables of the documentation, from the schema and the backends."""

from __future__ import annotations

from collections.abc import Iterator

from pt2q.app.recipe.allowed import Allowed
from pt2q.app.recipe.mistakes import TABLES
from pt2q.app.recipe.schema import OverrideTable, RecipeTable, SettingsTable, Table
from pt2q.deploy.registry import BACKENDS
from pt2q.offers import BACKENDS as OURS

_LISTS = ("override", "algorithm")


def key_table() -> str:
    """Each key: where it stands, what it means, and what Python says instead."""
    lines = ["| table | key | says | in Python |", "|---|---|---|---|"]
    for header, table in _tables():
        for name in _own_keys(table):
            field = table.model_fields[name]
            (python,) = field.examples or [""]
            lines.append(f"| {header} | `{name}` | {field.title} | {python} |")
    return "\n".join(lines)


def backend_table() -> str:
    """What each backend leaves open: the values of keys that differ, and keys it does not take."""
    found = {name: Allowed.by(BACKENDS[name]) for name in OURS}
    lines = [f"| key | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    names = [*SettingsTable.model_fields, *RecipeTable.model_fields]
    for name in names:
        cells = [_values(allowed, name) for allowed in found.values()]
        if any(cells):
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _tables() -> Iterator[tuple[str, type[Table]]]:
    yield "", RecipeTable
    for name, table in TABLES.items():
        yield f"`[[{name}]]`" if name in _LISTS else f"`[{name}]`", table


def _own_keys(table: type[Table]) -> list[str]:
    """Without tables inside, and without what an override has of the default."""
    above = set(SettingsTable.model_fields) if table is OverrideTable else set(TABLES)
    return [name for name in table.model_fields if name not in above]


def _values(allowed: Allowed, name: str) -> str:
    if name in allowed.refused:
        return "not taken"
    if name in allowed.choices:
        return ", ".join(allowed.choices[name])
    if name in allowed.specs:
        return _integers(allowed, name)
    if name == "group_size":
        return f"a multiple of {allowed.groups_of}" if allowed.groups_of > 1 else "any"
    return "taken" if name == "embeddings" else ""


def _integers(allowed: Allowed, name: str) -> str:
    spec = allowed.specs[name]
    return "not taken" if spec is None else f"[{spec.quant_min}, {spec.quant_max}] if not said"
