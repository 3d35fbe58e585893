"""A small language model of bytes: a decoder of 1.25 million weights, to quantize to a few bits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DECODER = Path(__file__).with_name("decoder.pt")
CONTEXT = 128
_BYTES, _WIDTH, _DEPTH, _HEADS = 256, 128, 6, 4


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm and added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wider = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.query, self.key, self.value = (nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        self.mix = nn.Linear(_WIDTH, _WIDTH)
        self.up, self.down = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) to the same."""
        h = self.norm(x)
        q, k, v = (
            layer(h).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).flatten(2))
        added: Tensor = x + self.down(F.gelu(self.up(self.wider(x))))
        return added


class ByteDecoder(nn.Module):
    """(batch, length) bytes, at most `CONTEXT`, to (batch, length, 256) logits of the next ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(_BYTES, _WIDTH), nn.Embedding(CONTEXT, _WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(_DEPTH)))
        self.norm, self.head = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _BYTES)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict, at each place, the byte behind it."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        logits: Tensor = self.head(
            self.norm(self.blocks(self.embed(tokens) + self.position(places)))
        )
        return logits
