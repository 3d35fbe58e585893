"""The inputs of a graph, by node, in one batch of data."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from pt2q.errors import DataError
from pt2q.ir.module.batch_call import as_call, placeholders
from pt2q.ir.torch_private import forward_pre_hooks, pytree


def placed(model: GraphModule, batch: Any) -> dict[Node, Any]:
    """What each input of a graph is in a batch.

    Args:
        model: the module; its own check of inputs is made.
        batch: see `as_call`.

    Raises:
        DataError: the batch is not one call of the model.
        InputShapeError: a size that was exported as a constant differs.
    """
    args, kwargs = as_call(model, batch)
    for hook in forward_pre_hooks(model).values():
        hook(model, args, kwargs)
    leaves, inputs = pytree.tree_leaves((args, kwargs)), placeholders(model)
    if len(leaves) != len(inputs):
        wanted = ", ".join(node.name for node in inputs)
        raise DataError(
            f"a batch holds {len(leaves)} value(s), the model takes {len(inputs)}: {wanted}"
        )
    return dict(zip(inputs, leaves, strict=True))
