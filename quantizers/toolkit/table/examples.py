"""Small programs that rows of tables quantize: what their tests run and their documentation shows.

Weights and inputs are drawn at random when an example is built. A row that pays between quantized
operators has convolutions or linear layers around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Forward = Callable[..., Tensor]
"""Computes on layers and inputs: ``lambda layers, x: layers[0](x).relu()``."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A small program.

    Args:
        forward: what it computes.
        layers: make its layers.
        shapes: of its inputs, which are standard normal numbers.
        asked_for: an operator that the user has to name for the row to hold.
    """

    forward: Forward
    layers: tuple[Callable[[], nn.Module], ...] = ()
    shapes: tuple[tuple[int, ...], ...]
    asked_for: Any = None

    def module(self) -> nn.Module:
        """The program, with new weights."""
        return _Program(self.forward, [make() for make in self.layers])

    def inputs(self) -> tuple[Tensor, ...]:
        """Inputs for it."""
        return tuple(torch.randn(shape) for shape in self.shapes)


class _Program(nn.Module):
    def __init__(self, function: Forward, layers: list[nn.Module]) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.layers, *inputs)


def _drawn_apart(make: Callable[[], nn.Module]) -> nn.Module:
    """A layer whose weights do not change what is drawn for others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make()


CONV = partial(nn.Conv2d, 8, 8, 3, padding=1)
CONV1D = partial(nn.Conv1d, 8, 8, 3, padding=1)
LINEAR = partial(nn.Linear, 32, 32)
IMAGES = ((2, 8, 8, 8),)
SIGNALS = ((2, 8, 32),)
ROWS = ((4, 32),)


def on_images(forward: Forward, *layers: Callable[[], nn.Module]) -> Example:
    """A program on a batch of images with 8 channels.

    Args:
        forward: what it computes.
        layers: make its layers.
    """
    return Example(forward=forward, layers=layers, shapes=IMAGES)


def on_signals(forward: Forward, *layers: Callable[[], nn.Module]) -> Example:
    """A program on a batch of signals with 8 channels; arguments as for `on_images`."""
    return Example(forward=forward, layers=layers, shapes=SIGNALS)


def on_rows(forward: Forward, *layers: Callable[[], nn.Module]) -> Example:
    """A program on rows of 32 numbers; arguments as for `on_images`."""
    return Example(forward=forward, layers=layers, shapes=ROWS)


def between_convolutions(forward: Callable[[Tensor], Tensor]) -> Example:
    """One tensor, worked on between two convolutions.

    Args:
        forward: what is computed between them, from 8 channels to 8 channels.
    """
    return on_images(lambda m, x: m[1](forward(m[0](x))), CONV, CONV)


def of_two_convolutions(forward: Callable[[Tensor, Tensor], Tensor]) -> Example:
    """Two tensors, joined between convolutions.

    Args:
        forward: what is computed of both, with 8 channels.
    """
    return on_images(lambda m, x: m[2](forward(m[0](x), m[1](x))), CONV, CONV, CONV)


# ------------------------------------------------------------------ products

CONVOLUTION = on_images(lambda m, x: m[1](F.relu(m[0](x))), CONV, CONV)
ONE_IMAGE = Example(
    forward=lambda layers, x: layers[0](x).relu(), layers=(CONV,), shapes=((1, 8, 8, 8),)
)
ONE_TRANSPOSED_IMAGE = replace(ONE_IMAGE, layers=(partial(nn.ConvTranspose2d, 8, 8, 2, 2),))
CONVOLUTION_1D = on_signals(lambda m, x: m[1](F.relu(m[0](x))), CONV1D, CONV1D)
DEPTHWISE = on_images(lambda m, x: F.relu6(m[0](x)), partial(CONV, groups=8))
CONVOLUTION_3D = Example(
    forward=lambda m, x: m[0](x), layers=(partial(nn.Conv3d, 4, 4, 3),), shapes=((1, 4, 6, 6, 6),)
)
TRANSPOSED = on_images(
    lambda m, x: m[1](F.relu(m[0](x))),
    partial(nn.ConvTranspose2d, 8, 8, 2, 2),
    partial(nn.ConvTranspose2d, 8, 3, 3),
)
GROUPED_TRANSPOSED = on_images(
    lambda m, x: F.relu(m[0](x)), partial(nn.ConvTranspose2d, 8, 8, 2, 2, groups=2)
)
CONVOLUTION_IN_TRAINING = on_images(
    lambda m, x: F.relu(m[1](m[0](x))), CONV, partial(nn.BatchNorm2d, 8)
)
TRANSPOSED_IN_TRAINING = on_images(
    lambda m, x: F.relu(m[1](m[0](x))),
    partial(nn.ConvTranspose2d, 8, 8, 2, 2),
    partial(nn.BatchNorm2d, 8),
)
GROUPED_TRANSPOSED_IN_TRAINING = on_images(
    lambda m, x: F.relu(m[1](m[0](x))),
    partial(nn.ConvTranspose2d, 8, 8, 2, 2, groups=2),
    partial(nn.BatchNorm2d, 8),
)
LINEAR_LAYER = on_rows(lambda m, x: F.relu(m[0](x)), LINEAR)
LINEAR_IN_TRAINING = on_rows(
    lambda m, x: F.relu(m[1](m[0](x))), LINEAR, partial(nn.BatchNorm1d, 32)
)
ADDMM = on_rows(lambda m, x: torch.addmm(m[0].bias, x, m[0].weight), LINEAR)
CONSTANT_MATRIX = on_rows(lambda m, x: m[0](x) @ m[0].weight, LINEAR)
COMPUTED_FACTORS = on_rows(
    lambda m, x: m[2](torch.matmul(m[0](x), m[1](x).transpose(0, 1)) @ x), LINEAR, LINEAR, LINEAR
)
COMPUTED_FACTORS_ASKED_FOR = replace(COMPUTED_FACTORS, asked_for=torch.matmul)
EXPERTS = Example(
    forward=lambda m, x: torch.bmm(
        m[0].weight[(x.sum((1, 2)) > 0).long()], x.transpose(1, 2)
    ).transpose(1, 2),
    layers=(partial(nn.Bilinear, 32, 32, 4),),
    shapes=((3, 5, 32),),
)
STACKED = replace(EXPERTS, forward=lambda m, x: x @ m[0].weight, shapes=((4, 5, 32),))
LOOKUP = Example(
    forward=lambda m, x: m[0]((x * 4).abs().long()),
    layers=(partial(nn.Embedding, 64, 32),),
    shapes=((4, 3),),
)

# ------------------------------------------------------------------ two tensors and averages

ADDITION = of_two_convolutions(lambda a, b: F.relu(a + b))
SUBTRACTION = of_two_convolutions(lambda a, b: a - b)
MULTIPLICATION = of_two_convolutions(lambda a, b: a * b)
CONCATENATION = on_images(
    lambda m, x: m[2](torch.cat([m[0](x), m[1](x)], 1)), CONV, CONV, partial(nn.Conv2d, 16, 8, 1)
)
RESIDUAL = on_images(
    lambda m, x: m[2](F.relu(m[1](y := F.relu(m[0](x))) + F.max_pool2d(y, 3, 1, 1))),
    CONV,
    CONV,
    CONV,
)
MEAN = between_convolutions(lambda x: x.mean((2, 3), keepdim=True))
GLOBAL_POOL = between_convolutions(lambda x: F.adaptive_avg_pool2d(x, 1))
AVERAGE_POOL = between_convolutions(lambda x: F.avg_pool2d(x, 2))

# ------------------------------------------------------------------ values passed on

MAX_POOL = between_convolutions(lambda x: F.max_pool2d(x, 2))
PADDING = replace(
    between_convolutions(lambda x: F.pad(x, (0, 1, 2, 0))),
    layers=(partial(_drawn_apart, CONV),) * 2,
)
BOUND = between_convolutions(lambda x: F.relu(x).clamp(0, 1))
RESHAPE = on_images(lambda m, x: m[1](m[0](x).flatten(1)), CONV, partial(nn.Linear, 512, 8))
PERMUTE = on_images(lambda m, x: m[1](m[0](x).permute(0, 2, 3, 1)), CONV, partial(nn.Linear, 8, 8))
SHUFFLE = between_convolutions(lambda x: F.channel_shuffle(x, 2))
PART = between_convolutions(lambda x: x[:, :, 1:5])
SPLIT = of_two_convolutions(lambda a, b: torch.cat([a.chunk(2, 1)[0], b.chunk(2, 1)[1]], 1))
REPEAT = between_convolutions(lambda x: x.repeat(1, 1, 1, 2))
UPSAMPLE = between_convolutions(lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"))
COPY = between_convolutions(lambda x: x.clone())
DROPOUT = between_convolutions(lambda x: F.dropout(x, training=False))
