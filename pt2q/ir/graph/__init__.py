"""Typed access to exported graphs: values, metadata, edges, constants, names, a text dump.

Everything here is linear in what it is asked about: names are drawn from a set that is built
once, and edges are edited through the consumer that changes.
"""

from pt2q.ir.graph.attributes import (
    beside,
    delete_constant,
    find_attribute,
    find_owner,
    get_constant,
    holds_tensor,
    is_constant,
    is_parameter,
    is_persistent,
    named_tensors,
    replace_tensor,
    set_constant,
    split_name,
)
from pt2q.ir.graph.edges import EdgeOrNode, edge_name, inputs_of
from pt2q.ir.graph.metadata import (
    CUSTOM_KEY,
    FROM_NODE_KEY,
    HANDLE_KEY,
    OWN_META,
    OWN_PASSES,
    QUANT_ANNOTATION_KEY,
    TRACE_META,
    add_meta,
    carry,
    copy_meta,
    handed_on,
    handle_of,
    origin_name,
    provenance,
    replace_meta,
    set_handle,
    stand_for,
)
from pt2q.ir.graph.module_path import module_path, module_stack, normalize_path
from pt2q.ir.graph.names import Names
from pt2q.ir.graph.observers import is_observer, is_observer_call, observed_value, real_readers
from pt2q.ir.graph.text import dump
from pt2q.ir.graph.values import fake_constant, fake_like, is_float_tensor, value_of

__all__ = [
    "CUSTOM_KEY",
    "FROM_NODE_KEY",
    "HANDLE_KEY",
    "OWN_META",
    "OWN_PASSES",
    "QUANT_ANNOTATION_KEY",
    "TRACE_META",
    "EdgeOrNode",
    "Names",
    "add_meta",
    "beside",
    "carry",
    "copy_meta",
    "delete_constant",
    "dump",
    "edge_name",
    "fake_constant",
    "fake_like",
    "find_attribute",
    "find_owner",
    "get_constant",
    "handed_on",
    "handle_of",
    "holds_tensor",
    "inputs_of",
    "is_constant",
    "is_float_tensor",
    "is_observer",
    "is_observer_call",
    "is_parameter",
    "is_persistent",
    "module_path",
    "module_stack",
    "named_tensors",
    "normalize_path",
    "observed_value",
    "origin_name",
    "provenance",
    "real_readers",
    "replace_meta",
    "replace_tensor",
    "set_constant",
    "set_handle",
    "split_name",
    "stand_for",
    "value_of",
]
