"""The float tensors that algorithms have put others in the place of, kept with the model.

What an algorithm lowers is the distance from the float model, so one that comes after another needs
the weights that were there before both.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from pt2q.algorithms.engine.lane import Place
from pt2q.algorithms.layers import set_tensor
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.float_tensors import FloatTensors
from pt2q.ir.graph import get_constant, named_tensors
from pt2q.ir.module import QuantGraphModule


def originals(model: QuantGraphModule) -> dict[Place, Tensor]:
    """The float tensors of a prepared model by where their successors are."""
    fact = model.record.get(FloatTensors)
    owners = dict(named_graph_modules(model))
    return {(owners[path], name): t for (path, name), t in (fact.kept if fact else {}).items()}


def replace_float(model: QuantGraphModule, places: tuple[Place, ...], value: Tensor) -> None:
    """Put another tensor in the place of a float one, which is kept as the original.

    Args:
        model: a prepared model; changed in place.
        places: all names of the tensor.
        value: what the quantized model is to have; on the first change the old one is kept.
    """
    paths: dict[Any, str] = {module: path for path, module in named_graph_modules(model)}
    fact = model.record.get(FloatTensors)
    kept = dict(fact.kept) if fact else {}
    for owner, target in places:
        kept.setdefault((paths[owner], target), get_constant(owner, target).detach())
    model.record.put(FloatTensors(kept))
    set_tensor(places, value)


def fork(model: QuantGraphModule) -> QuantGraphModule:
    """A copy with observers of its own that shares the weights, which are replaced, not written."""
    held = {id(t): t for t in named_tensors(model).values() if isinstance(t, nn.Parameter)}
    return copy.deepcopy(model, dict(held))
