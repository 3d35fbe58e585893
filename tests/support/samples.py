"""Seeded inputs of networks: images, sentences, vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from support.attention_nets import BertConfig

Inputs = tuple[Tensor, ...]


def images(batch: int, size: int, seed: int = 0) -> Inputs:
    """Image-like noise, (batch, 3, size, size): smooth areas with grain on top."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, max(size // 16, 2), max(size // 16, 2), generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return (smooth + 0.2 * torch.randn(batch, 3, size, size, generator=generator),)


def sentences(batch: int, config: BertConfig, seed: int = 0) -> Inputs:
    """Token ids and a mask that hides the padding of all but the first sentence."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.length)
    tokens = torch.randint(config.vocabulary, shape, generator=generator)
    lengths = torch.randint(config.length // 2, config.length, (batch, 1), generator=generator)
    lengths[0] = config.length
    return tokens, (torch.arange(config.length) < lengths).long()


def vectors(batch: int, dim: int, seed: int = 0) -> Inputs:
    return (torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed)),)
