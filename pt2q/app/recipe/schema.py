"""What a recipe file may hold, as tables that pydantic checks.

A field's description is what a message says is expected where its type does not fit.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pt2q.app.recipe.values import BackendName, Choice, Limits, Name, Operator
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


class SkipTable(Table):
    """What stays in float."""

    modules: list[Name] = _NAMES
    module_types: list[Name] = _NAMES
    operators: list[Operator] = _NAMES


class CalibrationTable(Table):
    """How the model is calibrated."""

    limit: int | None = Field(default=None, ge=1, description="a whole number from 1 up")


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
    calibration: CalibrationTable = Field(
        default=CalibrationTable(), description="a table that begins with [calibration]"
    )


class BackendOnly(BaseModel):
    """Which backend a recipe is for, whatever else is in it."""

    model_config = ConfigDict(strict=True)

    backend: BackendName = DEFAULT
