"""Observers and fake quantizers as a user writes them: plain modules over the public bases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import pt2q
from pt2q.ir import ops


class Percentile(pt2q.ObserverBase):
    """All arguments its own; knows no scheme and no axis; takes no keyword it does not name."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__(dtype=torch.int8)
        self.share = share
        self.register_buffer("largest", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        found = x.detach().abs().flatten().quantile(self.share)
        self.largest.copy_(torch.maximum(self.largest, found))
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return self.largest / 127, torch.zeros(1, dtype=torch.int64)


class EveryBatch(pt2q.UniformQuantizationObserverBase):
    """Written over the base for integers, with the arguments it is taught with."""

    def __init__(
        self,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: dict[str, Any] | None = None,
        eps: float = torch.finfo(torch.float32).eps,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dtype=dtype,
            qscheme=qscheme,
            reduce_range=reduce_range,
            quant_min=quant_min,
            quant_max=quant_max,
            factory_kwargs=factory_kwargs,
            eps=eps,
            is_dynamic=is_dynamic,
            **kwargs,
        )
        self.register_buffer("min_val", torch.tensor(float("inf")))
        self.register_buffer("max_val", torch.tensor(float("-inf")))

    def forward(self, x_orig: Tensor) -> Tensor:
        if x_orig.numel() == 0:
            return x_orig
        low, high = torch.aminmax(x_orig.detach().to(self.min_val.dtype))
        self.min_val.copy_(torch.min(low, self.min_val))
        self.max_val.copy_(torch.max(high, self.max_val))
        return x_orig

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return self._calculate_qparams(self.min_val, self.max_val)


class Groups(pt2q.AffineQuantizedObserverBase):
    """Parameters per group, in the words of affine quantization."""

    def forward(self, input: Tensor) -> Tensor:
        self.block_size = pt2q.get_block_size(input.shape, self.granularity)
        self.original_dtype = input.dtype
        self.largest = input.detach().unflatten(1, (-1, self.block_size[1])).abs().amax(-1)
        return input

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        scale = self.largest / self.quant_max
        return scale, torch.zeros_like(scale, dtype=torch.int64)


class Rounding(pt2q.FakeQuantizeBase):
    """A fake quantizer of one's own, reading its switches as it is taught."""

    def __init__(
        self, observer: Any = pt2q.MovingAverageMinMaxObserver, gain: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__()
        self.activation_post_process = observer(**kwargs)
        self.gain = gain
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if self.observer_enabled[0] == 1:
            self.activation_post_process(x.detach())
            scale, zero_point = self.calculate_qparams()
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)
        if self.fake_quant_enabled[0] == 1:
            found = self.activation_post_process
            x = torch.fake_quantize_per_tensor_affine(
                x, self.scale, self.zero_point, found.quant_min, found.quant_max
            )
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        scale, zero_point = self.activation_post_process.calculate_qparams()
        return scale * self.gain, zero_point


class Halving(pt2q.ObserverBase):
    """Writes its own operators: casts to float16 and back, once for each call of it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(torch.float16)
        self.calls: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        raise AssertionError("an observer with convert is not asked")

    def convert(self, model: GraphModule, node: Node) -> None:
        self.calls.append(node.name)
        with model.graph.inserting_before(node):
            narrow = model.graph.call_function(ops.TO_DTYPE, (node.args[0], torch.float16))
            back = model.graph.call_function(ops.TO_DTYPE, (narrow, torch.float32))
        node.replace_all_uses_with(back)
        model.graph.erase_node(node)


class ActivationAndWeight(pt2q.Quantizer):
    """Annotates linear layers with one spec for activations and one for weights."""

    def __init__(self, activation: Any, weight: Any = None, put_in: Any = None) -> None:
        self.activation, self.weight, self.put_in = activation, weight, put_in

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if ops.is_op(node, ops.LINEAR):
                specs = {node.args[0]: self.activation, node.args[1]: self.weight}
                node.meta["quantization_annotation"] = pt2q.QuantizationAnnotation(
                    input_qspec_map=specs, output_qspec=self.activation, _annotated=True
                )
        return model

    def validate(self, model: GraphModule) -> None:
        pass

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: Any
    ) -> None:
        if self.put_in is not None:
            for key in list(edge_or_node_to_obs_or_fq):
                edge_or_node_to_obs_or_fq[key] = self.put_in()


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def inputs() -> Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(1))


def prepared_net(quantizer: pt2q.Quantizer, qat: bool = False) -> Any:
    exported = torch.export.export(small_net(), (inputs(),))
    prepare = pt2q.prepare_qat_pt2e if qat else pt2q.prepare_pt2e
    return prepare(exported, quantizer)
