"""Replace every observer by the quantize and dequantize operators it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from pt2q.errors import AnnotationError, FlowError, NoDataError
from pt2q.ir import ops
from pt2q.ir.constants import Constants
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.dtypes import CAST_DTYPES, PER_CHANNEL_SCHEMES
from pt2q.ir.emit import Emitter
from pt2q.ir.graph import fake_like, is_observer, module_path, value_of
from pt2q.ir.module import QuantGraphModule
from pt2q.observers import NoopObserver, ObserverBase, batched_qparams
from pt2q.observers.foreign import saw_data

PASS_NAME = "pt2q.observers_to_qdq"

QParams: TypeAlias = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Scale and zero point by the identity of the observer."""


def observer_nodes(model: QuantGraphModule) -> list[tuple[Node, Any]]:
    """The calls of observers in a prepared graph, each with its observer."""
    found = []
    for node in model.graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if is_observer(module):
                found.append((node, module))
    return found


@dataclass(frozen=True)
class ObserversToQDQ:
    """Write q/dq operators with the parameters that the observers found.

    Per-tensor parameters become literals, per-channel ones buffers; dynamic ones are computed
    in the graph by ``choose_qparams``; float16 and bfloat16 specs become a pair of casts.
    """

    whole_model = True

    def __call__(self, model: QuantGraphModule) -> bool:
        """Replace all observers of the model.

        Raises:
            NoDataError: a static activation observer never saw data.
        """
        modules = [(p, m) for p, m in named_graph_modules(model) if isinstance(m, QuantGraphModule)]
        found = [(path, module, observer_nodes(module)) for path, module in modules]
        shown = [o for _, module, calls in found for o in _observe_constants(module, calls)]
        try:
            _require_data([(path, *call) for path, _, calls in found for call in calls])
            qparams = _all_qparams([call for _, _, calls in found for call in calls])
        finally:
            _forget(shown)
        for _, module, calls in found:
            _replace_all(module, calls, qparams)
        return any(calls for _, _, calls in found)


def _replace_all(model: QuantGraphModule, found: list[tuple[Node, Any]], qparams: QParams) -> None:
    writer = _Writer(model, qparams)
    for node, observer in found:
        writer.replace(node, observer)
    for target in {str(node.target) for node, _ in found}:
        model.delete_submodule(target)


# ------------------------------------------------------------------ parameters


def _is_static(observer: Any) -> bool:
    if isinstance(observer, NoopObserver) or callable(getattr(observer, "convert", None)):
        return False
    return not getattr(observer, "is_dynamic", False) and observer.dtype not in CAST_DTYPES


def _has_data(observer: Any) -> bool:
    if not hasattr(observer, "has_data"):
        return saw_data(observer)
    return bool(observer.has_data)


def _observe_constants(model: QuantGraphModule, found: list[tuple[Node, Any]]) -> list[Any]:
    """Show constants to observers that need them: weights want no forward pass.

    Returns:
        The observers that had no data of their own: what computed constants (a transposed
        weight) are read through, before the first forward pass.
    """
    constants = Constants(model)
    empty: dict[int, Any] = {}
    for node, observer in found:
        value = node.args[0]
        if not _is_static(observer) or not isinstance(value, Node):
            continue
        if not constants.is_constant(value):
            continue
        fresh = getattr(observer, "constant_input", False)
        if not fresh and id(observer) not in empty:
            if _has_data(observer):
                continue
            empty[id(observer)] = observer
        observer(constants.value(value))
    return list(empty.values())


def _forget(observers: list[Any]) -> None:
    """The observers belong to the prepared model, which a conversion leaves as it was."""
    for observer in observers:
        if hasattr(observer, "reset"):
            observer.reset()


def _all_qparams(found: list[tuple[Node, Any]]) -> QParams:
    """Scale and zero point of each static observer, asked once however often it is used."""
    static = {id(o): o for _, o in found if _is_static(o)}
    # Ours are searched together, which is several times faster than one by one.
    together = [o for o in static.values() if isinstance(o, ObserverBase) and o.together_with]
    qparams: QParams = dict(zip(map(id, together), batched_qparams(together), strict=True))
    for key, observer in static.items():
        if key not in qparams:
            qparams[key] = observer.calculate_qparams()
    return qparams


def _require_data(found: list[tuple[str, Node, Any]]) -> None:
    """Complain of observers without data, each by where it is first used."""
    static = {id(o): (path, node, o) for path, node, o in reversed(found) if _is_static(o)}
    empty = [(p, n) for p, n, o in reversed(static.values()) if not _has_data(o)]
    if not empty:
        return
    names = [path + node.args[0].name for path, node in empty if isinstance(node.args[0], Node)]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    raise NoDataError(
        f"no data was observed at {shown}. Either calibrate: call the prepared model with "
        "representative inputs that reach them before convert_pt2e; or leave them in float: "
        "give the quantizer None for their module, e.g. "
        f"quantizer.set_module_name({_module_hint(empty[0][1])!r}, None)"
    )


def _module_hint(node: Node) -> str:
    return module_path(node) or "name.of.module"


# ------------------------------------------------------------------ operators


@dataclass
class _Writer:
    model: QuantGraphModule
    qparams: QParams
    buffers: dict[tuple[int, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.emit = Emitter(self.model, PASS_NAME)

    def replace(self, node: Node, observer: Any) -> None:
        """Write the operators of one observer call in its place."""
        value = node.args[0]
        assert isinstance(value, Node)
        if not node.users:  # nobody reads it: nothing to quantize
            self.model.graph.erase_node(node)
            return
        convert = getattr(observer, "convert", None)
        if callable(convert):
            convert(self.model, node)
            return
        self.emit.before(node)
        self.emit.replace_by(self._operators(value, observer))

    def _operators(self, value: Node, observer: Any) -> Node:
        if isinstance(observer, NoopObserver):
            return value
        if observer.dtype in CAST_DTYPES:
            return self._cast(value, observer)
        if getattr(observer, "is_dynamic", False):
            if getattr(observer, "per_token", False):
                return self._per_token(value, observer)
            return self._dynamic(value, observer)
        if getattr(observer, "group_size", None):
            return self._per_group(value, observer)
        if observer.qscheme in PER_CHANNEL_SCHEMES:
            return self._per_channel(value, observer)
        return self._per_tensor(value, observer)

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

    def _per_tensor(self, value: Node, observer: Any) -> Node:
        scale, zero_point = self.qparams[id(observer)]
        if scale.numel() != 1:
            raise FlowError(
                f"{value.name}: {type(observer).__name__} gave {scale.numel()} scales for the "
                f"per-tensor scheme {observer.qscheme}"
            )
        params = (float(scale), int(zero_point))
        q, dq = ops.qd.quantize_per_tensor.default, ops.qd.dequantize_per_tensor.default
        return self._qdq(value, observer, q, dq, *params)

    def _per_channel(self, value: Node, observer: Any) -> Node:
        scale = self._buffer(value, observer, "scale", 0)
        zero_point = self._buffer(value, observer, "zero_point", 1)
        q, dq = ops.qd.quantize_per_channel.default, ops.qd.dequantize_per_channel.default
        axis = observer.ch_axis
        return self._qdq(value, observer, q, dq, scale, zero_point, axis)

    def _per_group(self, value: Node, observer: Any) -> Node:
        scale = self._buffer(value, observer, "scale", 0)
        zero_point = self._buffer(value, observer, "zero_point", 1)
        low, high, dtype = observer.quant_min, observer.quant_max, observer.dtype
        common = (scale, zero_point, low, high, dtype, observer.group_size)
        real = value_of(value)
        quantize = ops.qd.quantize_per_channel_group.default
        q = self.emit.call_giving(fake_like(real, dtype), quantize, value, *common)
        out = real.dtype if isinstance(real, torch.Tensor) else torch.float32
        dequantize = ops.qd.dequantize_per_channel_group.default
        return self.emit.call_giving(real, dequantize, q, *common, out)

    def _dynamic(self, value: Node, observer: Any) -> Node:
        symmetric = observer.qscheme == torch.per_tensor_symmetric
        packet = ops.qd.choose_qparams_symmetric if symmetric else ops.qd.choose_qparams
        eps = float(getattr(observer, "eps", torch.finfo(torch.float32).eps))
        low, high, dtype = observer.quant_min, observer.quant_max, observer.dtype
        args = (value, low, high, eps, dtype)
        scale, zero_point = self._chosen(packet.tensor, args, (1,))
        q, dq = ops.qd.quantize_per_tensor.tensor, ops.qd.dequantize_per_tensor.tensor
        return self._qdq(value, observer, q, dq, scale, zero_point)

    def _per_token(self, value: Node, observer: Any) -> Node:
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
