"""A decoder of any size, in a file; a process of its own quantizes it and says what that took."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q import quantize_pt2e
from pt2q.algorithms.low_memory import _Watching
from pt2q.quantizers import XNNPACKQuantizer
from support.memory_limit import join


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        weights = torch.softmax(self.q(y) @ self.k(y).transpose(-1, -2), -1)
        x = x + self.o(weights @ self.v(y))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Decoder(nn.Module):
    def __init__(self, width: int, depth: int, words: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def tokens(index: int) -> tuple[Tensor]:
    generator = torch.Generator().manual_seed(index)
    return (torch.randint(64, (1, 8), generator=generator),)


def save_decoder(path: Path, width: int, depth: int) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(width, depth).eval()
    torch.export.save(torch.export.export(model, tokens(0)), path)
    return model


def quantized(model: Any, **options: Any) -> Any:
    return quantize_pt2e(model, XNNPACKQuantizer(), [tokens(i) for i in range(4)], **options)


def memory(name: str) -> int:
    """A line of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def killed(saved: str, folder: str, values: str) -> None:
    """Quantize piece by piece, and be killed when observers have been shown so many values."""
    seen = itertools.count(1)
    observed = _Watching.observed

    def counting(self: Any, observer: Any, value: Any, **more: Any) -> Any:
        if next(seen) == int(values):
            os.kill(os.getpid(), signal.SIGKILL)
        return observed(self, observer, value, **more)

    _Watching.observed = counting  # type: ignore[method-assign]
    quantized(saved, low_memory=True, resume=folder)


def grown(small: str, big: str, low: str, group: str | None = None) -> None:
    """Print by how much memory grew, at most, while a decoder was quantized, in a group or not."""
    torch.set_num_threads(1)
    quantized(small, low_memory=low == "low")  # what is imported and compiled once
    if group is not None:
        join(Path(group))
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    made = quantized(big, low_memory=low == "low")
    peak = memory("VmHWM") - before
    print(
        json.dumps(
            {"grown": peak, "held": memory("VmRSS") - before, "nodes": len(made.graph.nodes)}
        )
    )


if __name__ == "__main__":
    {"grown": grown, "killed": killed}[sys.argv[1]](*sys.argv[2:])
