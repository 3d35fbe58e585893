"""One decoder as two programs: a prompt at once, then one token a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from support.decoder import Decoder, DecoderConfig
from support.seeds import seeded

PROMPT = 32
SMALL = DecoderConfig(vocabulary=64, dim=32, layers=1, hidden=64, length=96)
Step = Callable[[Tensor, Tensor], Tensor]


def small_decoder() -> Decoder:
    with seeded(0):
        return Decoder(SMALL).eval()


def two_programs(model: Decoder, prompt: int = PROMPT) -> dict[str, torch.export.ExportedProgram]:
    """``prefill`` and ``decode`` of one decoder."""
    with torch.no_grad():
        return {name: torch.export.export(model, args) for name, args in examples(prompt).items()}


def examples(prompt: int = PROMPT) -> dict[str, tuple[Tensor, Tensor]]:
    words = sentence(0, prompt)
    return {"prefill": (words, torch.arange(prompt)), "decode": (words[:, :1], torch.arange(1))}


def sentence(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SMALL.vocabulary, (1, count), generator=generator)


def generate(programs: Mapping[str, Step], seed: int, steps: int, prompt: int = PROMPT) -> Tensor:
    """The logits behind the prompt, then of every step: ``[1 + steps, vocabulary]``."""
    words = sentence(seed, prompt + steps)
    with torch.no_grad():
        found = [programs["prefill"](words[:, :prompt], torch.arange(prompt)).clone()]
        for at in range(prompt, prompt + steps):
            found.append(programs["decode"](words[:, at : at + 1], torch.tensor([at])).clone())
    return torch.cat(found)
