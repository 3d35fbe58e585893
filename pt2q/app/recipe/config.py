"""How something is quantized, as a recipe says it, and as a quantizer is told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pt2q.deploy.backend import Backend
from pt2q.errors import RecipeError
from pt2q.observers import OBSERVERS
from pt2q.quantizers import QuantizationConfig
from pt2q.quantizers.toolkit.other_observers import observed_by, with_smallest_scale
from pt2q.quantizers.toolkit.scales_of_weights import grouped, per_tensor
from pt2q.spec import PerTensor, QuantizationSpec

FLOAT = "float"
"""The mode of what is not quantized."""
WIDE = "int16"
"""Activations with float's accuracy: symmetric, whatever those of 8 bits are."""

Range = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """How something is quantized.

    Attributes:
        mode: ``static`` (ranges found by calibration), ``dynamic`` (ranges computed from each
            input), ``weights`` (activations stay in float) or ``float`` (not at all).
        weight_scales: one scale per output ``channel``, or one per ``tensor``.
        activation_dtype, weight_dtype: what is stored.
        activation_range, weight_range: the integers used; None means the backend's.
        activation_observer: how calibration finds the range, a name of `activation_observers`:
            ``histogram`` (smallest squared error), ``minmax``, ``moving-average`` or a package's.
        group_size: neighbours along a row of a weight that share a scale; None: all of it.
        min_scale: no scale is smaller; None means the backend's.
    """

    mode: str = "static"
    weight_scales: str = "channel"
    activation_dtype: str | None = None
    activation_range: Range | None = None
    activation_observer: str = "histogram"
    weight_dtype: str = "int8"
    weight_range: Range | None = None
    group_size: int | None = None
    min_scale: float | None = None


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
    return replace(
        config,
        input_activation=_activation(config.input_activation, settings),
        output_activation=_activation(config.output_activation, settings),
        weight=_weight(backend, config.weight, settings),
    )


def _activation(spec: QuantizationSpec | None, settings: Settings) -> QuantizationSpec | None:
    if spec is None:
        return None
    if settings.activation_observer != "histogram":
        spec = observed_by(spec, settings.activation_observer)
    if settings.activation_dtype == WIDE:
        spec = _wide(spec)
    return _limited(spec, settings.activation_range, settings.min_scale)


def _weight(
    backend: Backend, spec: QuantizationSpec | None, settings: Settings
) -> QuantizationSpec | None:
    if spec is None:
        return None
    if dtype_name(spec) != settings.weight_dtype:
        raise RecipeError(
            f"{backend.name} stores weights in {dtype_name(spec)} with mode {settings.mode!r}, "
            f'found weight_dtype {settings.weight_dtype!r}: set weight_dtype = "{dtype_name(spec)}"'
        )
    if spec.dtype.is_floating_point:
        return _unscaled(spec, settings)
    if settings.group_size is not None:
        spec = grouped(spec, settings.group_size)
    elif settings.weight_scales == "tensor":
        spec = per_tensor(spec)
    return _limited(spec, settings.weight_range, settings.min_scale)


def has_scales(config: QuantizationConfig) -> bool:
    """Whether it is of integers, of which settings say something; a backend's own float is not."""
    return config.weight is None or not config.weight.dtype.is_floating_point


def _unscaled(spec: QuantizationSpec, settings: Settings) -> QuantizationSpec:
    """Weights that have no scales, and take no settings of them."""
    names = ("weight_range", "group_size")
    said = [name for name in names if getattr(settings, name) is not None]
    if said:
        raise RecipeError(f"weights in {dtype_name(spec)} have no scales: leave out {said[0]}")
    return spec


def _wide(spec: QuantizationSpec) -> QuantizationSpec:
    limits = torch.iinfo(torch.int16)
    return replace(
        spec,
        dtype=torch.int16,
        quant_min=-limits.max,
        quant_max=limits.max,
        qscheme=torch.per_tensor_symmetric,
    )


def _limited(
    spec: QuantizationSpec | None, limits: Range | None, min_scale: float | None
) -> QuantizationSpec | None:
    if spec is not None and limits is not None:
        spec = replace(spec, quant_min=limits[0], quant_max=limits[1])
    if spec is not None and min_scale is not None:
        spec = with_smallest_scale(spec, min_scale)
    return spec
