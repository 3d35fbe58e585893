"""What a recipe file may hold, as tables that pydantic checks.

A field's description is what a message says is expected where its type does not fit; its title says
what the key means, and its example what Python says instead, for the table of the documentation.
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
    Embeddings,
    GroupSize,
    Limits,
    Name,
    Operator,
    Scale,
)
from pt2q.deploy.registry import DEFAULT


def _key(
    means: str, python: str, expected: str | None = None, default: Any = None, **limits: Any
) -> Any:
    return Field(default=default, title=means, examples=[python], description=expected, **limits)


def _names(means: str, python: str) -> Any:
    return Field(
        default_factory=list,
        description='a list of names, such as ["head"]',
        title=means,
        examples=[python],
    )


def _name(means: str, python: str) -> Any:
    return _key(means, python, "a name")


class Table(BaseModel):
    """A table of the file: other keys than its fields, and other types, are mistakes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SettingsTable(Table):
    """How something is quantized; what a file leaves out is not set."""

    mode: Choice = _key(
        "when ranges of activations are found; `weights`: activations stay in float",
        "the backend's configuration function, `is_dynamic=`",
    )
    weight_scales: Choice = _key(
        "a scale per output channel of a weight, or one for all of it",
        "`get_symmetric_quantization_config(is_per_channel=)`",
    )
    activation_dtype: Choice = _key(
        "how activations are stored; int16 is symmetric", "`QuantizationSpec(dtype=)`"
    )
    activation_range: Limits = _key(
        "the integers of activations", "`act_qmin=`, `act_qmax=`; `reduce_range=True` of x86"
    )
    activation_observer: Choice = _key(
        "how calibration finds a range", "`QuantizationSpec(observer_or_fake_quant_ctr=)`"
    )
    weight_dtype: Choice = _key(
        "how weights are stored; float16 with mode `weights`",
        "`get_x86_inductor_linear_dynamic_fp16_config()`",
    )
    weight_range: Limits = _key(
        "the integers of weights; [-8, 7] is four bits", "`weight_qmin=`, `weight_qmax=`"
    )
    group_size: GroupSize = _key(
        "neighbours along a row of a weight that share a scale; with four bits and mode "
        "`dynamic` it is 8da4w",
        "`get_dynamic_activation_4bit_weight_config(group_size=)`",
    )
    min_scale: Scale = _key(
        "no scale is smaller", "an observer's `eps=`", "a number, such as 1e-9", strict=False
    )

    def stated(self) -> dict[str, Any]:
        """The settings that the file has."""
        return self.model_dump(exclude_unset=True, include=set(SettingsTable.model_fields))


class OverrideTable(SettingsTable):
    """What is done in another way, for what one of these names."""

    module: Name | None = _name("a module, and all it holds", "`set_module_name`")
    module_type: Name | None = _name("modules of a class", "`set_module_type`")
    operator: Operator | None = _name("an operator", "`set_operator_type`")
    node: Name | None = _name("one node of the graph", "`set_node_name`")


class SkipTable(Table):
    """What stays in float."""

    modules: list[Name] = _names("modules left in float", "`set_module_name(name, None)`")
    module_types: list[Name] = _names("classes left in float", "`set_module_type(name, None)`")
    operators: list[Operator] = _names(
        "operators left in float", "`set_operator_type(operator, None)`"
    )
    nodes: list[Name] = _names("nodes left in float", "`set_node_name(name, None)`")


class AlgorithmTable(Table):
    """What wins accuracy back; its settings are those of the algorithm, see `settings_table`."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: AlgorithmName = Field(
        description='a name, such as "gptq"',
        title="which algorithm; further keys are its settings",
        examples=["`quantize_pt2e(algorithms=)`"],
    )

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

    limit: int | None = _key(
        "calibrate on at most so many batches", "", "a whole number from 1 up", ge=1
    )


class DecompositionsTable(Table):
    """Which operators are taken apart before annotation."""

    attention: bool | None = _key(
        "fused attention becomes products and a softmax",
        "`set_decompositions(attention=)`",
        "true or false",
    )
    recurrent: bool | None = _key(
        "LSTM, GRU and plain recurrent layers become linears",
        "`set_decompositions(recurrent=)`",
        "true or false",
    )
    max_steps: int | None = _key(
        "recurrent layers over longer sequences stay as they are",
        "`set_decompositions(max_steps=)`",
        "a whole number from 1 up",
        ge=1,
    )


class RequireTable(Table):
    """What the result has to be, or it is not written."""

    quantized: float | None = _key(
        "the least share of operators that are quantized",
        "`quantizer.report()`",
        "a share from 0 to 1",
        ge=0,
        le=1,
        strict=False,
    )
    min_sqnr: float | None = _key(
        "the least decibels against float, on held-out data",
        "`pt2q.debug.compare`",
        "decibels, a number",
        strict=False,
    )
    agreement: bool = _key(
        "the file computes in its runtime what the converted model does",
        "`check=` of `lower`, `export`, `package`",
        "true or false",
        True,
    )


class RecipeTable(Table):
    """A whole recipe."""

    backend: BackendName = _key("what runs the result", "`BACKENDS[name]`", default=DEFAULT)
    default: SettingsTable = Field(
        default=SettingsTable(), description="a table that begins with [default]"
    )
    skip: SkipTable = Field(default=SkipTable(), description="a table that begins with [skip]")
    override: list[OverrideTable] = Field(
        default_factory=list, description="tables that begin with [[override]]"
    )
    effort: Effort | None = _key(
        "how much is done to win accuracy back", "`quantize_pt2e(effort=)`"
    )
    residual_projections: Choice = _key(
        "which kernel takes a linear layer that is added to a residual stream",
        "`XNNPACKQuantizer(residual_projections=)`",
    )
    embeddings: Embeddings = _key(
        "tables of embeddings are stored in 8 bits, a scale per row",
        "`ComposableQuantizer([EmbeddingQuantizer(), ...])`",
        "true or false",
        False,
    )
    decompositions: DecompositionsTable = Field(
        default=DecompositionsTable(), description="a table that begins with [decompositions]"
    )
    algorithm: list[AlgorithmTable] = Field(
        default_factory=list, description="tables that begin with [[algorithm]]"
    )
    seed: int = _key(
        "of random choices", "`quantize_pt2e(seed=)`", "a whole number from 0 up", 0, ge=0
    )
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
