"""How well a language model foretells a text: perplexity, before and after quantization."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pt2q.errors import ComparisonError


def perplexity(logits_of: Callable[[Tensor], Tensor], texts: Iterable[Tensor]) -> float:
    """``exp`` of the mean of ``-log p(token | tokens before it)``.

    Args:
        logits_of: gives logits ``[1, N, vocabulary]`` of tokens ``[1, N]``, each row those of the
            token behind it.
        texts: tokens ``[1, N]``; the first of each is foretold by nothing and does not count.

    Returns:
        1 for a model that knows the text, the size of the vocabulary for one that guesses.

    Raises:
        ComparisonError: there is no token to foretell.
    """
    total, count = 0.0, 0
    with torch.no_grad():
        for tokens in filter(_has_two, texts):
            logits = logits_of(tokens)[0, :-1].float()
            total += float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
            count += tokens.shape[1] - 1
    if count == 0:
        raise ComparisonError("perplexity takes texts of two tokens or more; found none")
    return math.exp(total / count)


def _has_two(tokens: Tensor) -> bool:
    return tokens.shape[1] > 1


def chunks(tokens: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A text in pieces of one size, with the positions of each: what a prefill program takes.

    Args:
        tokens: ``[1, N]``; what is left behind the last whole piece is not given.
        size: of the pieces.
    """
    for start in range(0, tokens.shape[1] - size + 1, size):
        yield tokens[:, start : start + size], torch.arange(start, start + size)
