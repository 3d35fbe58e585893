"""The layers of a prepared graph: quantized weights, and the calls that multiply by them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pt2q.algorithms.engine.lane import Place
from pt2q.algorithms.engine.program import Program
from pt2q.algorithms.engine.rounding import is_integer
from pt2q.algorithms.matrix import MatrixForm, matrix_form_of
from pt2q.ir import ops
from pt2q.ir.graph import get_constant, holds_tensor, module_path, replace_tensor, value_of
from pt2q.ir.storage import spilled
from pt2q.observers import Form, form_of
from pt2q.spec import granularity_of

PRODUCTS = ops.LINEAR | ops.CONV | ops.CONV_GENERIC | ops.ADDMM | ops.MM | ops.MATMUL
_OPERANDS = {
    **dict.fromkeys(ops.LINEAR | ops.CONV | ops.CONV_GENERIC, ("input", "weight", "bias")),
    **dict.fromkeys(ops.ADDMM, ("mat1", "mat2", "self")),
    **dict.fromkeys(ops.MM, ("self", "mat2", "")),
    **dict.fromkeys(ops.MATMUL, ("self", "other", "")),
}


@dataclass(frozen=True)
class Use:
    """One call that multiplies by a weight.

    Args:
        owner: the module whose graph it is in.
        node: the call.
        x, weight, bias: what it reads, observers' calls included; no bias is None.
        form: how it is seen as a matrix product.
    """

    owner: GraphModule
    node: Node
    x: Node
    weight: Node
    bias: Node | None
    form: MatrixForm

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The call with other operands; of several types, in the widest of them."""
        dtype = torch.promote_types(x.dtype, weight.dtype)
        given: dict[Node, Any] = {self.x: x.to(dtype), self.weight: weight.to(dtype)}
        if self.bias is not None:
            given[self.bias] = self._without_bias(x) if bias is None else bias.to(dtype)
        args, kwargs = map_arg((self.node.args, self.node.kwargs), given.__getitem__)
        y: Tensor = self.node.target(*args, **kwargs)  # type: ignore[operator]
        if self.bias is None and bias is not None:
            y = y + bias.reshape(_beside(y, self.node))
        return y

    def _without_bias(self, x: Tensor) -> Tensor | None:
        """What is added where nothing is: `addmm` does not take None."""
        return x.new_zeros(1) if ops.is_op(self.node, ops.ADDMM) else None


def _beside(y: Tensor, node: Node) -> list[int]:
    """The shape in which a bias is added to an output."""
    shape = [1] * y.dim()
    convolution = ops.is_op(node, ops.CONV | ops.CONV_GENERIC)
    shape[_channel_of(y.dim(), node) if convolution else -1] = -1
    return shape


def _channel_of(rank: int, node: Node) -> int:
    spatial = int(ops.argument(node, "weight").meta["val"].dim()) - 2
    return rank - spatial - 1


@dataclass(frozen=True)
class Layer:
    """A quantized weight with all calls that multiply by it.

    Args:
        name: of the first call, bodies' paths in front.
        module: the qualified name of the module that it was written in.
        uses: the calls, in the order of the graph.
        places: all names of the weight; it is one tensor.
        observers: those of the weight: one, but where several calls have each their own.
    """

    name: str
    module: str
    uses: tuple[Use, ...]
    places: tuple[Place, ...]
    observers: tuple[Any, ...]

    @property
    def weight(self) -> Tensor:
        """The tensor as the module holds it."""
        owner, target = self.places[0]
        assert isinstance(owner, GraphModule)
        return get_constant(owner, target).detach()

    @property
    def observer(self) -> Any:
        """That of the weight."""
        return self.observers[0]

    @property
    def form(self) -> MatrixForm:
        """How it is seen as a matrix product."""
        return self.uses[0].form


@dataclass(frozen=True)
class Passed:
    """What is no layer for the algorithms, and why.

    Args:
        name: of the call.
        reason: why it is passed over.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Layers:
    """What `find_layers` found.

    Args:
        found: in the order of their last call.
        passed: products with a quantized weight that are none.
    """

    found: tuple[Layer, ...]
    passed: tuple[Passed, ...]


def find_layers(program: Program) -> Layers:
    """The layers of a prepared model.

    Args:
        program: the model.
    """
    readers = _readers(program)
    found: dict[int, list[Use]] = {}
    passed: list[Passed] = []
    for use_or_reason in _products(program):
        if isinstance(use_or_reason, Passed):
            passed.append(use_or_reason)
            continue
        found.setdefault(id(_tensor(use_or_reason)), []).append(use_or_reason)
    made = [_layer(program, uses, readers) for uses in found.values()]
    passed += [item for item in made if isinstance(item, Passed)]
    layers = [item for item in made if isinstance(item, Layer)]
    layers.sort(key=lambda layer: outer_position(program, layer.uses[-1]))
    return Layers(tuple(layers), tuple(passed))


def outer_position(program: Program, use: Use) -> int:
    """Where in the outermost graph a call is, or the operator whose body it is in."""
    node = outer_node(program, use)
    return program.schedule.position[node]


def outer_node(program: Program, use: Use) -> Node:
    """A call in the outermost graph, or the operator there whose body it is in."""
    owner, node = use.owner, use.node
    while owner is not program.model:
        owner, node = _runner_of(program, owner)
    return node


def _runner_of(program: Program, body: GraphModule) -> tuple[GraphModule, Node]:
    """The operator that runs a body."""
    for module, schedule in program.schedules.items():
        for node in schedule.nodes:
            if node.op == "get_attr" and module._modules.get(str(node.target)) is body:
                return module, next(iter(node.users))
    raise AssertionError("every body is run by an operator")


def name_in(program: Program, use: Use) -> str:
    """How a call is named in reports: with the operators whose bodies it is in."""
    names, owner, node = [use.node.name], use.owner, use.node
    while owner is not program.model:
        owner, node = _runner_of(program, owner)
        names.append(node.name)
    return ".".join(reversed(names))


# ------------------------------------------------------------------ reading the graph


def _products(program: Program) -> Iterator[Use | Passed]:
    for module, schedule in program.schedules.items():
        for node in schedule.nodes:
            if ops.is_op(node, PRODUCTS):
                found = _use(module, node)
                if found is not None:
                    yield found


def _use(owner: GraphModule, node: Node) -> Use | Passed | None:
    """The call as a use; the reason why it is none; None where no weight is quantized."""
    x, weight, bias = (
        ops.argument(node, name) if name else None
        for name in _OPERANDS[node.target]  # type: ignore[index]
    )
    if not isinstance(weight, Node) or weight.op != "call_module":
        return None
    source = weight.args[0]
    if not isinstance(source, Node) or source.op != "get_attr":
        return _why_not_constant(node, source)
    reason = _why_not(owner, node, x, weight, bias)
    if reason is not None or not isinstance(x, Node):
        return Passed(node.name, reason or "it multiplies no activation")
    form = matrix_form_of(node, tuple(get_constant(owner, source).shape))
    if form is None:
        return Passed(node.name, "its weight is no matrix")
    return Use(owner, node, x, weight, bias, form)


def _why_not_constant(node: Node, source: Any) -> Passed | None:
    at = source
    while isinstance(at, Node) and at.op != "get_attr" and at.all_input_nodes:
        at = at.all_input_nodes[0]
    if not isinstance(at, Node) or at.op != "get_attr":
        return None  # a product of two activations
    return Passed(node.name, f"its weight is computed in the graph, at {source.name}")


def _why_not(owner: GraphModule, node: Node, x: Any, weight: Node, bias: Any) -> str | None:
    observer = owner.get_submodule(str(weight.target))
    if form_of(observer) is Form.OWN:
        return f"{type(observer).__name__} writes operators of its own at conversion"
    if not is_integer(observer, int(value_of(weight).dim())):
        return f"{type(observer).__name__} of {observer.dtype} has no grid of integers"
    if x is weight:
        return "it multiplies no activation"
    others = [n for n in node.all_input_nodes if n not in (x, weight, bias)]
    if others:
        return f"it reads {others[0].name} beside its input, weight and bias"
    if ops.is_op(node, ops.ADDMM) and (node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)) != (
        1,
        1,
    ):
        return "its product is scaled by alpha or beta"
    return None


def _tensor(use: Use) -> Tensor:
    source = use.weight.args[0]
    assert isinstance(source, Node)
    return get_constant(use.owner, str(source.target))


def _readers(program: Program) -> dict[int, list[tuple[GraphModule, Node]]]:
    """By the identity of each tensor, the nodes that read it from its module."""
    found: dict[int, list[tuple[GraphModule, Node]]] = {}
    for module, schedule in program.schedules.items():
        for node in schedule.nodes:
            if node.op == "get_attr" and holds_tensor(module, node):
                tensor = get_constant(module, str(node.target))
                found.setdefault(id(tensor), []).append((module, node))
    return found


def _layer(
    program: Program, uses: list[Use], readers: dict[int, list[tuple[GraphModule, Node]]]
) -> Layer | Passed:
    uses = sorted(uses, key=lambda use: outer_position(program, use))
    name = name_in(program, uses[0])
    sources = readers[id(_tensor(uses[0]))]
    weights = {use.weight for use in uses}
    strange = [
        reader.name
        for _, source in sources
        for observed in source.users
        for reader in ([observed] if observed not in weights else observed.users)
        if reader not in {use.node for use in uses}
    ]
    if strange:
        return Passed(name, f"its weight is also read by {', '.join(sorted(set(strange)))}")
    observers = {id(o): o for use in uses for o in [_observer(use)]}
    if len({_scheme(o) for o in observers.values()}) > 1:
        return Passed(name, "its weight is quantized in more than one way")
    if _is_shared(program, weights, observers):
        return Passed(name, "its weight shares its parameters with other tensors")
    places = tuple(dict.fromkeys((module, str(node.target)) for module, node in sources))
    return Layer(name, module_path(uses[0].node), tuple(uses), places, tuple(observers.values()))


def _observer(use: Use) -> Any:
    return use.owner.get_submodule(str(use.weight.target))


def _scheme(observer: Any) -> tuple[Any, ...]:
    names = ("dtype", "quant_min", "quant_max", "qscheme")
    return granularity_of(observer), *(getattr(observer, name, None) for name in names)


def _is_shared(program: Program, weights: set[Node], observers: dict[int, nn.Module]) -> bool:
    return any(
        id(module.get_submodule(str(node.target))) in observers
        for module, schedule in program.schedules.items()
        for node in schedule.nodes
        if node.op == "call_module" and node not in weights
    )


@torch.no_grad()
def set_tensor(places: tuple[Place, ...], value: Tensor) -> None:
    """Put a tensor in the place of another under all its names; the old one stays as it is.

    Args:
        places: where the module holds the old one.
        value: of the same shape; it becomes of the same dtype.
    """
    owner, target = places[0]
    assert isinstance(owner, GraphModule)
    old = get_constant(owner, target)
    value = spilled(value.to(old.dtype))
    new = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    for owner, target in places:
        replace_tensor(owner, target, new)
