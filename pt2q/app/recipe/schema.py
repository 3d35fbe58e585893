"""What a recipe file may hold, as tables that pydantic checks.

A field's description is what a message says is expected where its type does not fit.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from pt2q.algorithms import ALGORITHMS
from pt2q.app.recipe.values import (
    AlgorithmName,
    BackendName,
    Choice,
    Effort,
    Limits,
    Name,
    Operator,
)
from pt2q.deploy.registry import DEFAULT

_NAMES: list[str] = Field(default_factory=list, description='a list of names, such as ["head"]')
_NAME = Field(default=None, description="a name")


class Table(BaseModel):
    """A table of the file: other keys than its fields, and other types, are mistakes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SettingsTable(Table):
    """How something is quantized; what a file leaves out is not set."""

    mode: Choice = None
    weight_scales: Choice = None
    activation_dtype: Choice = None
    activation_range: Limits = None
    activation_observer: Choice = None
    weight_dtype: Choice = None
    weight_range: Limits = None

    def stated(self) -> dict[str, Any]:
        """The settings that the file has."""
        return self.model_dump(exclude_unset=True, include=set(SettingsTable.model_fields))


class OverrideTable(SettingsTable):
    """What is done in another way, for what one of these names."""

    module: Name | None = _NAME
    module_type: Name | None = _NAME
    operator: Operator | None = _NAME
    node: Name | None = _NAME


class SkipTable(Table):
    """What stays in float."""

    modules: list[Name] = _NAMES
    module_types: list[Name] = _NAMES
    operators: list[Operator] = _NAMES
    nodes: list[Name] = _NAMES


class AlgorithmTable(Table):
    """What wins accuracy back; its settings are those of the algorithm, see `settings_table`."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: AlgorithmName = Field(description='a name, such as "gptq"')

    def settings(self) -> dict[str, Any]:
        """All but the name."""
        return dict(self.__pydantic_extra__ or {})


@lru_cache
def settings_table(name: str) -> type[Table]:
    """A table of the settings of an algorithm, from its dataclass.

    Args:
        name: of the algorithm.
    """
    hints = get_type_hints(ALGORITHMS[name])
    found: dict[str, Any] = {
        field.name: (
            _LISTS.get(hints[field.name], hints[field.name]),
            Field(default=field.default, description=_SETTINGS[hints[field.name]]),
        )
        for field in fields(ALGORITHMS[name])
    }
    return create_model(f"{name}_settings", __base__=Table, **found)


_LISTS: dict[Any, Any] = {tuple[float, ...]: list[float]}
"""What a file holds for what is a tuple."""
_SETTINGS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple[float, ...]: "a list of numbers",
}
"""What is expected, by the type of a setting."""


class CalibrationTable(Table):
    """How the model is calibrated."""

    limit: int | None = Field(default=None, ge=1, description="a whole number from 1 up")


class RequireTable(Table):
    """What the result has to be, or it is not written."""

    quantized: float | None = Field(
        default=None, ge=0, le=1, strict=False, description="a share from 0 to 1"
    )
    min_sqnr: float | None = Field(default=None, strict=False, description="decibels, a number")
    agreement: bool = Field(default=True, description="true or false")


def _table(name: str) -> Any:
    return Field(
        default={}, validate_default=True, description=f"a table that begins with [{name}]"
    )


class RecipeTable(Table):
    """A whole recipe."""

    backend: BackendName = DEFAULT
    default: SettingsTable = Field(
        default=SettingsTable(), description="a table that begins with [default]"
    )
    skip: SkipTable = Field(default=SkipTable(), description="a table that begins with [skip]")
    override: list[OverrideTable] = Field(
        default_factory=list, description="tables that begin with [[override]]"
    )
    effort: Effort | None = None
    algorithm: list[AlgorithmTable] = Field(
        default_factory=list, description="tables that begin with [[algorithm]]"
    )
    seed: int = Field(default=0, ge=0, description="a whole number from 0 up")
    require: RequireTable = Field(
        default=RequireTable(), description="a table that begins with [require]"
    )
    calibration: CalibrationTable = Field(
        default=CalibrationTable(), description="a table that begins with [calibration]"
    )


class BackendOnly(BaseModel):
    """Which backend a recipe is for, whatever else is in it."""

    model_config = ConfigDict(strict=True)

    backend: BackendName = DEFAULT
