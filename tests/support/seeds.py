"""Random numbers that repeat, without moving those of anyone else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The block draws what follows from a seed; what comes after it draws as if it had not run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
