"""Modules with many plain attributes, made by the hundred."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_PLAIN = frozenset({bool, int, float, str, torch.dtype, torch.qscheme, type(None)})


class PlainAttributes(nn.Module):
    """A module that takes numbers, names and types for attributes without asking what they are.

    ``nn.Module`` asks of everything that is set whether it is a parameter, a module or a buffer,
    which costs more than all else in the making of an observer.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        held = self.__dict__
        if type(value) not in _PLAIN or "_modules" not in held:
            super().__setattr__(name, value)
        elif name in held["_buffers"] or name in held["_parameters"] or name in held["_modules"]:
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)
