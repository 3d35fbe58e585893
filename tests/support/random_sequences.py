"""Random networks on sequences: products, attention, pools, moves, branches and state.

The steps that `random_images.py` does not draw. Every value is [2, CHANNELS, LENGTH], so that any
step can follow any other; a step keeps its values at about the size they had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from support.random_steps import Step, step_lists
from support.seeds import seeded

CHANNELS, LENGTH = 4, 6


@dataclass(frozen=True)
class Recipe:
    """A network: its steps, how many values it returns, and the seed of its weights."""

    steps: tuple[Step, ...]
    outputs: int = 1
    seed: int = 0

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """A sequence, and which branch conditions take."""
        generator = torch.Generator().manual_seed(1000 + seed)
        x = torch.randn(2, CHANNELS, LENGTH, generator=generator)
        return x, torch.tensor(seed % 2 == 0)


class Layer(nn.Module):
    """All that a step may need; what it does not use is not exported."""

    def __init__(self, variant: int) -> None:
        super().__init__()
        self.variant = variant
        bias = variant % 3 > 0
        self.linear = nn.Linear(LENGTH, LENGTH, bias=bias)
        self.other = nn.Linear(LENGTH, LENGTH, bias=bias)
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1, bias=bias)
        self.joined = nn.Conv1d(2 * CHANNELS, CHANNELS, 1)
        self.recurrent = nn.GRU(LENGTH, LENGTH, batch_first=True)
        self.register_buffer("state", torch.rand(CHANNELS, LENGTH))

    state: Tensor


def _attention(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    causal = layer.variant % 2 == 0
    q, k = layer.linear(a)[:, None], layer.other(b)[:, None]
    return F.scaled_dot_product_attention(q, k, b[:, None], is_causal=causal)[:, 0]


def _matmul(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2) / LENGTH**0.5).softmax(-1) @ b


def _einsum(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("bcl,bcm,bcm->bcl", a, b.tanh(), b.sigmoid()) / LENGTH


def _move(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    moves: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.transpose(1, 2).reshape(2, CHANNELS, LENGTH),
        lambda x: x.flip(2),
        lambda x: torch.cat([x[:, :, 2:], x[:, :, :2]], 2),
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: x.roll(1, 1),
        lambda x: torch.stack(x.unbind(1)[::-1], 1),
        lambda x: F.pad(x[:, :, 1:-1], (1, 1)),
        lambda x: x[:, :1].expand(-1, CHANNELS, -1).contiguous(),
    ]
    return moves[layer.variant](a)


def _pool(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    pools: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.max_pool1d(x, 3, 1, 1),
        lambda x: F.avg_pool1d(x, 3, 1, 1),
        lambda x: F.interpolate(F.max_pool1d(x, 2), scale_factor=2.0),
        lambda x: F.adaptive_avg_pool1d(x, 3).repeat_interleave(2, 2),
        lambda x: x - x.mean(2, keepdim=True),
        lambda x: x.amax(1, keepdim=True) + x * 0.5,
        lambda x: x.cumsum(2) / LENGTH,
        lambda x: F.layer_norm(x, (LENGTH,)),
    ]
    return pools[layer.variant](a)


def _pointwise(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    functions: list[Callable[[Tensor], Tensor]] = [
        torch.tanh,
        torch.sigmoid,
        F.gelu,
        F.hardswish,
        lambda x: x.clamp(-1.0, 0.75),
        F.relu6,
        lambda x: torch.exp(-x.abs()),
        lambda x: torch.where(x > 0, x, x * 0.1),
    ]
    return functions[layer.variant](a)


def _arithmetic(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    functions: list[Callable[[], Tensor]] = [
        lambda: a * b.sigmoid(),
        lambda: a - b,
        lambda: 1.0 - a,
        lambda: a / 3 + 0.25,
        lambda: torch.maximum(a, b),
        lambda: torch.add(a, b, alpha=-0.5),
        lambda: a * torch.arange(1, LENGTH + 1) / LENGTH,
        lambda: a + torch.tensor([0.5, -1.0, 2.0, 0.0])[:, None],
    ]
    return functions[layer.variant]()


def _in_place(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    y = a + 0.25
    if layer.variant % 4 == 0:
        y.relu_().mul_(0.5)
    elif layer.variant % 4 == 1:
        y[:, 1:3] = b[:, 1:3]
    elif layer.variant % 4 == 2:
        y[:, torch.tensor([0, 2])] = b[:, :2]
    else:
        half = y[:, :2]
        y.add_(b)
        return y + half.mean()
    return y


def _state(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    before = layer.state * 1
    if layer.variant % 4 == 0:
        layer.state.copy_(a[0])
    elif layer.variant % 4 == 1:
        layer.state.index_copy_(0, torch.tensor([1, 3]), a[0, :2])
    elif layer.variant % 4 == 2:
        layer.state.mul_(0.5).add_(a.mean(0))
    else:
        layer.state[1:] = layer.state[:-1].clone()
        layer.state[:1] = b[0, :1]
    return layer.linear(layer.state + before) + b


def _steps() -> dict[str, Callable[[Layer, Tensor, Tensor], Tensor]]:
    return {
        "linear": lambda layer, a, b: layer.linear(a),
        "linear_relu": lambda layer, a, b: layer.linear(a).relu(),
        "conv": lambda layer, a, b: layer.conv(a),
        "add": lambda layer, a, b: a + b,
        "cat": lambda layer, a, b: layer.joined(torch.cat([a, b], 1)),
        "tied": lambda layer, a, b: layer.linear(layer.linear(a).relu()) + layer.linear(b),
        "softmax": lambda layer, a, b: a.softmax(2 - layer.variant % 2),
        "recurrent": lambda layer, a, b: layer.recurrent(a)[0],
        "arithmetic": _arithmetic,
        "attention": _attention,
        "einsum": _einsum,
        "in_place": _in_place,
        "matmul": _matmul,
        "move": _move,
        "pointwise": _pointwise,
        "pool": _pool,
        "state": _state,
    }


STEPS = _steps()
KINDS = (*STEPS, "cond")


class Network(nn.Module):
    """What a recipe says."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        with seeded(recipe.seed):
            self.layers = nn.ModuleList(Layer(step.variant) for step in recipe.steps)
        self.eval()

    def forward(self, x: Tensor, flag: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for step, layer in zip(self.recipe.steps, self.layers, strict=True):
            a, b = values[step.first % len(values)], values[step.second % len(values)]
            if step.kind == "cond":
                values.append(
                    torch.cond(flag, lambda a, f=layer.linear: f(a).tanh(), layer.other, (a,))
                )
            else:
                values.append(STEPS[step.kind](layer, a, b))
        return tuple(values[-self.recipe.outputs :])


def recipes(kinds: tuple[str, ...] = KINDS, max_steps: int = 4) -> st.SearchStrategy[Recipe]:
    """Networks made of some kinds of steps."""
    return st.builds(Recipe, step_lists(kinds, max_steps), st.integers(1, 3), st.integers(0, 99))
