"""What nodes were made from, shared instead of copied while a program is lowered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx.traceback import NodeSource

from pt2q.replaced import replaced


@contextmanager
def shared_node_sources() -> Iterator[None]:
    """Let all nodes share the entries of their histories.

    torch keeps for each node the chain of nodes that it was made from, and copies the whole chain
    deeply for every node of every pass. Lowering runs some sixty passes, so the chains grow long:
    a sixth of its time goes into their copies. No entry changes once it is made.
    Lowerings take turns.
    """
    with replaced(NodeSource, __deepcopy__=_itself):
        yield


def _itself(source: Any, memo: dict[int, Any]) -> Any:
    return source
