"""Where a model rounds its activations: what each rounding is, and what it did to the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pt2q.debug.runner import moving_nodes
from pt2q.ir import ops
from pt2q.ir.graph import get_constant, is_constant, is_observer
from pt2q.ir.storage import StorageMap
from pt2q.passes.reference.values import QParams

Rounding = Callable[[Tensor], Tensor]
MOST_LEVELS = 1 << 16  # of types whose used levels are counted


@dataclass(frozen=True)
class RoundingRow:
    """What one rounding of an activation did, over all batches and calls.

    Args:
        node: the quantize operator, or the call of a fake quantizer.
        of: the node whose value is rounded.
        dtype: of the integers.
        quant_min, quant_max: the integers in use.
        scale: the smallest and the largest.
        zero_point: likewise.
        clipped: the share of numbers beyond the range of integers.
        levels: the share of the integers that occurred; None for more than 65,536.
        dynamic: whether the parameters are computed from each input.
    """

    node: str
    of: str
    dtype: str
    quant_min: int
    quant_max: int
    scale: tuple[float, float]
    zero_point: tuple[float, float]
    clipped: float
    levels: float | None
    dynamic: bool = False


def rounding_calls(module: GraphModule) -> Iterator[Node]:
    """The nodes that round activations: quantize operators and calls of fake quantizers."""
    for node in moving_nodes(module):
        if ops.is_op(node, ops.QUANTIZE) or is_rounding_module(module, node):
            yield node


def is_rounding_module(module: GraphModule, node: Node) -> bool:
    """Whether a node calls a fake quantizer (an observer that only looks is none)."""
    if node.op != "call_module":
        return False
    called: Any = module.get_submodule(str(node.target))
    rounds = getattr(called, "fake_quant_enabled", getattr(called, "fake_quant", False))
    return is_observer(called) and bool(rounds)


def own_roundings(module: GraphModule, node: Node, storage: StorageMap) -> list[Node]:
    """The calls by which all that round a value do so in one way, with fixed parameters.

    Empty where several readers round it in different ways, where parameters are computed from
    each input, or where the value is written into later: then rounding is the readers'.
    """
    if storage.written_later(node):
        return []
    calls = list(rounding_calls_of(module, node))
    same = len({_parameters(call) for call in calls}) == 1
    return calls if same and not any(_is_dynamic(module, call) for call in calls) else []


def rounding_calls_of(module: GraphModule, node: Node) -> Iterator[Node]:
    """Those that round the value of one node."""
    for user in node.users:
        if (ops.is_op(user, ops.QUANTIZE) and user.args[0] is node) or is_rounding_module(
            module, user
        ):
            yield user


def _is_dynamic(module: GraphModule, call: Node) -> bool:
    if call.op == "call_module":
        return bool(getattr(module.get_submodule(str(call.target)), "is_dynamic", False))
    return any(isinstance(a, Node) and not is_constant(a) for a in call.args[1:])


def _parameters(call: Node) -> tuple[Any, ...]:
    """Equal for calls that round in the same way."""
    return str(call.target), *(str(a.target) if isinstance(a, Node) else a for a in call.args[1:])


def rounding_of(module: GraphModule, call: Node) -> Rounding:
    """The function that a quantize with its dequantize, or a fake quantizer, applies."""
    if call.op == "call_module":
        return module.get_submodule(str(call.target))
    args = [get_constant(module, a) if isinstance(a, Node) else a for a in call.args[1:]]
    back = next((u for u in call.users if ops.is_op(u, ops.DEQUANTIZE)), None)
    if back is None:
        return lambda x: x
    outs = [get_constant(module, a) if isinstance(a, Node) else a for a in back.args[1:]]

    def rounded(x: Tensor) -> Tensor:
        stored = call.target(x, *args, **call.kwargs)  # type: ignore[operator]
        return back.target(stored, *outs, **back.kwargs)  # type: ignore[no-any-return, operator]

    return rounded


def to_integers(x: Tensor, params: QParams) -> Tensor:
    """Real numbers as the integers that stand for them in the reference representation."""
    scale, zero_point = _numbers(params, x)
    levels = (x.double() / scale).round() + zero_point
    return levels.clamp(params.low, params.high).to(params.dtype)


def to_reals(q: Tensor, params: QParams) -> Tensor:
    """The real numbers that integers of the reference representation stand for, in float32."""
    scale, zero_point = _numbers(params, q)
    return ((q.double() - zero_point) * scale).float()


def _numbers(params: QParams, like: Tensor) -> tuple[Tensor, Tensor]:
    pair = (torch.as_tensor(v, dtype=torch.float64) for v in (params.scale, params.zero_point))
    scale, zero_point = (params.along(v, like.dim()) for v in pair)
    return scale, zero_point


# ------------------------------------------------------------------ statistics


@dataclass
class RoundingStats:
    """What is seen of one rounding.

    Args:
        node: the call.
    """

    node: Node
    module: GraphModule
    numbers: int = 0
    clipped: int = 0
    scale: list[float] = field(default_factory=lambda: [math.inf, -math.inf])
    zero_point: list[float] = field(default_factory=lambda: [math.inf, -math.inf])
    used: Tensor | None = None
    about: tuple[torch.dtype, int, int] | None = None

    def add(self, args: tuple[Any, ...]) -> None:
        """Take in one call, by its arguments."""
        x, scale, zero_point, axis, low, high, dtype = self._read(args)
        if dtype.is_floating_point or not isinstance(x, Tensor) or not x.numel():
            return
        self.about = (dtype, low, high)
        _widen(self.scale, scale)
        _widen(self.zero_point, zero_point)
        scale, zero_point = _along(scale, x, axis), _along(zero_point, x, axis)
        levels = (x.detach().float() * (1.0 / scale)).round_().add_(zero_point)
        self.numbers += levels.numel()
        least, most = (float(v) for v in torch.aminmax(levels))
        if not (low <= least and most <= high):  # also where they are NaN
            self.clipped += int(((levels < low) | (levels > high)).sum())
            levels = levels.nan_to_num_(low, high, low).clamp_(low, high)
        if high - low < MOST_LEVELS:
            self._mark(levels, low, high)

    def _mark(self, levels: Tensor, low: int, high: int) -> None:
        counts = levels.sub_(low).to(torch.int32).flatten().bincount(minlength=high - low + 1)
        used = (counts > 0).cpu()
        self.used = used if self.used is None else self.used | used

    def _read(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.node.op == "call_module":
            module: Any = self.module.get_submodule(str(self.node.target))
            scale, zero_point = module.calculate_qparams()
            axis = getattr(module, "ch_axis", None) if torch.as_tensor(scale).numel() > 1 else None
            return (
                args[0],
                scale,
                zero_point,
                axis,
                module.quant_min,
                module.quant_max,
                module.dtype,
            )
        names = [a.name for a in self.node.target._schema.arguments]  # type: ignore[union-attr]
        given = dict(zip(names, args, strict=False)) | dict(self.node.kwargs)
        scale, zero_point = (_first(given, names) for names in (_SCALES, _ZERO_POINTS))
        return (
            args[0],
            scale,
            torch.zeros(()) if zero_point is None else zero_point,
            given.get("axis"),
            int(given["quant_min"]),
            int(given["quant_max"]),
            given["dtype"],
        )

    def row(self, path: str) -> RoundingRow | None:
        """What was seen; None if nothing was."""
        if self.about is None:
            return None
        dtype, low, high = self.about
        levels = None if self.used is None else float(self.used.float().mean())
        source = self.node.args[0]
        assert isinstance(source, Node)
        return RoundingRow(
            path + self.node.name,
            path + source.name,
            str(dtype).removeprefix("torch."),
            low,
            high,
            (self.scale[0], self.scale[1]),
            (self.zero_point[0], self.zero_point[1]),
            self.clipped / self.numbers,
            levels,
            _is_dynamic(self.module, self.node),
        )


_SCALES = ("scale", "scales")
_ZERO_POINTS = ("zero_point", "zero_points")


def _first(given: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((given[name] for name in names if name in given), None)


def _widen(bounds: list[float], value: Any) -> None:
    numbers = torch.as_tensor(value, dtype=torch.float64)
    bounds[0] = min(bounds[0], float(numbers.min()))
    bounds[1] = max(bounds[1], float(numbers.max()))


def _along(value: Any, x: Tensor, axis: int | None) -> Tensor:
    numbers = torch.as_tensor(value, dtype=torch.float32)
    if numbers.numel() == 1:
        return numbers.reshape(())
    if axis is None:  # one per token: shaped to broadcast already
        return numbers
    shape = [1] * x.dim()
    shape[axis] = -1
    return numbers.reshape(shape)
