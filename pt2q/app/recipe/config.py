"""How something is quantized, as a recipe says it, and as a quantizer is told."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pt2q.deploy.backend import Backend
from pt2q.errors import RecipeError
from pt2q.observers import OBSERVERS
from pt2q.quantizers import QuantizationConfig
from pt2q.quantizers.toolkit.other_observers import observed_by
from pt2q.quantizers.toolkit.scales_of_weights import per_tensor
from pt2q.spec import PerTensor, QuantizationSpec

FLOAT = "float"
"""The mode of what is not quantized."""

Range = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """How something is quantized.

    Attributes:
        mode: ``static`` (ranges found by calibration), ``dynamic`` (ranges computed from each
            input) or ``float`` (not at all).
        weight_scales: one scale per output ``channel``, or one per ``tensor``.
        activation_dtype, weight_dtype: what is stored.
        activation_range, weight_range: the integers used; None means the backend's.
        activation_observer: how calibration finds the range, a name of `activation_observers`:
            ``histogram`` (smallest squared error), ``minmax``, ``moving-average`` or a package's.
    """

    mode: str = "static"
    weight_scales: str = "channel"
    activation_dtype: str | None = None
    activation_range: Range | None = None
    activation_observer: str = "histogram"
    weight_dtype: str = "int8"
    weight_range: Range | None = None


def default_settings(backend: Backend) -> Settings:
    """What a recipe that says nothing says.

    Args:
        backend: for which backend.
    """
    weight = backend.default_config.weight
    dtype = Settings.weight_dtype if weight is None else dtype_name(weight)
    return Settings(mode=backend.modes[0], weight_scales=backend.scales[0], weight_dtype=dtype)


def activation_observers() -> tuple[str, ...]:
    """The names of observers that find one range for a tensor; also those that packages add."""
    found = OBSERVERS.available().items()
    return tuple(name for name, family in found if family.member(PerTensor()) is not None)


def dtype_name(spec: QuantizationSpec) -> str:
    """The dtype of a spec as a recipe names it, such as ``int8``."""
    return str(spec.dtype).removeprefix("torch.")


def config_for(backend: Backend, settings: Settings) -> QuantizationConfig | None:
    """The configuration that a quantizer is given.

    Args:
        backend: for which backend.
        settings: what is said.

    Returns:
        None for what stays in float.

    Raises:
        RecipeError: the backend does not run a mode or a kind of scales.
    """
    if settings.mode == FLOAT:
        return None
    mode = next((mode for mode in backend.modes if mode == settings.mode), None)
    if mode is None:
        raise RecipeError(
            f"{backend.name} does not run mode {settings.mode!r}: choose from "
            f"{', '.join((*backend.modes, FLOAT))}"
        )
    if settings.weight_scales not in backend.scales:
        raise RecipeError(
            f"{backend.name} does not run weights with a scale per {settings.weight_scales}: "
            f"choose from {', '.join(backend.scales)}"
        )
    config = backend.config(mode)
    weight = config.weight
    if settings.weight_scales == "tensor":
        weight = per_tensor(weight)
    return replace(
        config,
        input_activation=_activation(config.input_activation, settings),
        output_activation=_activation(config.output_activation, settings),
        weight=_ranged(weight, settings.weight_range),
    )


def _activation(spec: QuantizationSpec | None, settings: Settings) -> QuantizationSpec | None:
    if spec is None:
        return None
    if settings.activation_observer != "histogram":
        spec = observed_by(spec, settings.activation_observer)
    return _ranged(spec, settings.activation_range)


def _ranged(spec: QuantizationSpec | None, limits: Range | None) -> QuantizationSpec | None:
    if spec is None or limits is None:
        return spec
    return replace(spec, quant_min=limits[0], quant_max=limits[1])
