"""Recipes: how to quantize a model, as a TOML file that can be reviewed and kept.

A recipe says what a quantizer can be told: a backend, how everything is quantized, what is left
in float, and what is done in another way. `load` reads one, `Recipe.quantizer` makes the quantizer
and `template` writes a commented file whose defaults are those of the backend.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pt2q.app.targets import BACKENDS, Backend
from pt2q.errors import RecipeError
from pt2q.ir import ops

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pt2q.quantizers import QuantizationConfig, TableQuantizer
    from pt2q.spec import QuantizationSpec

MODES = ("static", "dynamic", "float")
SCALES = ("channel", "tensor")
OBSERVERS = ("histogram", "minmax", "moving-average")
SELECTORS = ("module", "module_type", "operator")
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
        activation_observer: how calibration finds the range: ``histogram`` (smallest squared
            error), ``minmax`` or ``moving-average``.
    """

    mode: str = "static"
    weight_scales: str = "channel"
    activation_dtype: str | None = None
    activation_range: Range | None = None
    activation_observer: str = "histogram"
    weight_dtype: str = "int8"
    weight_range: Range | None = None


@dataclass(frozen=True)
class Override:
    """A part of the model that is treated in another way.

    Attributes:
        kind: ``module``, ``module_type`` or ``operator``.
        name: which; a module's name may hold ``*``.
        settings: how it is quantized.
    """

    kind: str
    name: str
    settings: Settings


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says.

    Attributes:
        backend: a name in `pt2q.app.targets.BACKENDS`.
        default: how everything is quantized.
        overrides: what is quantized in another way, or not at all.
        limit: calibrate on at most this many batches; None: all.
    """

    backend: str = "xnnpack"
    default: Settings = Settings()
    overrides: tuple[Override, ...] = ()
    limit: int | None = None

    def quantizer(self) -> TableQuantizer:
        """The backend's quantizer with these statements made.

        Raises:
            RecipeError: the backend does not run a mode.
        """
        backend = BACKENDS[self.backend]
        made = backend.quantizer().set_global(_config(backend, self.default))
        for override in self.overrides:
            config = _config(backend, override.settings)
            if override.kind == "module":
                made.set_module_name(override.name, config)
            elif override.kind == "module_type":
                made.set_module_type(override.name, config)
            else:
                made.set_operator_type(ops.operator_named(override.name), config)
        return made

    def changed(self, *, mode: str | None = None, weight_scales: str | None = None) -> Recipe:
        """A recipe with other defaults; what overrides say for themselves stays.

        Args:
            mode, weight_scales: as in `Settings`; None keeps what is there.
        """
        given = {"mode": mode, "weight_scales": weight_scales}
        kept: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(self, default=replace(self.default, **kept))


def _config(backend: Backend, settings: Settings) -> QuantizationConfig | None:
    if settings.mode == "float":
        return None
    if settings.mode not in backend.modes:
        raise RecipeError(
            f"{backend.name} does not run mode {settings.mode!r}: choose from "
            f"{', '.join((*backend.modes, 'float'))}"
        )
    if settings.weight_scales not in backend.scales:
        raise RecipeError(
            f"{backend.name} does not run weights with a scale per {settings.weight_scales}: "
            f"choose from {', '.join(backend.scales)}"
        )
    config = backend.config(settings.mode)
    weight = config.weight
    if settings.weight_scales == "tensor":
        from pt2q.quantizers.toolkit.config import per_tensor

        weight = per_tensor(weight, is_qat=False)
    return replace(
        config,
        input_activation=_activation(config.input_activation, settings),
        output_activation=_activation(config.output_activation, settings),
        weight=_ranged(weight, settings.weight_range),
    )


def _activation(spec: QuantizationSpec | None, settings: Settings) -> QuantizationSpec | None:
    if spec is None:
        return None
    if not spec.is_dynamic and settings.activation_observer != "histogram":
        from pt2q import observers
        from pt2q.quantizers.toolkit.config import EPS

        kinds: dict[str, type[observers.ObserverBase]] = {
            "minmax": observers.MinMaxObserver,
            "moving-average": observers.MovingAverageMinMaxObserver,
        }
        constructor = kinds[settings.activation_observer].with_args(eps=EPS)
        spec = replace(spec, observer_or_fake_quant_ctr=constructor)
    return _ranged(spec, settings.activation_range)


def _ranged(spec: QuantizationSpec | None, limits: Range | None) -> QuantizationSpec | None:
    if spec is None or limits is None:
        return spec
    return replace(spec, quant_min=limits[0], quant_max=limits[1])


# ------------------------------------------------------------------ reading


def load(path: str | PathLike[str]) -> Recipe:
    """Read a recipe file.

    Args:
        path: a TOML file; `template` writes one to start from.

    Raises:
        RecipeError: the file cannot be read, or says what cannot be; the message names the line,
            the key and what is allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, name: str = "recipe") -> Recipe:
    """Read a recipe from text.

    Args:
        text: TOML.
        name: what messages call it.

    Raises:
        RecipeError: see `load`.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name}: no valid TOML: {error}") from error
    return _Reader(name, text.splitlines()).recipe(found)


_TOP = ("backend", "default", "skip", "override", "calibration")
_SETTINGS = tuple(field.name for field in fields(Settings))
_SKIP = {"modules": "module", "module_types": "module_type", "operators": "operator"}


@dataclass(frozen=True)
class _Reader:
    """Checks what TOML gave; every message says where in the file."""

    name: str
    lines: Sequence[str]

    def recipe(self, found: Mapping[str, Any]) -> Recipe:
        self.known("", 0, found, _TOP)
        name = found.get("backend", "xnnpack")
        self.one_of("", 0, "backend", name, tuple(BACKENDS))
        backend = BACKENDS[name]
        default = self.settings("default", 0, self.table("default", found), backend, Settings())
        calibration = self.table("calibration", found)
        self.known("calibration", 0, calibration, ("limit",))
        limit = calibration.get("limit")
        if limit is not None and (type(limit) is not int or limit < 1):
            self.fail("calibration", 0, "limit", "a whole number from 1 up", limit)
        skipped = self.skipped(self.table("skip", found), default)
        overrides = self.overrides(found, backend, default)
        self.check_once(skipped, overrides)
        return Recipe(name, default, (*skipped, *overrides), limit)

    def check_once(self, skipped: list[Override], overrides: list[Override]) -> None:
        seen = {(override.kind, override.name) for override in skipped}
        for index, override in enumerate(overrides):
            if (override.kind, override.name) in seen:
                raise RecipeError(
                    f"{self.where('override', index, override.kind)}: {override.name!r} is in "
                    "[skip] or in another [[override]] already; say it once"
                )
            seen.add((override.kind, override.name))

    def settings(
        self, section: str, index: int, found: Mapping[str, Any], backend: Backend, base: Settings
    ) -> Settings:
        self.known(section, index, found, _SETTINGS)
        allowed = {
            "mode": (*backend.modes, "float"),
            "weight_scales": backend.scales,
            "activation_dtype": (backend.activation_dtype,),
            "activation_observer": OBSERVERS,
            "weight_dtype": ("int8",),
        }
        for key, choices in allowed.items():
            if key in found:
                self.one_of(section, index, key, found[key], choices)
        given = dict(found)
        config = backend.config("static")
        for key, spec in (
            ("activation_range", config.input_activation),
            ("weight_range", config.weight),
        ):
            if key in found and spec is not None:
                given[key] = self.range_of(section, index, key, found[key], spec)
        return replace(base, **given)

    def range_of(
        self, section: str, index: int, key: str, value: Any, spec: QuantizationSpec
    ) -> Range:
        info = torch.iinfo(spec.dtype)
        symmetric = spec.qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric)
        whole = isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)
        if not whole or not info.min <= value[0] < value[1] <= info.max:
            expected = f"two whole numbers [low, high] within [{info.min}, {info.max}], low first"
            self.fail(section, index, key, expected, value)
        if symmetric and not value[0] <= 0 <= value[1]:
            self.fail(section, index, key, "a range that holds 0, where the zero point is", value)
        return value[0], value[1]

    def skipped(self, found: Mapping[str, Any], default: Settings) -> list[Override]:
        self.known("skip", 0, found, tuple(_SKIP))
        skipped = []
        for key, kind in _SKIP.items():
            names = found.get(key, [])
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                self.fail("skip", 0, key, 'a list of names, such as ["head"]', names)
            for name in names:
                self.selector("skip", 0, key, kind, name)
                skipped.append(Override(kind, name, replace(default, mode="float")))
        return skipped

    def overrides(
        self, found: Mapping[str, Any], backend: Backend, default: Settings
    ) -> list[Override]:
        tables = found.get("override", [])
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            self.fail("", 0, "override", "tables that begin with [[override]]", tables)
        result = []
        for index, table in enumerate(tables):
            given = [kind for kind in SELECTORS if kind in table]
            if len(given) != 1:
                raise RecipeError(
                    f"{self.where('override', index)}: name what it is for with one of "
                    f"{', '.join(SELECTORS)}; found {', '.join(given) or 'none'}"
                )
            (kind,) = given
            self.selector("override", index, kind, kind, table[kind])
            rest = {key: value for key, value in table.items() if key != kind}
            settings = self.settings("override", index, rest, backend, default)
            if "mode" not in rest and default.mode == "float":
                raise RecipeError(
                    f"{self.where('override', index)}: it needs a mode, or {table[kind]!r} stays "
                    f'in float as [default] says; add mode = "{backend.modes[0]}"'
                )
            result.append(Override(kind, table[kind], settings))
        return result

    def selector(self, section: str, index: int, key: str, kind: str, value: Any) -> None:
        if not isinstance(value, str) or not value:
            self.fail(section, index, key, "a name", value)
        if kind == "operator" and ops.operator_named(value) is None:
            self.fail(section, index, key, 'an operator, such as "aten.add"', value)

    # -------------------------------------------------------------- messages

    def table(self, key: str, found: Mapping[str, Any]) -> Mapping[str, Any]:
        value = found.get(key, {})
        if not isinstance(value, dict):
            self.fail("", 0, key, f"a table that begins with [{key}]", value)
        return dict(value)

    def known(
        self, section: str, index: int, found: Mapping[str, Any], allowed: Sequence[str]
    ) -> None:
        for key in found:
            if key not in allowed:
                selectors = SELECTORS if section == "override" else ()
                raise RecipeError(
                    f"{self.where(section, index, key)}: there is no such key; choose from "
                    f"{', '.join((*selectors, *allowed))}"
                )

    def one_of(
        self, section: str, index: int, key: str, value: Any, allowed: Sequence[str]
    ) -> None:
        if value not in allowed:
            choices = ", ".join(f'"{choice}"' for choice in allowed)
            self.fail(section, index, key, f"one of {choices}", value)

    def fail(self, section: str, index: int, key: str, expected: str, found: Any) -> None:
        raise RecipeError(
            f"{self.where(section, index, key)}: expected {expected}; found {found!r}"
        )

    def where(self, section: str, index: int, key: str = "") -> str:
        """``recipe.toml, line 7, [default] mode``."""
        line = self.line_of(section, index, key)
        header = {"": "", "override": f"[[override]] {index + 1}"}.get(section, f"[{section}]")
        place = " ".join(part for part in (header, key) if part)
        return f"{self.name}, line {line}, {place}" if line else f"{self.name}, {place}"

    def line_of(self, section: str, index: int, key: str) -> int | None:
        """The line of a key, or of the header of its section; None if it is written otherwise."""
        at, seen, header = "", -1, None
        for number, line in enumerate(self.lines, 1):
            text = line.split("#")[0].strip()
            if text.startswith("["):
                at = text.strip("[] ")
                seen = seen + 1 if at == section else seen
            inside = at == section and (not section or seen == index)
            if inside and text.startswith("["):
                header = number
            if inside and key and text.partition("=")[0].strip().strip("\"'") == key:
                return number
            if not section and key and text.strip("[] ") == key:
                return number
        return header


# ------------------------------------------------------------------ writing


def template(backend: str = "xnnpack") -> str:
    """A commented recipe whose settings are the backend's defaults.

    Args:
        backend: a name in `pt2q.app.targets.BACKENDS`.

    Raises:
        DataError: there is no such backend.
    """
    from pt2q.app.targets import backend_named

    row = backend_named(backend)
    config = row.config("static")
    assert config.input_activation is not None and config.weight is not None
    modes = " | ".join(f'"{mode}"' for mode in (*row.modes, "float"))
    return _TEMPLATE.format(
        backend=row.name,
        title=row.title,
        backends=" | ".join(f'"{name}"' for name in BACKENDS),
        modes=modes,
        scale_choices="\n".join(f"# {_SCALE_WORDS[scale]}" for scale in row.scales),
        scales="channel" if config.is_per_channel else "tensor",
        activation_dtype=row.activation_dtype,
        activation_range=_limits(config.input_activation),
        weight_range=_limits(config.weight),
        other_mode=next((m for m in row.modes if m != "static"), "float"),
    )


def _limits(spec: QuantizationSpec) -> str:
    info = torch.iinfo(spec.dtype)
    low = info.min if spec.quant_min is None else spec.quant_min
    high = info.max if spec.quant_max is None else spec.quant_max
    return f"[{low}, {high}]"


_SCALE_WORDS = {
    "channel": '"channel": a scale per output channel of a weight.',
    "tensor": '"tensor": one scale for all of a weight.',
}

_TEMPLATE = """\
# A recipe for pt2q: how to quantize a model. These are the defaults for {backend}:
#     pt2q quantize model.pt2 --recipe THIS_FILE --calibration inputs.npz -o OUT

# What runs the result: {title}.
# One of {backends}
backend = "{backend}"

# How everything is quantized that nothing below says otherwise about.
[default]
# {modes}
# static: ranges of activations are found by calibration. dynamic: from each input, at run time.
mode = "static"
{scale_choices}
weight_scales = "{scales}"
# How activations are stored, and the integers used.
activation_dtype = "{activation_dtype}"
activation_range = {activation_range}
# How calibration finds a range (for static): "histogram" (smallest squared error) | "minmax" |
# "moving-average"
activation_observer = "histogram"
# How weights are stored, and the integers used; [-8, 7] is four bits.
weight_dtype = "int8"
weight_range = {weight_range}

# What stays in float. Names are those of model.named_modules(); a * stands for any part between
# two dots ("blocks.*.attention"), and a name means all that the module holds.
[skip]
modules = []
# Such as "torch.nn.LayerNorm".
module_types = []
# Such as "aten.add" or "aten.mul.Tensor".
operators = []

# What is done in another way: one table each, for a module, a module_type or an operator, with any
# of the settings of [default].
#
# [[override]]
# module = "head"
# mode = "{other_mode}"

[calibration]
# Calibrate on at most so many batches.
# limit = 100
"""
