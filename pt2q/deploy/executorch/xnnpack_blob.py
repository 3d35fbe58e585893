"""What a blob of XNNPACK computes: its nodes, read from its flatbuffer.

ExecuTorch writes such blobs and offers nothing to read them. The layout is that of
``runtime_schema.fbs``, which stands beside its code and is where the names of nodes come from.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from functools import lru_cache
from importlib import resources

_HEADER = b"XH00"
_NODES, _KIND = 1, 0
"""Fields: of the graph, its nodes; of a node, which kind it is."""


def nodes_of(blob: bytes) -> Counter[str]:
    """The operators in a blob, by name; nothing where its layout is not known.

    Args:
        blob: what the delegate is given.
    """
    start = struct.unpack_from("<I", blob, 10)[0] if blob[4:8] == _HEADER else 0
    try:
        graph = start + _u32(blob, start)
        vector = _pointer(blob, graph, _NODES)
        count = 0 if vector is None else _u32(blob, vector)
        places = (vector + 4 + 4 * i for i in range(count)) if vector is not None else ()
        kinds = [_kind(blob, place + _u32(blob, place)) for place in places]
    except (struct.error, IndexError):
        return Counter()
    names = _names()
    return Counter(names[kind - 1] for kind in kinds if 0 < kind <= len(names))


@lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    schema = resources.files("executorch.backends.xnnpack") / "serialization/runtime_schema.fbs"
    found = re.search(r"union XNodeUnion \{(.*?)\}", schema.read_text(), re.DOTALL)
    return tuple(re.findall(r"^\s*XNN(\w+)", found[1], re.MULTILINE)) if found else ()


def _u32(blob: bytes, place: int) -> int:
    found: int = struct.unpack_from("<I", blob, place)[0]
    return found


def _field(blob: bytes, table: int, number: int) -> int | None:
    """Where a field of a table stands; None where it is left out."""
    vtable = table - struct.unpack_from("<i", blob, table)[0]
    (size,) = struct.unpack_from("<H", blob, vtable)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", blob, vtable + 4 + 2 * number)
    return table + offset if offset else None


def _pointer(blob: bytes, table: int, number: int) -> int | None:
    place = _field(blob, table, number)
    return None if place is None else place + _u32(blob, place)


def _kind(blob: bytes, table: int) -> int:
    place = _field(blob, table, _KIND)
    return 0 if place is None else blob[place]
