"""Small models that write into a buffer: caches, sums, slices, views."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, LENGTH = 8, 6


class Stateful(nn.Module):
    """A linear, what it wrote before, and a linear over both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("cache", torch.rand(LENGTH, WIDTH) * 0.1)

    cache: Tensor

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        return self.two(torch.tanh(self.read(self.one(x), at)))

    def read(self, x: Tensor, at: Tensor) -> Tensor:
        raise NotImplementedError


class Copy(Stateful):
    def read(self, x: Tensor, at: Tensor) -> Tensor:
        self.cache.copy_(torch.cat([self.cache[1:], x]))
        return self.cache


class IndexPut(Stateful):
    def read(self, x: Tensor, at: Tensor) -> Tensor:
        self.cache[at] = x
        return self.cache


class IndexCopy(Stateful):
    def read(self, x: Tensor, at: Tensor) -> Tensor:
        return self.cache.index_copy_(0, at, x)


class SliceWrite(Stateful):
    def read(self, x: Tensor, at: Tensor) -> Tensor:
        before = self.cache * 1
        self.cache[2:3] = x
        self.cache[3:].mul_(0.5)
        return before + self.cache


class Sum(Stateful):
    def read(self, x: Tensor, at: Tensor) -> Tensor:
        self.cache.mul_(0.75)
        self.cache.add_(x)
        return self.cache


class ReadsBeforeAndAfter(Stateful):
    """The linear is given the old cache, then the new one."""

    def read(self, x: Tensor, at: Tensor) -> Tensor:
        before = self.one(self.cache)
        self.cache.mul_(0.5).add_(x)
        return before + self.one(self.cache)


class Alias(Stateful):
    """Two buffers with one storage: what is written through one is read through the other."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", self.cache[-1:])

    last: Tensor

    def read(self, x: Tensor, at: Tensor) -> Tensor:
        self.last.copy_(x)
        whole = self.cache * 1
        self.cache.mul_(0.5)
        return whole + self.last


STATEFUL: list[type[Stateful]] = [
    Copy,
    IndexPut,
    IndexCopy,
    SliceWrite,
    Sum,
    ReadsBeforeAndAfter,
    Alias,
]


def steps(count: int = 8, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(1, WIDTH, generator=generator), torch.tensor([i % LENGTH]))
        for i in range(count)
    ]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: b for name, b in model.named_buffers() if name in ("cache", "last")}


def kept(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in state_of(model).items()}


def written(program: torch.export.ExportedProgram) -> set[str]:
    """The buffers that a program writes into; known once it is functional."""
    found = set(program.run_decompositions({}).graph_signature.buffers_to_mutate.values())
    assert found
    return found
