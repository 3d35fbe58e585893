"""What is wrong with a recipe file: where it stands, what is allowed there, what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pt2q.app.recipe.schema import (
    AlgorithmTable,
    CalibrationTable,
    DecompositionsTable,
    OverrideTable,
    RecipeTable,
    RequireTable,
    SettingsTable,
    SkipTable,
    Table,
)
from pt2q.app.recipe.values import EXPECTED, REFUSED
from pt2q.errors import RecipeError

SELECTORS = ("module", "module_type", "operator", "node")

TABLES: dict[str, type[Table]] = {
    "default": SettingsTable,
    "skip": SkipTable,
    "override": OverrideTable,
    "calibration": CalibrationTable,
    "require": RequireTable,
    "algorithm": AlgorithmTable,
    "decompositions": DecompositionsTable,
}
_LISTS = ("override", "algorithm")
Place = tuple[str | int, ...]
"""Keys and, for what stands in a list, numbers from 0, from the outside in."""


@dataclass(frozen=True)
class RecipeText:
    """A recipe as it was read, for messages.

    Args:
        name: what messages call it.
        lines: its text.
    """

    name: str
    lines: Sequence[str]

    def error(self, place: Place, text: str) -> RecipeError:
        """An error at a place of the file, such as ``("override", 0, "mode")``."""
        return RecipeError(f"{self.where(place)}: {text}")

    def first_mistake(
        self, error: ValidationError, at: Place = (), table: type[Table] | None = None
    ) -> RecipeError:
        """The first mistake that pydantic found, in words.

        Args:
            error: what it found.
            at: where what it read stands in the file.
            table: what it read, where the place does not tell.
        """
        mistake = error.errors(include_url=False)[0]
        place = (*at, *mistake["loc"])
        return self.error(place, _words(mistake, place, table))

    def where(self, place: Place) -> str:
        """``recipe.toml, line 7, [default] mode``."""
        section, number, key = _parts(place)
        line = self._line(section, number, key)
        header = f"[[{section}]] {number + 1}" if section in _LISTS else f"[{section}]"
        words = " ".join(part for part in (header if section else "", key) if part)
        return f"{self.name}, line {line}, {words}" if line else f"{self.name}, {words}"

    def _line(self, section: str, number: int, key: str) -> int | None:
        """The line of a key, or of the header of its section; None if it is written otherwise."""
        at, seen, header = "", -1, None
        for line, raw in enumerate(self.lines, 1):
            text = raw.split("#")[0].strip()
            if text.startswith("["):
                at = text.strip("[] ")
                seen = seen + 1 if at == section else seen
            inside = at == section and (not section or seen == number)
            if inside and text.startswith("["):
                header = line
            if inside and key and text.partition("=")[0].strip().strip("\"'") == key:
                return line
            if not section and key and text.strip("[] ") == key:
                return line
        return header


def _parts(place: Place) -> tuple[str, int, str]:
    """The table, its number among those of its name, and the key."""
    names = [str(part) for part in place if isinstance(part, str)]
    if len(place) == 1:
        return "", 0, names[0]
    number = place[1] if isinstance(place[1], int) else 0
    return names[0], number, names[1] if len(names) > 1 else ""


def _words(mistake: ErrorDetails, place: Place, table: type[Table] | None) -> str:
    section, _, key = _parts(place)
    table = table or (TABLES[section] if section else RecipeTable)
    if mistake["type"] == "extra_forbidden":
        return _no_such_key(key, tuple(table.model_fields))
    if mistake["type"] == REFUSED:
        return _refused_key(mistake["msg"], mistake["ctx"]["refused"], table)
    field = table.model_fields.get(key) or RecipeTable.model_fields[section]
    wanted = mistake["msg"] if mistake["type"] == EXPECTED else field.description
    found = "none" if mistake["type"] == "missing" else repr(mistake["input"])
    return f"expected {wanted}; found {found}"


def _refused_key(backend: str, refused: Sequence[str], table: type[Table]) -> str:
    known = [name for name in table.model_fields if name not in refused]
    return f"{backend} does not take this key; choose from {', '.join(known)}"


def _no_such_key(key: str, known: Sequence[str]) -> str:
    ordered = sorted(known, key=lambda name: name not in SELECTORS)
    near = get_close_matches(key, known, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"there is no such key; choose from {', '.join(ordered)}{meant}"
