"""A backend's quantizer in one class, written the way the tutorials of the other stack teach."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable

import pytest
import torch
from support.nodes import nodes_of
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.utils.source_matcher_utils import get_source_partitions
from torch.nn import functional as F

from pt2q import (
    DerivedQuantizationSpec,
    FakeQuantize,
    FixedQParamsQuantizationSpec,
    HistogramObserver,
    MovingAverageMinMaxObserver,
    ObserverOrFakeQuantize,
    PerChannelMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
    convert_pt2e,
    move_exported_model_to_eval,
    prepare_pt2e,
    prepare_qat_pt2e,
    sqnr,
)
from pt2q.ir import ops
from pt2q.ir.qparams import read_qparams
from pt2q.quantizers import OperatorConfig, OperatorPatternType, QuantizationConfig

Filter = Callable[[Node], bool] | None


def get_backend_config(is_qat: bool = False) -> QuantizationConfig:
    trained = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=2**-12)
    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=trained if is_qat else HistogramObserver.with_args(eps=2**-12),
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        is_dynamic=False,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
    )
    return QuantizationConfig(activation, activation, weight, None, is_qat)


def _mark_nodes_as_annotated(nodes: list[Node]) -> None:
    for node in nodes:
        if "quantization_annotation" not in node.meta:
            node.meta["quantization_annotation"] = QuantizationAnnotation()
        node.meta["quantization_annotation"]._annotated = True


def _is_annotated(nodes: list[Node]) -> bool:
    found = (node.meta.get("quantization_annotation") for node in nodes)
    return any(annotation is not None and annotation._annotated for annotation in found)


def derive_bias_qparams(obs_or_fqs: list[ObserverOrFakeQuantize]) -> tuple[Tensor, Tensor]:
    activation_scale, _ = obs_or_fqs[0].calculate_qparams()
    weight_scale, _ = obs_or_fqs[1].calculate_qparams()
    scale = activation_scale * weight_scale
    return scale, torch.zeros_like(scale, dtype=torch.int32)


class BackendQuantizer(Quantizer):
    def __init__(self) -> None:
        super().__init__()
        self.global_config: QuantizationConfig | None = None

    def set_global(self, quantization_config: QuantizationConfig) -> BackendQuantizer:
        self.global_config = quantization_config
        return self

    def annotate(self, model: GraphModule) -> GraphModule:
        self._annotate_conv(model, self.global_config)
        self._annotate_max_pool(model)
        self._annotate_add(model, self.global_config)
        self._annotate_sigmoid(model)
        return model

    def _annotate_conv(
        self, gm: GraphModule, config: QuantizationConfig, filter_fn: Filter = None
    ) -> None:
        partitions = get_source_partitions(gm.graph, [nn.Conv2d, F.conv2d], filter_fn)
        for partition in itertools.chain.from_iterable(partitions.values()):
            node = partition.output_nodes[0]
            if _is_annotated([node]):
                continue
            act, weight, bias = node.args[:3]
            bias_qspec = DerivedQuantizationSpec(
                derived_from=[(act, node), (weight, node)],
                derive_qparams_fn=derive_bias_qparams,
                dtype=torch.int32,
                quant_min=-(2**31),
                quant_max=2**31 - 1,
                qscheme=torch.per_channel_symmetric,
                ch_axis=0,
            )
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map={act: config.input_activation, weight: config.weight}
                | {bias: bias_qspec},
                output_qspec=config.output_activation,
                _annotated=True,
            )

    def _annotate_max_pool(self, gm: GraphModule) -> None:
        partitions = get_source_partitions(gm.graph, [nn.MaxPool2d, F.max_pool2d])
        for partition in itertools.chain.from_iterable(partitions.values()):
            node = next(n for n in partition.nodes if "max_pool2d" in str(n.target))
            act = node.args[0]
            annotated = act.meta.get("quantization_annotation")
            if annotated is None or annotated.output_qspec is None:
                continue
            shared = SharedQuantizationSpec(act)
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                {act: shared}, SharedQuantizationSpec((act, node)), _annotated=True
            )

    def _annotate_add(self, gm: GraphModule, config: QuantizationConfig) -> None:
        partitions = get_source_partitions(gm.graph, [operator.add, torch.add, operator.iadd])
        for partition in itertools.chain.from_iterable(partitions.values()):
            (node,) = partition.output_nodes
            first, second = node.args
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map={
                    first: config.input_activation,
                    second: SharedQuantizationSpec((first, node)),
                },
                output_qspec=config.output_activation,
            )
            _mark_nodes_as_annotated([node])

    def _annotate_sigmoid(self, gm: GraphModule) -> None:
        for node in gm.graph.nodes:
            if node.target is torch.ops.aten.sigmoid.default:
                fixed = FixedQParamsQuantizationSpec(
                    dtype=torch.uint8,
                    quant_min=0,
                    quant_max=255,
                    qscheme=torch.per_tensor_affine,
                    scale=1.0 / 256.0,
                    zero_point=0,
                )
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    output_qspec=fixed, _annotated=True
                )

    def validate(self, model: GraphModule) -> None:
        pass

    @classmethod
    def get_supported_operators(cls) -> list[OperatorConfig]:
        patterns: list[OperatorPatternType] = [[nn.Conv2d], [F.conv2d]]
        return [OperatorConfig(get_backend_config(), patterns)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.pool(self.one(x)) + self.pool(self.two(x)))


@pytest.mark.parametrize("is_qat", [False, True], ids=["calibrated", "trained"])
def test_the_quantizer_of_a_tutorial(is_qat: bool) -> None:
    net = Net().train(is_qat)
    batches = [(torch.randn(2, 3, 8, 8),) for _ in range(4)]
    exported = torch.export.export(net, batches[0], strict=True).module()
    quantizer = BackendQuantizer().set_global(get_backend_config(is_qat))
    model = (prepare_qat_pt2e if is_qat else prepare_pt2e)(exported, quantizer)
    for batch in batches:
        model(*batch)
    move_exported_model_to_eval(model)
    model = convert_pt2e(model)

    net.eval()
    assert 25 < sqnr(net(*batches[0]), model(*batches[0])) < 60
    for conv in nodes_of(model, ops.CONV):
        act, weight, bias = (read_qparams(source) for source in conv.args[:3])
        assert (bias.dtype, bias.quant_min) == (torch.int32, -(2**31))
        scales = [model.get_buffer(str(params.scale.target)) for params in (weight, bias)]
        torch.testing.assert_close(scales[1], scales[0] * act.scale, rtol=1e-6, atol=0)
    (add,) = nodes_of(model, ops.ADD)
    first, second = (read_qparams(source) for source in add.args)
    assert (first.scale, first.zero_point) == (second.scale, second.zero_point)
    (sigmoid,) = model.graph.find_nodes(op="call_function", target=torch.ops.aten.sigmoid.default)
    last = read_qparams(next(iter(sigmoid.users)))
    assert (last.scale, last.zero_point, last.dtype) == (1 / 256, 0, torch.uint8)
    for pool in nodes_of(model, ops.MAX_POOL2D):
        before, after = read_qparams(pool.args[0]), read_qparams(next(iter(pool.users)))
        assert (before.scale, before.zero_point) == (after.scale, after.zero_point)
