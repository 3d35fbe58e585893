"""Random small networks, and what must hold for the graph of any network.

A network is drawn as a `Recipe`: a list of steps on a growing list of images of one size. Printed,
it is short enough to be read in a falsifying example; `Network(recipe)` computes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from pt2q.ir import ops
from pt2q.ir.graph import dump
from pt2q.ir.module import QuantGraphModule

GOLDEN = Path(__file__).parent / "golden"

# ------------------------------------------------------------------------------------- drawing

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZE = {1: (7,), 2: (5, 4), 3: (3, 4, 3)}

PLAIN = ("conv", "transposed", "linear", "relu", "add", "cat", "norm", "conv_norm", "scale")
SHARING = ("again", "same_norm", "two_norms", "norm_then_used", "no_statistics", "group_conv_norm")
WRITING = ("relu_", "add_", "slice_write", "view_write", "buffer", "buffer_sum")


@dataclass(frozen=True)
class Step:
    """One step: what it does, with which earlier values, and a number that varies it."""

    kind: str
    first: int
    second: int
    variant: int


@dataclass(frozen=True)
class Recipe:
    """A network: spatial dimensions, channels (even), steps, and how many values it returns."""

    dims: int
    channels: int
    steps: tuple[Step, ...]
    outputs: int
    seed: int

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1000 + seed)
        return (torch.randn(2, self.channels, *SIZE[self.dims], generator=generator),)


def recipes(
    kinds: tuple[str, ...] = PLAIN + SHARING + WRITING, max_steps: int = 6
) -> st.SearchStrategy[Recipe]:
    """Networks made of some kinds of steps."""
    number = st.integers(0, 7)
    steps = st.lists(
        st.builds(Step, st.sampled_from(kinds), number, number, number),
        min_size=1,
        max_size=max_steps,
    )
    return st.builds(
        Recipe,
        dims=st.sampled_from([1, 2, 2, 3]),
        channels=st.sampled_from([2, 4]),
        steps=steps.map(tuple),
        outputs=st.integers(1, 3),
        seed=st.integers(0, 99),
    )


class Network(nn.Module):
    """What a recipe says, in evaluation mode with uneven statistics."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.layers = nn.ModuleList(self._layer(s) for s in recipe.steps)
            for module in self.modules():
                _unsettle(module)
        self.eval()

    def _layer(self, step: Step) -> nn.Module:
        dims, c, v = self.recipe.dims, self.recipe.channels, step.variant
        norm = NORM[dims](c, eps=(1e-5, 0.1)[v % 2], affine=v % 3 != 0)
        conv = CONV[dims](c, c, 1 if v % 2 else 3, padding=0 if v % 2 else 1, bias=v % 3 > 0)
        grouped = {"groups": 2 if v % 2 else 1, "bias": v % 4 < 2}
        kind = step.kind
        if kind in ("conv", "again"):
            return conv
        if kind in ("transposed", "group_conv_norm"):
            transposed = TRANSPOSED[dims](c, c, 3, padding=1, **grouped)
            return transposed if kind == "transposed" else nn.ModuleList([transposed, norm])
        if kind == "linear":
            return nn.Linear(SIZE[dims][-1], SIZE[dims][-1], bias=v % 2 > 0)
        if kind == "cat":
            return CONV[dims](2 * c, c, 1)
        if kind == "norm":
            return norm
        if kind in ("conv_norm", "same_norm", "norm_then_used"):
            return nn.ModuleList([conv, norm])
        if kind == "two_norms":
            return nn.ModuleList([conv, norm, NORM[dims](c)])
        if kind == "no_statistics":
            return nn.ModuleList([conv, NORM[dims](c, track_running_stats=False)])
        if kind.startswith("buffer"):
            return _State(c, dims)
        return nn.Identity()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = [x]
        for step, layer in zip(self.recipe.steps, self.layers, strict=True):
            a = values[step.first % len(values)]
            b = values[step.second % len(values)]
            values.append(STEPS[step.kind](layer, a, b))
        kept = values[-self.recipe.outputs :]
        return kept[0] if len(kept) == 1 else tuple(kept)


class _State(nn.Module):
    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("state", torch.rand(channels, *(1,) * dims))

    state: Tensor


def _buffer(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    layer.state.mul_(0.5)
    layer.state.add_(a.mean())
    return a + layer.state


def _buffer_sum(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    before = a * layer.state
    layer.state[:1].copy_(b.mean())
    return before + layer.state


def _slice_write(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    y = a + 1.0
    y[:, :1] = b[:, :1]
    return y


def _view_write(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    y = a + b
    flat = y.flatten(1)
    first = flat[:, :2]
    y.mul_(0.5)
    return y + first.mean()


def _no_statistics(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    return layer[1](layer[0](a))


def _norm_then_used(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    y = layer[0](a)
    return layer[1](y) + y


STEPS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "conv": lambda layer, a, b: layer(a),
    "transposed": lambda layer, a, b: layer(a),
    "linear": lambda layer, a, b: layer(a),
    "relu": lambda layer, a, b: torch.relu(a),
    "add": lambda layer, a, b: a + b,
    "cat": lambda layer, a, b: layer(torch.cat([a, b], 1)),
    "norm": lambda layer, a, b: layer(a),
    "conv_norm": lambda layer, a, b: layer[1](layer[0](a)),
    "scale": lambda layer, a, b: a * 0.75,
    "again": lambda layer, a, b: layer(torch.relu(layer(a))) + layer(b),
    "same_norm": lambda layer, a, b: layer[1](layer[0](layer[1](layer[0](a)))),
    "two_norms": lambda layer, a, b: layer[1](layer[0](a)) - layer[2](layer[0](b)),
    "norm_then_used": _norm_then_used,
    "no_statistics": _no_statistics,
    "group_conv_norm": lambda layer, a, b: layer[1](layer[0](a)),
    "relu_": lambda layer, a, b: (a + 0.25).relu_(),
    "add_": lambda layer, a, b: (a * 0.5).add_(b),
    "slice_write": _slice_write,
    "view_write": _view_write,
    "buffer": _buffer,
    "buffer_sum": _buffer_sum,
}


def _unsettle(module: nn.Module) -> None:
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean.normal_(0.0, 0.3)
        module.running_var.uniform_(0.4, 2.0)
    if module.affine:
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, 0.0, 0.2)


# -------------------------------------------------------------------------------------- the laws


def leaves(result: Any) -> list[Tensor]:
    """The tensors of a result, flat."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def assert_same(one: Any, other: Any, atol: float = 0.0) -> None:
    """Two results agree: exactly, or within ``atol`` absolute and relative."""
    first, second = leaves(one), leaves(other)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=atol)


def nodes_of(model: GraphModule, targets: frozenset[Any]) -> list[Node]:
    return [n for n in model.graph.nodes if ops.is_op(n, targets)]


def parameters_of(model: GraphModule, node: Node) -> dict[str, Any]:
    """All arguments of a quantize or dequantize but the tensor, by name, constants as tensors."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [a.name for a in schema.arguments[1:] if a.name not in ("out_dtype", "output_dtype")]
    found = {}
    for name in names:
        value = ops.argument(node, name)
        if isinstance(value, Node) and value.op == "get_attr":
            value = getattr_path(model, str(value.target))
        found[name.replace("scales", "scale").replace("zero_points", "zero_point")] = value
    return found


def getattr_path(model: nn.Module, target: str) -> Any:
    found: Any = model
    for part in target.split("."):
        found = getattr(found, part)
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other) if not isinstance(one, Node) else one is other


def assert_quantization_is_sound(model: GraphModule) -> None:
    """Finite, positive scales; integers in order and inside the dtype; dq mirrors q."""
    for node in nodes_of(model, ops.QUANTIZE | ops.DEQUANTIZE):
        _assert_parameters(node, parameters_of(model, node))
    for node in nodes_of(model, ops.DEQUANTIZE):
        stored = ops.data_input(node)
        if ops.is_op(stored, ops.QUANTIZE):
            one, other = parameters_of(model, stored), parameters_of(model, node)
            assert one.keys() == other.keys(), node.format_node()
            assert all(same(one[k], other[k]) for k in one), node.format_node()
        else:
            assert stored.op == "get_attr", node.format_node()
            tensor = getattr_path(model, str(stored.target))
            mine = parameters_of(model, node)
            assert tensor.dtype == mine["dtype"] if "dtype" in mine else True
            low, high = mine["quant_min"], mine["quant_max"]
            assert low <= tensor.min() and tensor.max() <= high


def _assert_parameters(node: Node, found: dict[str, Any]) -> None:
    text = node.format_node()
    low, high = found["quant_min"], found["quant_max"]
    dtype = found.get("dtype", torch.int8)
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    assert info.min <= low < high <= info.max, text
    for value, check in [(found["scale"], _is_scale), (found["zero_point"], None)]:
        if isinstance(value, Node):
            assert value.op == "call_function", text  # computed in the graph
            continue
        tensor = torch.as_tensor(value)
        assert bool(torch.isfinite(tensor.double()).all()), text
        if check is not None:
            assert bool((tensor > 0).all()), text
        else:
            assert bool(((tensor >= low) & (tensor <= high)).all()), text
        axis = found.get("axis")
        if axis is not None:
            assert tensor.shape == (node.meta["val"].shape[axis],), text


def _is_scale() -> None: ...


MODULE_META = ("nn_module_stack", "stack_trace")


def assert_metadata(model: GraphModule) -> None:
    """Every node has its value and origin; every operator its module path and stack trace."""
    for node in model.graph.nodes:
        if node.op == "output":
            continue
        assert "val" in node.meta, node.format_node()
        assert node.meta.get("from_node"), node.format_node()
        if node.op in ("call_function", "call_module") and _near_operators(node):
            missing = [key for key in MODULE_META if not node.meta.get(key)]
            assert not missing, (node.format_node(), missing)


def _near_operators(node: Node) -> bool:
    """Whether a node touches an operator of the user's: an input handed out untouched does not."""
    near = [*node.all_input_nodes, *node.users]
    return any(n.op == "call_function" for n in near)


class _ValueCheck(Interpreter):
    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op != "output":
            recorded = leaves(n.meta.get("val"))
            found = leaves(result)
            assert len(recorded) == len(found), n.format_node()
            for a, b in zip(recorded, found, strict=True):
                assert a.dtype == b.dtype, (n.format_node(), a.dtype, b.dtype)
                assert a.dim() == b.dim(), (n.format_node(), a.shape, b.shape)
                known = [(x, y) for x, y in zip(a.shape, b.shape, strict=True) if type(x) is int]
                assert all(x == y for x, y in known), (n.format_node(), a.shape, b.shape)
        return result


def assert_values_match(model: GraphModule, inputs: tuple[Any, ...]) -> None:
    """What is recorded as ``val`` is what the node computes: dtype, dimensions, sizes."""
    copies = pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, inputs)
    saved = {k: v.clone() for k, v in model.named_buffers()}
    with torch.no_grad():
        _ValueCheck(model).run(*copies)
        for name, buffer in model.named_buffers():
            if name in saved and saved[name].shape == buffer.shape:
                buffer.copy_(saved[name])


def assert_no_dead_constants(model: GraphModule) -> None:
    """Everything in the module is read by the graph."""
    read = {str(n.target) for n in model.graph.nodes if n.op == "get_attr"}
    held = {k for k, _ in model.named_parameters(remove_duplicate=False)}
    held |= {k for k, _ in model.named_buffers(remove_duplicate=False)}
    assert held <= read, held - read


def assert_laws(model: QuantGraphModule, *, converted: bool) -> None:
    """All laws that a look at the module tells."""
    model.graph.lint()
    assert_metadata(model)
    if converted:
        assert_quantization_is_sound(model)
        assert_no_dead_constants(model)
        assert not [n for n in model.graph.nodes if n.op == "call_module"]


# ------------------------------------------------------------------------------- a reference


class _Rounding(Interpreter):
    """Runs a prepared graph with every observer rounding, written anew from the definition."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        observer = self.fetch_attr(str(target))
        (x,) = args
        scale, zero_point = observer.calculate_qparams()
        shape = [1] * x.dim()
        if observer.ch_axis is not None and scale.numel() > 1:
            shape[observer.ch_axis] = -1
        scale, zero_point = scale.float().reshape(shape), zero_point.float().reshape(shape)
        q = torch.round(x.float() * (1.0 / scale)) + zero_point
        q = torch.clamp(q, observer.quant_min, observer.quant_max)
        return ((q - zero_point) * scale).to(x.dtype)


def rounded(prepared: GraphModule, *inputs: Any) -> Any:
    """What a converted model must compute, from the prepared one."""
    with torch.no_grad():
        return _Rounding(prepared).run(*inputs)


# --------------------------------------------------------------------------------------- golden


def assert_golden(name: str, text: str) -> None:
    """Compare with ``golden/<name>.txt``; PT2Q_WRITE_GOLDEN=1 writes it instead."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("PT2Q_WRITE_GOLDEN"):
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text(), f"{path.name} differs:\n{text}"


def assert_golden_graph(name: str, model: GraphModule) -> None:
    assert_golden(name, dump(model))


def exact(model: nn.Module) -> nn.Module:
    """Parameters become small multiples of 1/8: sums are exact, golden scales equal anywhere."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            count = torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape)
            parameter.copy_(((count * (5 + 2 * index)) % 13 - 6) / 8)
    return model.eval()


def exact_input(*shape: int) -> Tensor:
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    return ((count * 7) % 17 - 6) / 4
