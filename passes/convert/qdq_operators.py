"""The operators that stand for an observer: quantize and dequantize, or a pair of casts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from pt2q.errors import AnnotationError, FlowError
from pt2q.ir import ops
from pt2q.ir.dtypes import is_symmetric
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import fake_like, value_of
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.qparams import QParams, write_dequantize, write_quantize
from pt2q.numerics.qparams import DEFAULT_EPS
from pt2q.observers import Form, form_of
from pt2q.passes.convert.observed_parameters import ObservedParameters
from pt2q.spec import Granularity, PerAxis, PerGroup, PerTensor, PerToken, granularity_of
from pt2q.spec.resolved_granularity import simplest

PASS_NAME = "pt2q.observers_to_qdq"


@dataclass
class QDQWriter:
    """Writes operators into a graph in place of its observers.

    Args:
        model: whose graph is written to.
        found: the parameters of its static observers.
        stored: where scale and zero point of an observer are kept, by its identity.
    """

    model: QuantGraphModule
    found: ObservedParameters
    stored: dict[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.emit = Emitter(self.model, PASS_NAME)

    def replace(self, node: Node, observer: Any) -> None:
        """Write the operators of one observer call in its place.

        Raises:
            AnnotationError: there are none for how its observer divides the tensor.
        """
        value = node.args[0]
        assert isinstance(value, Node)
        if not node.users:  # nobody reads it: nothing to quantize
            self.model.graph.erase_node(node)
            return
        if form_of(observer) is Form.OWN:
            observer.convert(self.model, node)
            return
        self.emit.before(node)
        self.emit.replace_by(self._operators(value, observer))

    def _operators(self, value: Node, observer: Any) -> Node:
        form = form_of(observer)
        if form is Form.NOTHING:
            return value
        if form is Form.CAST:
            return self._cast(value, observer)
        params = self._params(value, observer, dynamic=form is Form.DYNAMIC)
        quantize = write_quantize(self.emit, value, params)
        return write_dequantize(self.emit, quantize, params, value_of(value))

    def _params(self, value: Node, observer: Any, *, dynamic: bool) -> QParams:
        real = value_of(value)
        rank = real.dim() if isinstance(real, torch.Tensor) else 0
        granularity = simplest(granularity_of(observer), rank)
        say = (self._computed if dynamic else self._stored).get(type(granularity))
        if say is None:
            raise AnnotationError(
                f"{value.name}: no operator stores or computes parameters as {granularity}, which "
                f"{type(observer).__name__} asks for; give it a convert(model, node) that writes "
                "operators of your own"
            )
        return say(value, observer, granularity)

    # -------------------------------------------------------------- stored parameters

    @property
    def _stored(self) -> dict[type, Callable[[Node, Any, Any], QParams]]:
        return {PerTensor: self._per_tensor, PerAxis: self._per_axis, PerGroup: self._per_group}

    def _per_tensor(self, value: Node, observer: Any, _: Granularity) -> QParams:
        scale, zero_point = self.found[id(observer)]
        if scale.numel() != 1:
            raise FlowError(
                f"{value.name}: {type(observer).__name__} gave {scale.numel()} scales for the "
                f"per-tensor scheme {observer.qscheme}"
            )
        return _params_of(observer, float(scale), int(zero_point))

    def _per_axis(self, value: Node, observer: Any, along: PerAxis) -> QParams:
        return _params_of(observer, *self._buffers(value, observer), axis=along.axis)

    def _per_group(self, value: Node, observer: Any, groups: PerGroup) -> QParams:
        return _params_of(observer, *self._buffers(value, observer), group=groups.group_size)

    def _buffers(self, value: Node, observer: Any) -> tuple[Node, Node]:
        """Reads of the observer's scale and zero point; stored once per observer."""
        if id(observer) not in self.stored:
            base = str(value.target) if value.op == "get_attr" else value.name
            scale, zero_point = (tensor.detach() for tensor in self.found[id(observer)])
            self.stored[id(observer)] = (
                self.emit.keep(f"{base}_scale", scale),
                self.emit.keep(f"{base}_zero_point", zero_point),
            )
        scale_name, zero_point_name = self.stored[id(observer)]
        return self.emit.read(scale_name), self.emit.read(zero_point_name)

    # -------------------------------------------------------------- computed parameters

    @property
    def _computed(self) -> dict[type, Callable[[Node, Any, Any], QParams]]:
        return {PerTensor: self._dynamic, PerToken: self._per_token}

    def _dynamic(self, value: Node, observer: Any, _: Granularity) -> QParams:
        symmetric = is_symmetric(observer.qscheme)
        packet = ops.qd.choose_qparams_symmetric if symmetric else ops.qd.choose_qparams
        eps = getattr(observer, "eps", None)
        eps = DEFAULT_EPS if eps is None else float(eps)
        args = (value, observer.quant_min, observer.quant_max, eps, observer.dtype)
        return _params_of(observer, *self._chosen(packet.tensor, args, (1,)))

    def _per_token(self, value: Node, observer: Any, _: Granularity) -> QParams:
        real = value_of(value)
        shape = (*real.shape[:-1], 1) if isinstance(real, torch.Tensor) else (1,)
        low, high, dtype = observer.quant_min, observer.quant_max, observer.dtype
        asked = (low, high, dtype, observer.qscheme)
        if asked != (-128, 127, torch.int8, torch.per_tensor_affine):
            raise AnnotationError(
                f"{value.name}: parameters per token are computed for int8[-128, 127] with "
                f"torch.per_tensor_affine alone, found {dtype}[{low}, {high}] with "
                f"{observer.qscheme}; ask for that, or leave per_token out"
            )
        chooser = ops.qd.choose_qparams_per_token_asymmetric.default
        chosen = self._chosen(chooser, (value, dtype), shape)
        return _params_of(observer, *chosen, per_token=True)

    def _chosen(
        self, chooser: Any, args: tuple[Any, ...], shape: tuple[Any, ...]
    ) -> tuple[Node, Node]:
        """Scale (float64) and zero point (int64) computed in the graph, as two nodes."""
        real = value_of(args[0])
        values: tuple[Any, Any] = (None, None)
        if isinstance(real, torch.Tensor):
            with real.fake_mode if hasattr(real, "fake_mode") else torch.no_grad():
                scale = torch.empty(shape, dtype=torch.float64, device=real.device)
                zero_point = torch.empty(shape, dtype=torch.int64, device=real.device)
            values = (scale, zero_point)
        chosen = self.emit.call_giving(values, chooser, *args)
        scale_node, zero_point_node = (
            self.emit.call_giving(value, ops.GETITEM, chosen, index)
            for index, value in enumerate(values)
        )
        return scale_node, zero_point_node

    def _cast(self, value: Node, observer: Any) -> Node:
        real = value_of(value)
        if isinstance(real, torch.Tensor) and real.dtype == observer.dtype:
            return value
        narrow = fake_like(real, observer.dtype)
        cast = self.emit.call_giving(narrow, ops.TO_DTYPE, value, observer.dtype)
        back = real.dtype if isinstance(real, torch.Tensor) else torch.float32
        return self.emit.call_giving(real, ops.TO_DTYPE, cast, back)


def _params_of(observer: Any, scale: Any, zero_point: Any, **how: Any) -> QParams:
    bounds = observer.quant_min, observer.quant_max
    return QParams(scale, zero_point, *bounds, observer.dtype, **how)
