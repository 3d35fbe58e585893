"""What a backend leaves open in a recipe: which keys it takes, and their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pt2q.app.recipe.config import FLOAT, activation_observers, dtype_name
from pt2q.deploy.backend import Backend
from pt2q.quantizers import TableQuantizer
from pt2q.quantizers.toolkit.table.kernel_limits import INT16, StoredAs, TensorLimits
from pt2q.spec import PerGroup, QuantizationSpec


@dataclass(frozen=True)
class Allowed:
    """What a backend leaves open.

    Args:
        backend: its name.
        choices: the values of a key, by the key.
        specs: what holds the integers of a range, by the key; None where nothing is quantized.
        min_scale: the smallest scale that its kernels compute with.
        groups_of: a group size is a multiple of this.
        refused: keys that it does not take.
    """

    backend: str
    choices: Mapping[str, tuple[str, ...]]
    specs: Mapping[str, QuantizationSpec | None]
    min_scale: float
    groups_of: int
    refused: frozenset[str]

    @classmethod
    def by(cls, backend: Backend) -> Allowed:
        """What one backend leaves open."""
        config, made = backend.default_config, backend.quantizer()
        activation, weight = config.input_activation, config.weight
        limits = list(_limits(made, "input_activation"))
        choices = {
            "mode": (*backend.modes, FLOAT),
            "weight_scales": backend.scales,
            "activation_dtype": () if activation is None else _dtypes(activation, limits),
            "activation_observer": activation_observers(),
            "weight_dtype": _stored(backend),
            "residual_projections": ("dynamic", "static"),
        }
        floor = max((found.min_scale for found in limits), default=0.0)
        specs = {"activation_range": activation, "weight_range": weight}
        refused = frozenset(_refused(backend, made))
        return cls(backend.name, choices, specs, floor, backend.groups_of, refused)


def _limits(quantizer: TableQuantizer, role: str) -> Iterator[TensorLimits]:
    kernels = [rule.kernel for rule in quantizer.table.rules if rule.kernel is not None]
    yield from filter(None, (kernel.of_role(role) for kernel in kernels))


def _forms(quantizer: TableQuantizer, role: str) -> list[StoredAs]:
    return [form for found in _limits(quantizer, role) for form in found.stored]


def _dtypes(usual: QuantizationSpec, limits: list[TensorLimits]) -> tuple[str, ...]:
    wide = any(form.dtype is INT16.dtype for found in limits for form in found.stored)
    return (dtype_name(usual), "int16") if wide else (dtype_name(usual),)


def _stored(backend: Backend) -> tuple[str, ...]:
    weights = (backend.config(mode).weight for mode in backend.modes)
    return tuple(dict.fromkeys(dtype_name(weight) for weight in weights if weight is not None))


def _refused(backend: Backend, made: TableQuantizer) -> Iterator[str]:
    forms = _forms(made, "weight")
    if not any(PerGroup in form.granularities for form in forms):
        yield "group_size"
    if not hasattr(made, "residual_projections"):
        yield "residual_projections"
    if backend.embeddings is None:
        yield "embeddings"
