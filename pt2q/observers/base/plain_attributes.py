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
        if type(value) in _PLAIN and not self._is_registered(name):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _is_registered(self, name: str) -> bool:
        held = self.__dict__
        if "_modules" not in held:  # made already?
            return True
        return name in held["_buffers"] or name in held["_parameters"] or name in held["_modules"]
