"""What the bytes of a written file hold: weights by their type, and the rest."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch.fx import GraphModule, Node

from pt2q.deploy.describing import describe
from pt2q.deploy.finished_file import bytes_text
from pt2q.errors import Pt2qError
from pt2q.ir import ops
from pt2q.ir.control_flow import graph_modules
from pt2q.ir.graph import get_constant, is_constant
from pt2q.ir.qparams import read_qparams
from pt2q.ir.storage import place_of

_BY_KIND = "constants, "
_WEIGHTS = ("weights of delegates", "constants")
_NAMES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class Holdings:
    """What a file holds.

    Args:
        weights: (type, bytes), most first.
        rest: bytes of the graph, of code and of all else.
    """

    weights: tuple[tuple[str, int], ...]
    rest: int

    def __str__(self) -> str:
        """``weights 1.20 MB int8 + 0.10 MB float32, program 0.30 MB``."""
        parts = [f"{bytes_text(size)} {kind}" for kind, size in self.weights]
        return f"weights {' + '.join(parts) or 'none'}, program {bytes_text(self.rest)}"


def holdings(path: Path, size: int, *models: GraphModule) -> Holdings:
    """What a file holds, by what it says of itself; by its model where it does not.

    Args:
        path: the file.
        size: its bytes, with those of files beside it.
        *models: the converted models that it was made from.
    """
    held = stored_weights(*models)
    said: dict[str, int] = {}
    with suppress(Pt2qError):  # a file of another backend need not be what its suffix says
        account = describe(path)
        said = {} if account is None else dict(account.sizes)
    by_kind = {k.removeprefix(_BY_KIND): n for k, n in said.items() if k.startswith(_BY_KIND)}
    if by_kind:
        held = Counter({_NAMES.get(kind, kind): count for kind, count in by_kind.items()})
    elif total := sum(said.get(name, 0) for name in _WEIGHTS):
        # A delegate packs weights with their scales and biases, and says how many bytes in all.
        held["float32"] = max(total - sum(held.values()) + held["float32"], 0)
    held = +held
    return Holdings(tuple(held.most_common()), max(size - sum(held.values()), 0))


def stored_weights(*models: GraphModule) -> Counter[str]:
    """The bytes of converted models' constants by type; four bits count as half a byte.

    Args:
        *models: what `convert_pt2e` gave; what they share counts once.
    """
    found = Counter[str]()
    seen: set[Any] = set()
    for module in chain.from_iterable(map(graph_modules, models)):
        for node in module.graph.nodes:
            if not is_constant(node) or _is_zero_point(node, module):
                continue
            tensor = get_constant(module, node)
            key = place_of(tensor), tensor.dtype
            if key not in seen:
                seen.add(key)
                four = _in_four_bits(node)
                kind = "int4" if four else str(tensor.dtype).removeprefix("torch.")
                found[kind] += tensor.nbytes // 2 if four else tensor.nbytes
    return found


def _is_zero_point(node: Node, module: GraphModule) -> bool:
    """Zero points of weights are 0, and runtimes store none."""
    if get_constant(module, node).is_floating_point():
        return False
    return all(ops.is_op(u, ops.DEQUANTIZE) and u.args[0] is not node for u in node.users)


def _in_four_bits(node: Node) -> bool:
    readers = [u for u in node.users if ops.is_op(u, ops.DEQUANTIZE) and u.args[0] is node]
    limits = [(found.quant_min, found.quant_max) for found in map(read_qparams, readers)]
    return bool(limits) and all(pair == (-8, 7) for pair in limits)
