"""A model in every stage, and its copies and pickles."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import nn

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e
from support.small_quantizers import SmallQuantizer


def both(model: nn.Module, args: tuple[Any, ...], **options: Any) -> list[QuantGraphModule]:
    """Prepared (and calibrated), and converted."""
    ready = prepare_pt2e(torch.export.export(model.eval(), args, **options), SmallQuantizer())
    ready(*args, **options.get("kwargs", {}))
    return [ready, convert_pt2e(ready)]


def pickled(model: QuantGraphModule) -> Any:
    return pickle.loads(pickle.dumps(model))


TRAVEL = (copy.deepcopy, pickled)


def copies(model: QuantGraphModule) -> list[QuantGraphModule]:
    return [model, *(move(model) for move in TRAVEL)]
