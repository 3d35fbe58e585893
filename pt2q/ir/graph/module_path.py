"""Which module of the user's a node was traced in."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from torch.fx import Node


def module_path(node: Node) -> str:
    """The qualified name of the innermost module a node was traced in, "" for the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return normalize_path(str(list(stack.values())[-1][0]))


def module_stack(node: Node) -> tuple[tuple[str, str], ...]:
    """(qualified name, class name) of every module a node was traced in, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple((normalize_path(str(path)), _class_name(kind)) for path, kind in stack.values())


def _class_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)


@lru_cache(maxsize=65536)
def normalize_path(path: str) -> str:
    """A module path as ``named_modules`` writes it.

    Strict export writes ``L['self'].block._modules['0']`` or ``L__self___block_0``-like names in
    places; what can be told apart is turned into ``block.0``.

    Args:
        path: the path recorded in ``nn_module_stack``.
    """
    path = re.sub(r"^L\['self'\]\.?|^L__self__\.?", "", path)
    path = re.sub(r"\._modules\['([^']+)'\]", r".\1", path)
    path = re.sub(r"^_modules\['([^']+)'\]", r"\1", path)
    path = re.sub(r"getattr\((.+?), '([^']+)'\)", r"\1.\2", path)
    # A module called several times in one model is recorded as name@1, name@2, ...
    return re.sub(r"@\d+", "", path)
