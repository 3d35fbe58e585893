"""A recipe to start from."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pt2q.app.recipe.allowed import Allowed
from pt2q.app.recipe.config import FLOAT, activation_observers, dtype_name
from pt2q.deploy.backend import Backend
from pt2q.deploy.registry import BACKENDS, DEFAULT
from pt2q.spec import QuantizationSpec

_START = """\
# A recipe for pt2q: how to quantize a model. These are the defaults for {backend}:
#     pt2q quantize model.pt2 --recipe THIS_FILE --calibration inputs.npz -o OUT

# What runs the result: {title}.
# One of {backends}
backend = "{backend}"

# How much is done to win accuracy back: "fast" | "balanced" | "best"; without it, nothing.
# effort = "balanced"
{quantizer_keys}
# How everything is quantized that nothing below says otherwise about.
[default]
# {modes}
# static: ranges of activations are found by calibration. dynamic: from each input, at run time.
{weights_alone}mode = "{mode}"
{scale_choices}
weight_scales = "{scales}"
"""

_WEIGHTS_ALONE = "# weights: activations stay in float.\n"

_ACTIVATIONS = """\
# How activations are stored, and the integers used.
activation_dtype = "{dtype}"
activation_range = {limits}
# How calibration finds a range (for static); "histogram" has the smallest squared error.
# {observers}
activation_observer = "histogram"
"""

_WEIGHTS = """\
# How weights are stored, and the integers used; [-8, 7] is four bits.
weight_dtype = "{dtype}"
weight_range = {limits}
# No scale is smaller than this; without it, what the kernels compute with.
# min_scale = 1e-9
"""

_GROUPS = """\
# Neighbours along a row of a weight that share a scale; without it, all of the row.
# group_size = 32
"""

_END = """\

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

# What wins accuracy back where no effort chooses it: algorithms in the order in which they are
# applied, each with settings of its own.
#
# [[algorithm]]
# name = "gptq"
# damping = 0.01

[calibration]
# Calibrate on at most so many batches.
# limit = 100

# Which operators are taken apart before anything is quantized.
#
# [decompositions]
# attention = true
# recurrent = true
# max_steps = 64

# What the result has to be, or it is not written and the command ends with code 3.
#
# [require]
# The least share of operators that are quantized, of those that compute on floating point tensors.
# quantized = 0.9
# The least decibels of signal to noise against float, on held-out data.
# min_sqnr = 30
"""

_KEYS = {
    "residual_projections": """
# Linear layers that are added to a residual stream: "dynamic" gives them float results.
# residual_projections = "static"
""",
    "embeddings": """
# Store tables of embeddings in 8 bits, with a scale for each row.
# embeddings = true
""",
}

_SCALE_WORDS = {
    "channel": '"channel": a scale per output channel of a weight.',
    "tensor": '"tensor": one scale for all of a weight.',
}


def template(backend: str = DEFAULT) -> str:
    """A commented recipe whose settings are the backend's defaults.

    Args:
        backend: a name in `pt2q.deploy.BACKENDS`.

    Raises:
        UnknownNameError: there is no such backend.
    """
    row = BACKENDS[backend]
    config = row.default_config
    return "".join(
        (
            _start(row),
            _stored(_ACTIVATIONS, config.input_activation),
            _stored(_WEIGHTS, config.weight),
            "" if "group_size" in Allowed.by(row).refused else _GROUPS,
            _END.format(other_mode=(*row.modes, FLOAT)[1]),
        )
    )


def _start(row: Backend) -> str:
    refused = Allowed.by(row).refused
    return _START.format(
        backend=row.name,
        title=row.title,
        backends=_choices(BACKENDS),
        quantizer_keys="".join(text for key, text in _KEYS.items() if key not in refused),
        modes=_choices((*row.modes, FLOAT)),
        mode=row.modes[0],
        weights_alone=_WEIGHTS_ALONE if "weights" in row.modes else "",
        scale_choices="\n".join(f"# {_SCALE_WORDS[scale]}" for scale in row.scales),
        scales=row.scales[0],
    )


def _stored(text: str, spec: QuantizationSpec | None) -> str:
    """A part of the file, left out where nothing is quantized."""
    if spec is None:
        return ""
    observers = _choices(activation_observers())
    return text.format(dtype=dtype_name(spec), limits=_limits(spec), observers=observers)


def _choices(names: Iterable[str]) -> str:
    return " | ".join(f'"{name}"' for name in names)


def _limits(spec: QuantizationSpec) -> str:
    info = torch.iinfo(spec.dtype)
    low = info.min if spec.quant_min is None else spec.quant_min
    high = info.max if spec.quant_max is None else spec.quant_max
    return f"[{low}, {high}]"
