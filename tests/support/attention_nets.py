"""Transformers with their matmuls and softmax in sight: ViT and BERT, of any size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention with its matmuls and softmax in sight; `mask` is added to the scores."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (self.split(project(x)) for project in (self.query, self.key, self.value))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.out(mixed.reshape(x.shape))

    def split(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        return x.reshape(batch, length, self.heads, dim // self.heads).transpose(1, 2)


class FeedForward(nn.Sequential):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class Block(nn.Module):
    """The layers of an encoder block; where the norms stand differs."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attention = Attention(dim, heads)
        self.mlp = FeedForward(dim, 4 * dim)


class PreNormBlock(Block):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNormBlock(Block):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, 1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.mlp(x))


@dataclass(frozen=True)
class ViTConfig:
    image: int = 224
    patch: int = 16
    dim: int = 384
    depth: int = 12
    heads: int = 6
    num_classes: int = 1000


class ViT(nn.Module):
    """Dosovitskiy et al. 2020; the defaults are ViT-S/16, dim=768 and heads=12 make it ViT-B/16."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, config.dim, config.patch, config.patch)
        count = (config.image // config.patch) ** 2
        self.token = nn.Parameter(torch.randn(1, 1, config.dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, count + 1, config.dim) * 0.02)
        blocks = (PreNormBlock(config.dim, config.heads) for _ in range(config.depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(config.dim, 1e-6)
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


@dataclass(frozen=True)
class BertConfig:
    vocabulary: int = 1000
    length: int = 64
    dim: int = 128
    depth: int = 4
    heads: int = 4
    num_classes: int = 2


class Bert(nn.Module):
    """Devlin et al. 2018: an integer attention mask, and a class read from the first token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.dim)
        self.positions = nn.Embedding(config.length, config.dim)
        self.norm = nn.LayerNorm(config.dim, 1e-12)
        blocks = (PostNormBlock(config.dim, config.heads) for _ in range(config.depth))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.tokens(tokens) + self.positions(places))
        hidden = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for block in self.blocks:
            x = block(x, hidden)
        return self.head(x[:, 0])
