"""A small decoder-only language model that remembers: random weights, one token per call.

RMS norms, rotary positions, grouped-query attention over a cache of keys and values, gated feed
forward; the shape of a Llama at the size of a unit test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.seeds import seeded


@dataclass(frozen=True)
class DecoderConfig:
    vocabulary: int = 96
    dim: int = 64
    layers: int = 2
    heads: int = 4
    shared: int = 2
    hidden: int = 160
    length: int = 64

    @property
    def head(self) -> int:
        return self.dim // self.heads


class RotaryAttention(nn.Module):
    """Each token's key and value go into the cache at its position, and stay there."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        narrow = config.shared * config.head
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        self.key = nn.Linear(config.dim, narrow, bias=False)
        self.value = nn.Linear(config.dim, narrow, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        shape = (1, config.shared, config.length, config.head)
        self.register_buffer("keys", torch.zeros(shape))
        self.register_buffer("values", torch.zeros(shape))

    keys: Tensor
    values: Tensor

    def forward(self, x: Tensor, at: Tensor, turn: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (self.split(f(x)) for f in (self.query, self.key, self.value))
        self.keys.index_copy_(2, at, rotate(k, turn))
        self.values.index_copy_(2, at, v)
        mixed = F.scaled_dot_product_attention(
            rotate(q, turn), self.keys, self.values, seen, enable_gqa=True
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.config.head)).transpose(1, 2)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn pairs of channels by the angles of a position; ``turn`` holds cosines and sines."""
    cosine, sine = turn
    one, other = x.chunk(2, -1)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], -1)


class DecoderBlock(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(config.dim, 1e-6), nn.RMSNorm(config.dim, 1e-6)
        self.attention = RotaryAttention(config)
        self.gate = nn.Linear(config.dim, config.hidden, bias=False)
        self.up = nn.Linear(config.dim, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x: Tensor, at: Tensor, turn: Tensor, seen: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), at, turn, seen)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """`forward(token, at)`: the logits of the next token after the one at position ``at``."""

    def __init__(self, config: DecoderConfig = DecoderConfig()) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.dim)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, 1e-6)
        self.head = nn.Linear(config.dim, config.vocabulary, bias=False)
        rates = 10000.0 ** (-torch.arange(0, config.head, 2) / config.head)
        angles = torch.arange(config.length)[:, None] * rates
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    turns: Tensor

    def forward(self, token: Tensor, at: Tensor) -> Tensor:
        turn = self.turns.index_select(1, at)
        seen = torch.arange(self.config.length, device=at.device) <= at[:, None]
        x = self.tokens(token)
        for block in self.blocks:
            x = block(x, at, turn, seen)
        return self.head(self.norm(x))[:, -1]


def decoder(seed: int = 0) -> Decoder:
    """In evaluation mode; its random logits are spread out as those of a trained one are."""
    with seeded(seed):
        model = Decoder()
        for module in model.modules():
            if isinstance(module, nn.RMSNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def prompt(seed: int, count: int = 64, vocabulary: int = 96) -> list[tuple[Tensor, Tensor]]:
    """Random tokens, one a step, with their positions."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (count,), generator=generator)
    return [(tokens[i].reshape(1, 1), torch.tensor([i])) for i in range(count)]


def decode(
    step: Callable[[Tensor, Tensor], Tensor], seed: int, count: int = 64
) -> Iterator[Tensor]:
    """The logits of every step."""
    for token, at in prompt(seed, count):
        yield step(token, at).clone()
