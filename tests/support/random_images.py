"""Random small networks on images: convolutions, batch norms, writes in place, buffers.

A network is drawn as a `Recipe`: a list of steps on a growing list of images of one size. Printed,
it is short enough to be read in a falsifying example; `Network(recipe)` computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from support.random_steps import Step, step_lists
from support.seeds import seeded
from support.settling import settled

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZE = {1: (7,), 2: (5, 4), 3: (3, 4, 3)}

PLAIN = ("conv", "transposed", "linear", "relu", "add", "cat", "norm", "conv_norm", "scale")
SHARING = ("again", "same_norm", "two_norms", "norm_then_used", "no_statistics", "group_conv_norm")
WRITING = ("relu_", "add_", "slice_write", "view_write", "buffer", "buffer_sum")


@dataclass(frozen=True)
class Recipe:
    """A network: spatial dimensions, channels (even), steps, and how many values it returns."""

    dims: int
    channels: int
    steps: tuple[Step, ...]
    outputs: int
    seed: int

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1000 + seed)
        return (torch.randn(2, self.channels, *SIZE[self.dims], generator=generator),)


def recipes(
    kinds: tuple[str, ...] = PLAIN + SHARING + WRITING, max_steps: int = 6
) -> st.SearchStrategy[Recipe]:
    """Networks made of some kinds of steps."""
    return st.builds(
        Recipe,
        dims=st.sampled_from([1, 2, 2, 3]),
        channels=st.sampled_from([2, 4]),
        steps=step_lists(kinds, max_steps),
        outputs=st.integers(1, 3),
        seed=st.integers(0, 99),
    )


class Network(nn.Module):
    """What a recipe says, in evaluation mode with uneven statistics."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        with seeded(recipe.seed):
            self.layers = nn.ModuleList(self._layer(s) for s in recipe.steps)
            settled(self, mean=0.3, variance=(0.4, 2.0), shift=0.2)

    def _layer(self, step: Step) -> nn.Module:
        dims, c, v = self.recipe.dims, self.recipe.channels, step.variant
        norm = NORM[dims](c, eps=(1e-5, 0.1)[v % 2], affine=v % 3 != 0)
        conv = CONV[dims](c, c, 1 if v % 2 else 3, padding=0 if v % 2 else 1, bias=v % 3 > 0)
        grouped = {"groups": 2 if v % 2 else 1, "bias": v % 4 < 2}
        kind = step.kind
        if kind in ("conv", "again"):
            return conv
        if kind in ("transposed", "group_conv_norm"):
            transposed = TRANSPOSED[dims](c, c, 3, padding=1, **grouped)
            return transposed if kind == "transposed" else nn.ModuleList([transposed, norm])
        if kind == "linear":
            return nn.Linear(SIZE[dims][-1], SIZE[dims][-1], bias=v % 2 > 0)
        if kind == "cat":
            return CONV[dims](2 * c, c, 1)
        if kind == "norm":
            return norm
        if kind in ("conv_norm", "same_norm", "norm_then_used"):
            return nn.ModuleList([conv, norm])
        if kind == "two_norms":
            return nn.ModuleList([conv, norm, NORM[dims](c)])
        if kind == "no_statistics":
            return nn.ModuleList([conv, NORM[dims](c, track_running_stats=False)])
        if kind.startswith("buffer"):
            return _State(c, dims)
        return nn.Identity()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = [x]
        for step, layer in zip(self.recipe.steps, self.layers, strict=True):
            a = values[step.first % len(values)]
            b = values[step.second % len(values)]
            values.append(STEPS[step.kind](layer, a, b))
        kept = values[-self.recipe.outputs :]
        return kept[0] if len(kept) == 1 else tuple(kept)


class _State(nn.Module):
    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("state", torch.rand(channels, *(1,) * dims))

    state: Tensor


def _buffer(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    layer.state.mul_(0.5)
    layer.state.add_(a.mean())
    return a + layer.state


def _buffer_sum(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    before = a * layer.state
    layer.state[:1].copy_(b.mean())
    return before + layer.state


def _slice_write(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    y = a + 1.0
    y[:, :1] = b[:, :1]
    return y


def _view_write(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    y = a + b
    flat = y.flatten(1)
    first = flat[:, :2]
    y.mul_(0.5)
    return y + first.mean()


def _no_statistics(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    return layer[1](layer[0](a))


def _norm_then_used(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    y = layer[0](a)
    return layer[1](y) + y


STEPS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "conv": lambda layer, a, b: layer(a),
    "transposed": lambda layer, a, b: layer(a),
    "linear": lambda layer, a, b: layer(a),
    "relu": lambda layer, a, b: torch.relu(a),
    "add": lambda layer, a, b: a + b,
    "cat": lambda layer, a, b: layer(torch.cat([a, b], 1)),
    "norm": lambda layer, a, b: layer(a),
    "conv_norm": lambda layer, a, b: layer[1](layer[0](a)),
    "scale": lambda layer, a, b: a * 0.75,
    "again": lambda layer, a, b: layer(torch.relu(layer(a))) + layer(b),
    "same_norm": lambda layer, a, b: layer[1](layer[0](layer[1](layer[0](a)))),
    "two_norms": lambda layer, a, b: layer[1](layer[0](a)) - layer[2](layer[0](b)),
    "norm_then_used": _norm_then_used,
    "no_statistics": _no_statistics,
    "group_conv_norm": lambda layer, a, b: layer[1](layer[0](a)),
    "relu_": lambda layer, a, b: (a + 0.25).relu_(),
    "add_": lambda layer, a, b: (a * 0.5).add_(b),
    "slice_write": _slice_write,
    "view_write": _view_write,
    "buffer": _buffer,
    "buffer_sum": _buffer_sum,
}
