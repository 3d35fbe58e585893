"""Check the laws of the graph on any prepared or converted model.

`verify` looks; `VerifyReport.raise_if_broken` complains. Each law is one function in `LAWS` that
yields what breaks it, by node.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from pt2q.errors import GraphLawError
from pt2q.ir import ops
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.graph import OWN_PASSES, annotation_of, edge_name
from pt2q.ir.model_state import copies
from pt2q.ir.module import QuantGraphModule, Stage
from pt2q.spec.specs import EdgeOrNode, SharedQuantizationSpec


@dataclass(frozen=True)
class Violation:
    """A law that is broken.

    Args:
        law: its name in `LAWS`.
        node: the node, parameter or submodule at which.
        text: what was expected and what was found.
    """

    law: str
    node: str
    text: str

    def __str__(self) -> str:
        return f"[{self.law}] {self.node}: {self.text}"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Args:
        violations: in the order of the laws, then of the graph.
        laws: the names of the laws that were checked.
    """

    violations: tuple[Violation, ...]
    laws: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all laws hold."""
        return not self.violations

    def raise_if_broken(self) -> None:
        """Complain.

        Raises:
            GraphLawError: some law does not hold; the message names each violation.
        """
        if self.violations:
            raise GraphLawError(str(self))

    def __str__(self) -> str:
        if self.ok:
            return f"all laws hold: {', '.join(self.laws)}"
        return "\n".join(
            [f"{len(self.violations)} violation(s):", *(f"  {v}" for v in self.violations)]
        )


def verify(
    model: GraphModule,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    laws: Collection[str] | None = None,
) -> VerifyReport:
    """Check the laws of the graph, on the model and on the bodies of its control flow.

    Args:
        model: prepared, converted or float; it is not changed.
        example_inputs: with them the recorded values are compared with real ones, and a converted
            model is exported anew.
        laws: names of the laws to check; None means all that apply.

    Returns:
        The report. ``verify(model).raise_if_broken()`` raises on the first broken law.

    Raises:
        ValueError: there is no law of that name.
    """
    chosen = _chosen(laws, with_inputs=example_inputs is not None)
    violations = []
    for path, module in named_graph_modules(model):
        for law in chosen:
            if law in ON_GRAPHS:
                found = ON_GRAPHS[law](module)
                violations += [Violation(law, path + name, text) for name, text in found]
    for law in chosen:
        if law in ON_RUNS and example_inputs is not None:
            violations += [Violation(law, *found) for found in ON_RUNS[law](model, example_inputs)]
    return VerifyReport(tuple(violations), tuple(chosen))


def _chosen(laws: Collection[str] | None, *, with_inputs: bool) -> list[str]:
    unknown = sorted(set(laws or ()) - LAWS.keys())
    if unknown:
        raise ValueError(f"there is no law {unknown[0]!r}; the laws are {sorted(LAWS)}")
    return [
        law for law in LAWS if (laws is None or law in laws) and (with_inputs or law not in ON_RUNS)
    ]


# ------------------------------------------------------------------ structure

Found = Iterator[tuple[str, str]]


def _lint(model: GraphModule) -> Found:
    """The graph is well formed: nothing is read before it is made, names are unique."""
    try:
        model.graph.lint()
    except Exception as error:
        yield "graph", f"does not lint: {error}"


def _attributes(model: GraphModule) -> Found:
    """What the graph reads or calls is in the module."""
    for node in model.graph.nodes:
        if node.op in ("get_attr", "call_module") and _attribute(model, str(node.target)) is None:
            yield node.name, f"refers to {node.target!r}, which the module does not have"


def _attribute(model: GraphModule, target: str) -> Any:
    found: Any = model
    for part in target.split("."):
        found = getattr(found, part, None)
    return found


def _unused(model: GraphModule) -> Found:
    """What the module holds is read: after conversion all of it, before that the observers."""
    nodes = [n for n in model.graph.nodes if n.op in ("get_attr", "call_module")]
    read = {str(n.target) for n in nodes}
    for name, module in model.named_modules(remove_duplicate=False):
        if name and hasattr(module, "calculate_qparams") and not _is_read(name, read):
            yield name, "is an observer that no node calls"
    if _stage(model) is not Stage.CONVERTED:
        return
    held = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    held += [name for name, _ in model.named_buffers(remove_duplicate=False)]
    for name in held:
        if not _is_read(name, read):
            yield name, "is held by the module and read by no node"
    for node in nodes:
        if not node.users and node.op == "get_attr":
            yield node.name, f"reads {node.target!r} for nobody"


def _is_read(name: str, read: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in read for i in range(len(parts)))


def _stage(model: GraphModule) -> Stage:
    return model.record.stage if isinstance(model, QuantGraphModule) else Stage.FLOAT


# ------------------------------------------------------------------ quantization parameters

PARAMETERS = ("scale", "zero_point", "quant_min", "quant_max", "dtype", "axis", "group_size")


def _parameters_of(model: GraphModule, node: Node) -> dict[str, Any]:
    """Arguments of a quantize or dequantize by one name, constants as tensors."""
    found = {}
    for name in PARAMETERS:
        given = name if ops.has_argument(node, name) else f"{name}s"
        if ops.has_argument(node, given):
            found[name] = _resolved(model, ops.argument(node, given))
    return found


def _resolved(model: GraphModule, value: Any) -> Any:
    """A constant's tensor; for an element of several results, whose and which."""
    if not isinstance(value, Node):
        return value
    if value.op == "get_attr":
        return _attribute(model, str(value.target))
    if value.target is ops.GETITEM:
        return value.args
    return value


def _parameters(model: GraphModule) -> Found:
    """Scales are finite and positive, zero points in the range, the range in the dtype."""
    for node in model.graph.nodes:
        if ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE):
            for text in _faults(node, _parameters_of(model, node)):
                yield node.name, text


def _faults(node: Node, found: dict[str, Any]) -> Iterator[str]:
    low, high, dtype = found["quant_min"], found["quant_max"], found["dtype"]
    if isinstance(low, Node) or isinstance(high, Node) or not isinstance(dtype, torch.dtype):
        return
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    if not info.min <= low < high <= info.max:
        yield f"its range [{low}, {high}] is empty or outside of {dtype}"
    scale, zero_point = found["scale"], found.get("zero_point")
    if _is_known(scale):
        yield from _scale_faults(torch.as_tensor(scale, dtype=torch.float64))
    if _is_known(zero_point):
        yield from _zero_point_faults(torch.as_tensor(zero_point), low, high)
    yield from _size_faults(node, found)


def _is_known(value: Any) -> bool:
    return isinstance(value, Tensor | int | float)


def _scale_faults(scale: Tensor) -> Iterator[str]:
    bad = ~torch.isfinite(scale) | (scale <= 0)
    if bool(bad.any()):
        yield f"its scale must be finite and positive, found {scale[bad].flatten()[:4].tolist()}"


def _zero_point_faults(zero_point: Tensor, low: int, high: int) -> Iterator[str]:
    if zero_point.is_floating_point():
        if not bool(torch.isfinite(zero_point).all()):
            yield "its zero point is not finite"
        return
    bad = (zero_point < low) | (zero_point > high)
    if bool(bad.any()):
        found = zero_point[bad].flatten()[:4].tolist()
        yield f"its zero point must be in [{low}, {high}], found {found}"


def _size_faults(node: Node, found: dict[str, Any]) -> Iterator[str]:
    """One scale per channel of the dimension that has its own."""
    axis, scale, value = found.get("axis"), found["scale"], node.meta.get("val")
    if axis is None or not isinstance(scale, Tensor) or not isinstance(value, Tensor):
        return
    if not -value.dim() <= axis < value.dim():
        yield f"its axis {axis} is not one of {value.dim()} dimensions"
    elif isinstance(value.shape[axis], int) and scale.shape != (value.shape[axis],):
        yield f"{tuple(scale.shape)} scales for {value.shape[axis]} channels"


def _mirror(model: GraphModule) -> Found:
    """A dequantize has the parameters of its quantize; what is stored fits its range."""
    for node in model.graph.nodes:
        if not ops.is_op(node, ops.DEQUANTIZE):
            continue
        source = _source(node)
        if ops.is_op(source, ops.QUANTIZE):
            one, other = _parameters_of(model, source), _parameters_of(model, node)
            for name in sorted(one.keys() & other.keys()):
                if not _same(one[name], other[name]):
                    text = f"{name} is {_short(other[name])}, that of {source.name} is "
                    yield node.name, text + _short(one[name])
        elif source.op == "get_attr":
            yield from _stored_faults(model, node, source)


def _source(node: Node) -> Node:
    """What made the integers, seen through operators that only move them."""
    at: Any = ops.data_input(node)
    while ops.is_op(at, ops.MOVES) and not ops.has_argument(node, "axis"):
        at = ops.data_input(at)
    assert isinstance(at, Node)
    return at


def _stored_faults(model: GraphModule, node: Node, source: Node) -> Found:
    stored, found = _attribute(model, str(source.target)), _parameters_of(model, node)
    if not isinstance(stored, Tensor) or not stored.numel():
        return
    if stored.dtype != found["dtype"]:
        yield node.name, f"{source.target} holds {stored.dtype}, it reads {found['dtype']}"
        return
    if stored.dtype.is_floating_point or isinstance(found["quant_min"], Node):
        return
    low, high = int(stored.min()), int(stored.max())
    if low < found["quant_min"] or high > found["quant_max"]:
        limits = f"[{found['quant_min']}, {found['quant_max']}]"
        yield node.name, f"{source.target} holds [{low}, {high}], its range is {limits}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Node) or isinstance(other, Node):
        return one is other
    return bool(one == other)


def _short(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() > 4:
        return f"a tensor of {tuple(value.shape)}"
    return str(value)


# ------------------------------------------------------------------ metadata

ORIGIN = ("nn_module_stack", "stack_trace")


def _metadata(model: GraphModule) -> Found:
    """Nodes say what they compute and where they come from."""
    calls = [n for n in model.graph.nodes if n.op in ("call_function", "call_module")]
    general, inserted = _recorded_keys(model, calls)
    for node in calls:
        if "val" not in node.meta and _gives_something(node):
            yield node.name, "has no recorded value"
        for key in inserted if _is_inserted(model, node) else general:
            if not node.meta.get(key) and _near_calls(node):
                yield node.name, f"has no {key}"


def _gives_something(node: Node) -> bool:
    """Assertions give nothing, and export records nothing for some of them."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or bool(schema.returns)


def _recorded_keys(model: GraphModule, calls: list[Node]) -> tuple[list[str], list[str]]:
    """What all operators of a graph should carry, and what those inserted by passes should.

    Export gives a stack trace to the operators that it finds in a file, a module to those that it
    traced and not to those that unpack a subclass of tensors, and no operator inside a body of
    control flow gets a ``from_node``.
    """
    exported = [n for n in calls if not (_is_made_by_passes(n) or _is_inserted(model, n))]
    keys = [k for k in ORIGIN if exported and all(n.meta.get(k) for n in exported)]
    from_export = any(map(_is_from_export, calls))
    from_passes = any(n.meta.get("from_node") for n in calls)
    general = [*keys, "from_node"] if from_export else keys
    return general, [*keys, "from_node"] if from_passes else general


def _is_made_by_passes(node: Node) -> bool:
    sources: Any = node.meta.get("from_node") or ()
    return len(sources) > 0 and str(sources[-1].pass_name).startswith(OWN_PASSES)


def _is_from_export(node: Node) -> bool:
    """Whether ``from_node`` goes back to the exported program.

    Export says of no operator inside a body of control flow where it comes from: there only what
    passes made for such an operator has a ``from_node``.
    """
    sources: Any = node.meta.get("from_node")
    if not sources:
        return False
    while sources[-1].from_node:
        sources = sources[-1].from_node
    return not str(sources[-1].pass_name).startswith(OWN_PASSES)


def _is_inserted(model: GraphModule, node: Node) -> bool:
    return ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE) or _is_observer_call(model, node)


def _near_calls(node: Node) -> bool:
    """Whether there is an operator of the user's to take an origin from."""
    return any(n.op == "call_function" for n in (*node.all_input_nodes, *node.users))


def _dtypes(model: GraphModule) -> Found:
    """The recorded values of quantize and dequantize are integers and real numbers."""
    for node in model.graph.nodes:
        if not ops.is_op(node, ops.QUANTIZE | ops.DEQUANTIZE):
            continue
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        stored = ops.is_op(node, ops.QUANTIZE)
        dtype = ops.argument(node, "dtype")
        if stored and value.dtype != dtype:
            yield node.name, f"is recorded as {value.dtype}, it makes {dtype}"
        if not stored and not value.dtype.is_floating_point:
            yield node.name, f"is recorded as {value.dtype}, it makes floating point numbers"


# ------------------------------------------------------------------ sharing


def _sharing(model: GraphModule) -> Found:
    """Tensors that share parameters are watched by one observer."""
    for node in model.graph.nodes:
        annotation = annotation_of(node)
        if annotation is None:
            continue
        specs: list[tuple[EdgeOrNode, Any]] = [(node, annotation.output_qspec)]
        specs += [((source, node), spec) for source, spec in annotation.input_qspec_map.items()]
        for key, spec in specs:
            if isinstance(spec, SharedQuantizationSpec):
                yield from _sharing_faults(model, key, spec.edge_or_node)


def _sharing_faults(model: GraphModule, key: EdgeOrNode, other: EdgeOrNode) -> Found:
    mine, theirs = _observer_at(model, key), _observer_at(model, other)
    if mine is not None and theirs is not None and mine is not theirs:
        name = key.name if isinstance(key, Node) else key[1].name
        yield name, f"{edge_name(key)} and {edge_name(other)} share, but have two observers"


def _observer_at(model: GraphModule, key: EdgeOrNode) -> Any:
    """The observer of an edge or node; None where it cannot be told."""
    if isinstance(key, Node):
        calls = [n for n in key.users if _is_observer_call(model, n)]
    else:
        producer, consumer = key
        if consumer.graph is not model.graph:
            return None
        calls = [
            n
            for n in consumer.all_input_nodes
            if _is_observer_call(model, n) and _observed(model, n) is producer
        ]
    if len(calls) != 1 or calls[0].graph is not model.graph:
        return None
    return _attribute(model, str(calls[0].target))


def _is_observer_call(model: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and hasattr(
        _attribute(model, str(node.target)), "calculate_qparams"
    )


def _observed(model: GraphModule, node: Node) -> Node:
    at = node
    while _is_observer_call(model, at):
        at = at.all_input_nodes[0]
    return at


# ------------------------------------------------------------------ what running shows


class _Compare(Interpreter):
    """Runs a graph and compares each value with what is recorded for it."""

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.found: list[tuple[str, str]] = []

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op != "output" and n.meta.get("val") is not None:
            recorded, real = pytree.tree_leaves(n.meta["val"]), pytree.tree_leaves(result)
            for one, other in zip(recorded, real, strict=False):
                if isinstance(one, Tensor) and isinstance(other, Tensor):
                    self._compare(n, one, other)
        return result

    def _compare(self, node: Node, recorded: Tensor, real: Tensor) -> None:
        known = len(recorded.shape) == len(real.shape) and all(
            not isinstance(a, int) or a == b
            for a, b in zip(recorded.shape, real.shape, strict=True)
        )
        if recorded.dtype == real.dtype and known:
            return
        text = f"is recorded as {recorded.dtype} {tuple(recorded.shape)}, "
        self.found.append((node.name, text + f"it is {real.dtype} {tuple(real.shape)}"))


def _values(model: GraphModule, inputs: tuple[Any, ...]) -> Found:
    """What is recorded of each value is what it is: its dtype and sizes."""
    runner = _Compare(_twin(model))
    try:
        with torch.no_grad():
            runner.run(*_twin(inputs))
    except Exception as error:
        yield "graph", f"does not run on the example inputs: {error}"
    yield from runner.found


def _exportable(model: GraphModule, inputs: tuple[Any, ...]) -> Found:
    """A converted model can be exported again."""
    if _stage(model) in (Stage.PREPARED, Stage.PREPARED_QAT):
        return
    try:
        torch.export.export(_twin(model), _twin(inputs))
    except Exception as error:
        yield "graph", f"cannot be exported again: {error}"


Copied = TypeVar("Copied")


def _twin(of: Copied) -> Copied:
    """A deep copy of a model or of inputs, also where torch cannot make one of a tensor.

    Subclasses and layouts without a storage are cloned.
    """
    if isinstance(of, nn.Module):
        held: list[Any] = [*of.parameters(), *of.buffers()]
    else:
        held = [leaf for leaf in pytree.tree_leaves(of) if isinstance(leaf, Tensor)]
    special = {str(id(t)): t for t in held if not _is_plain(t)}
    memo: dict[int, Any] = {int(key): made for key, made in copies(special).items()}
    return copy.deepcopy(of, memo)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided


# ------------------------------------------------------------------ the laws

ON_GRAPHS: dict[str, Callable[[GraphModule], Found]] = {
    "lint": _lint,
    "attributes": _attributes,
    "unused": _unused,
    "parameters": _parameters,
    "mirror": _mirror,
    "metadata": _metadata,
    "dtypes": _dtypes,
    "sharing": _sharing,
}
ON_RUNS: dict[str, Callable[[GraphModule, tuple[Any, ...]], Found]] = {
    "values": _values,
    "exportable": _exportable,
}
LAWS: dict[str, Callable[..., Found]] = {**ON_GRAPHS, **ON_RUNS}
# Those that hold after every pass, not only at the end of a pipeline.
ALWAYS = ("lint", "attributes", "parameters", "mirror", "dtypes")
