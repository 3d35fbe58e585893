"""A language model in two layers, in a type of half precision, and what it computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from support.seeds import seeded

WORDS, WIDTH, LENGTH = 64, 32, 8
HALVES = [torch.bfloat16, torch.float16]


class WordModel(nn.Module):
    """Logits of the next word behind each of ``[1, LENGTH]`` words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.norm = nn.RMSNorm(WIDTH, 1e-6)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        x = x + self.down(torch.nn.functional.silu(self.up(self.norm(x))))
        return self.head(x)


def word_model(dtype: torch.dtype) -> tuple[torch.export.ExportedProgram, Tensor, Tensor]:
    """The exported program, words that it was not calibrated with, and its logits of them."""
    with seeded(0), torch.no_grad():
        model = WordModel().eval().to(dtype)
    words = sentence(9)
    with torch.no_grad():
        return torch.export.export(model, (words,)), words, model(words)


def sentence(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(WORDS, (1, LENGTH), generator=generator)
