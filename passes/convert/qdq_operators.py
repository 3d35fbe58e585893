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
from pt2q.numerics.qparams import DEFAULT_EPS
from pt2q.observers import Form, form_of
from pt2q.passes.convert.observed_parameters import QParams
from pt2q.spec import Granularity, PerAxis, PerGroup, PerTensor, PerToken, granularity_of
from pt2q.spec.resolved_granularity import simplest

PASS_NAME = "pt2q.observers_to_qdq"


@dataclass
class QDQWriter:
    """Writes operators into a graph in place of its observers.

    Args:
        model: whose graph is written to.
        qparams: of its static observers.
    """

    model: QuantGraphModule
    qparams: QParams
    buffers: dict[tuple[int, str], str] = field(default_factory=dict)

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
        real = value_of(value)
        rank = real.dim() if isinstance(real, torch.Tensor) else 0
        granularity = simplest(granularity_of(observer), rank)
        write = self._writers(form).get(type(granularity))
        if write is None:
            raise AnnotationError(
                f"{value.name}: no operator stores or computes parameters as {granularity}, which "
                f"{type(observer).__name__} asks for; give it a convert(model, node) that writes "
                "operators of your own"
            )
        return write(value, observer, granularity)

    def _writers(self, form: Form) -> dict[type, Callable[[Node, Any, Any], Node]]:
        if form is Form.DYNAMIC:
            return {PerTensor: self._dynamic, PerToken: self._per_token}
        return {PerTensor: self._per_tensor, PerAxis: self._per_channel, PerGroup: self._per_group}

    def _qdq(
        self, value: Node, observer: Any, quantize: Any, dequantize: Any, *params: Any
    ) -> Node:
        """``quantize(value, *params)`` and its mirror image."""
        low, high, dtype = observer.quant_min, observer.quant_max, observer.dtype
        real = value_of(value)
        stored = fake_like(real, dtype)
        q = self.emit.call_giving(stored, quantize, value, *params, low, high, dtype)
        args = (q, *params, low, high, dtype)
        return self.emit.call_giving(real, dequantize, *args, **_out_dtype(real))

    def _per_tensor(self, value: Node, observer: Any, _: Granularity) -> Node:
        scale, zero_point = self.qparams[id(observer)]
        if scale.numel() != 1:
            raise FlowError(
                f"{value.name}: {type(observer).__name__} gave {scale.numel()} scales for the "
                f"per-tensor scheme {observer.qscheme}"
            )
        params = (float(scale), int(zero_point))
        q, dq = ops.qd.quantize_per_tensor.default, ops.qd.dequantize_per_tensor.default
        return self._qdq(value, observer, q, dq, *params)

    def _per_channel(self, value: Node, observer: Any, along: PerAxis) -> Node:
        scale = self._buffer(value, observer, "scale", 0)
        zero_point = self._buffer(value, observer, "zero_point", 1)
        q, dq = ops.qd.quantize_per_channel.default, ops.qd.dequantize_per_channel.default
        return self._qdq(value, observer, q, dq, scale, zero_point, along.axis)

    def _per_group(self, value: Node, observer: Any, groups: PerGroup) -> Node:
        scale = self._buffer(value, observer, "scale", 0)
        zero_point = self._buffer(value, observer, "zero_point", 1)
        low, high, dtype = observer.quant_min, observer.quant_max, observer.dtype
        common = (scale, zero_point, low, high, dtype, groups.group_size)
        real = value_of(value)
        quantize = ops.qd.quantize_per_channel_group.default
        q = self.emit.call_giving(fake_like(real, dtype), quantize, value, *common)
        out = real.dtype if isinstance(real, torch.Tensor) else torch.float32
        dequantize = ops.qd.dequantize_per_channel_group.default
        return self.emit.call_giving(real, dequantize, q, *common, out)

    def _dynamic(self, value: Node, observer: Any, _: Granularity) -> Node:
        symmetric = is_symmetric(observer.qscheme)
        packet = ops.qd.choose_qparams_symmetric if symmetric else ops.qd.choose_qparams
        eps = getattr(observer, "eps", None)
        eps = DEFAULT_EPS if eps is None else float(eps)
        low, high, dtype = observer.quant_min, observer.quant_max, observer.dtype
        args = (value, low, high, eps, dtype)
        scale, zero_point = self._chosen(packet.tensor, args, (1,))
        q, dq = ops.qd.quantize_per_tensor.tensor, ops.qd.dequantize_per_tensor.tensor
        return self._qdq(value, observer, q, dq, scale, zero_point)

    def _per_token(self, value: Node, observer: Any, _: Granularity) -> Node:
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
        scale, zero_point = self._chosen(chooser, (value, observer.dtype), shape)
        params = (scale, zero_point, low, high, dtype)
        quantize = ops.qd.quantize_per_token.default
        q = self.emit.call_giving(fake_like(real, dtype), quantize, value, *params)
        out = real.dtype if isinstance(real, torch.Tensor) else torch.float32
        dequantize = ops.qd.dequantize_per_token.default
        return self.emit.call_giving(real, dequantize, q, *params, out)

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

    def _buffer(self, value: Node, observer: Any, kind: str, which: int) -> Node:
        """A get_attr of the observer's scale or zero point; stored once per observer."""
        key = (id(observer), kind)
        tensor = self.qparams[id(observer)][which].detach()
        if key not in self.buffers:
            base = str(value.target) if value.op == "get_attr" else value.name
            self.buffers[key] = self.emit.keep(f"{base}_{kind}", tensor)
        return self.emit.read(self.buffers[key])


def _out_dtype(real: Any) -> dict[str, torch.dtype]:
    """``out_dtype`` for models that do not compute in float32."""
    if not isinstance(real, torch.Tensor) or real.dtype == torch.float32:
        return {}
    return {"out_dtype": real.dtype}
