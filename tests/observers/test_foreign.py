"""Quantizers written for torchao run unchanged: specs, observers, fake quantizers, callbacks."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import ClassVar

import pytest
import torch
import torchao.quantization.pt2e as peer
from support.small_quantizers import SmallQuantizer
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import quantizer as peer_quantizer
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e as peer_convert
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e as peer_prepare

import pt2q
from pt2q.errors import AnnotationError, NoDataError, NothingQuantizedWarning
from pt2q.ir import ops
from pt2q.ir.graph import is_float_tensor
from pt2q.observers import fake_quantize
from pt2q.observers import standard as observers
from pt2q.observers.foreign import replacement_for, saw_data
from pt2q.observers.standard import ObserverConstructor

EPS = 2**-12


# ------------------------------------------------------------------ constructors

SAME = [
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "HistogramObserver",
    "PlaceholderObserver",
]


@pytest.mark.parametrize("name", SAME)
def test_observers_are_replaced_with_their_arguments(name) -> None:
    theirs, ours = getattr(peer, name), getattr(observers, name)
    assert replacement_for(theirs) == ObserverConstructor(ours)
    made = replacement_for(theirs.with_args(eps=EPS, dtype=torch.qint8).with_args(eps=1e-3))
    assert made == ours.with_args(eps=1e-3, dtype=torch.int8)


def test_equal_arguments_make_equal_constructors() -> None:
    # Theirs compare by identity: equal specs on one value would get an observer each.
    one, other = (peer.HistogramObserver.with_args(eps=EPS) for _ in range(2))
    assert one != other
    assert replacement_for(one) == replacement_for(other)


@pytest.mark.parametrize(
    "ctr",
    [
        peer.MinMaxObserver.with_args(reduce_range=True),
        peer.HistogramObserver.with_args(upsample_rate=2),
        peer.FixedQParamsObserver.with_args(scale=1.0, zero_point=0),
        peer.MinMaxObserver.with_callable_args(factory_kwargs=dict),
        peer.FakeQuantize.with_args(observer=peer.MinMaxObserver.with_args(reduce_range=True)),
        lambda **kwargs: None,
        partial(peer.MinMaxObserver, torch.uint8),
    ],
)
def test_what_is_not_understood_stays_as_it_is(ctr) -> None:
    assert replacement_for(ctr) is ctr


def test_a_subclass_is_not_its_base() -> None:
    class Own(peer.MinMaxObserver):
        pass

    assert replacement_for(Own) is Own


def test_fake_quantizers_are_replaced_with_their_observer() -> None:
    moving = peer.MovingAverageMinMaxObserver.with_args(averaging_constant=0.1)
    made = replacement_for(peer.FakeQuantize.with_args(observer=moving, eps=EPS))
    assert made.cls is fake_quantize.FakeQuantize
    ours = observers.MovingAverageMinMaxObserver.with_args(averaging_constant=0.1)
    assert made.keywords == {"eps": EPS, "observer": ours}
    fused = replacement_for(peer.FusedMovingAvgObsFakeQuantize)
    assert fused.cls is fake_quantize.FusedMovingAvgObsFakeQuantize


SCHEMES = [
    ("MinMaxObserver", torch.int8, (-128, 127), torch.per_tensor_affine),
    ("MinMaxObserver", torch.int8, (-127, 127), torch.per_tensor_symmetric),
    ("MinMaxObserver", torch.uint8, (0, 255), torch.per_tensor_symmetric),
    ("MinMaxObserver", torch.int16, (-32768, 32767), torch.per_tensor_affine),
    ("MinMaxObserver", torch.int8, (-8, 7), torch.per_tensor_symmetric),
    ("MovingAverageMinMaxObserver", torch.uint8, (0, 255), torch.per_tensor_affine),
    ("PerChannelMinMaxObserver", torch.int8, (-127, 127), torch.per_channel_symmetric),
    ("PerChannelMinMaxObserver", torch.uint8, (0, 255), torch.per_channel_affine),
]


@pytest.mark.parametrize("name, dtype, limits, scheme", SCHEMES)
def test_replacements_find_the_same_parameters(name, dtype, limits, scheme) -> None:
    arguments = dict(dtype=dtype, quant_min=limits[0], quant_max=limits[1], qscheme=scheme, eps=EPS)
    theirs = getattr(peer, name)(**arguments)
    ours = replacement_for(getattr(peer, name))(**arguments)
    for seed in range(3):
        x = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed)) + 0.3
        theirs(x)
        ours(x)
    expected, found = theirs.calculate_qparams(), ours.calculate_qparams()
    # A symmetric scale is reach / 127.5 there and reach / 127 here: ours uses all integers.
    levels = limits[1] - limits[0]
    symmetric = "symmetric" in str(scheme)
    tolerance = 1.01 / levels if symmetric else 1e-6
    torch.testing.assert_close(found[0], expected[0].float().reshape(-1), rtol=tolerance, atol=0)
    # The middle of an unsigned range is 128 here; there it is 127 if the range is given.
    middle = int(symmetric and dtype is torch.uint8)
    assert (found[1] - expected[1].reshape(-1)).tolist() == [middle] * found[1].numel()


# ------------------------------------------------------------------ a whole quantizer


class Foreign(peer_quantizer.Quantizer):
    """Linears and an addition, with every kind of spec the peer has."""

    def __init__(self, weight=None, activation=None) -> None:
        super().__init__()
        self.activation = activation or self.spec(peer.MinMaxObserver.with_args(eps=EPS))
        self.weight = weight or peer_quantizer.QuantizationSpec(
            dtype=torch.int8,
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=peer.PerChannelMinMaxObserver.with_args(eps=EPS),
        )
        self.replaced: list[object] = []

    @staticmethod
    def spec(ctr):
        return peer_quantizer.QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=ctr,
        )

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if ops.is_op(node, ops.LINEAR):
                self._linear(node)
            elif ops.is_op(node, ops.ADD):
                self._add(node)
            elif node.target is torch.ops.aten.sigmoid.default:
                self._sigmoid(node)
        return model

    def _linear(self, node: Node) -> None:
        source, weight, bias = node.args

        def derive(found):
            scale = found[0].calculate_qparams()[0] * found[1].calculate_qparams()[0]
            return scale, torch.zeros_like(scale, dtype=torch.int32)

        derived = peer_quantizer.DerivedQuantizationSpec(
            derived_from=[(source, node), (weight, node)],
            derive_qparams_fn=derive,
            dtype=torch.int32,
            quant_min=-(2**31),
            quant_max=2**31 - 1,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )
        inputs = {source: self.activation, weight: self.weight, bias: derived}
        self._set(node, inputs, self.activation)

    def _add(self, node: Node) -> None:
        first, second = node.args
        shared = peer_quantizer.SharedQuantizationSpec((first, node))
        self._set(node, {first: self.activation, second: shared}, shared)

    def _sigmoid(self, node: Node) -> None:
        fixed = peer_quantizer.FixedQParamsQuantizationSpec(
            dtype=torch.uint8,
            scale=1 / 256,
            zero_point=0,
            quant_min=0,
            quant_max=255,
            qscheme=torch.per_tensor_affine,
        )
        self._set(node, {}, fixed)

    @staticmethod
    def _set(node, inputs, output) -> None:
        node.meta["quantization_annotation"] = peer_quantizer.QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=output, _annotated=True
        )

    def validate(self, model: GraphModule) -> None:
        assert any("quantization_annotation" in n.meta for n in model.graph.nodes)

    def prepare_obs_or_fq_callback(self, model, edge_or_node_to_obs_or_fq) -> None:
        self.replaced = list(edge_or_node_to_obs_or_fq.values())


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.second = torch.nn.Linear(8, 8)

    def forward(self, x):
        y = self.first(x)
        return torch.sigmoid(self.second(y) + y)


def flow(prepare, convert, quantizer, net=None, calibrate=True):
    torch.manual_seed(0)
    net = Net().eval() if net is None else net
    batches = [torch.randn(4, 8) for _ in range(3)]
    prepared = prepare(torch.export.export(net, (batches[0],)).module(), quantizer)
    for batch in batches if calibrate else ():
        prepared(batch)
    return net, prepared, convert(prepared), batches[0]


def counts(model: GraphModule) -> tuple[int, int]:
    nodes = list(model.graph.nodes)
    return (
        sum(ops.is_op(n, ops.QUANTIZE) for n in nodes),
        sum(ops.is_op(n, ops.DEQUANTIZE) for n in nodes),
    )


def test_all_kinds_of_specs_agree_with_the_peer() -> None:
    quantizer = Foreign()
    net, _, ours, x = flow(pt2q.prepare_pt2e, pt2q.convert_pt2e, quantizer)
    _, _, theirs, _ = flow(peer_prepare, peer_convert, Foreign())
    assert counts(ours) == counts(theirs)
    assert pt2q.sqnr(net(x), ours(x)) > 30
    assert pt2q.sqnr(theirs(x), ours(x)) > 30
    fixed = [n for n in ours.graph.nodes if ops.is_op(n, ops.QUANTIZE) and n.args[1] == 1 / 256]
    assert len(fixed) == 1
    assert any(isinstance(o, observers.MinMaxObserver) for o in quantizer.replaced)


def test_a_foreign_quantizer_leaves_the_model_it_was_given() -> None:
    exported = torch.export.export(Net().eval(), (torch.randn(4, 8),)).module()
    pt2q.prepare_pt2e(exported, Foreign())
    assert not any("quantization_annotation" in n.meta for n in exported.graph.nodes)


def test_a_callback_may_put_in_observers_of_the_peer() -> None:
    class Replacing(Foreign):
        def prepare_obs_or_fq_callback(self, model, edge_or_node_to_obs_or_fq) -> None:
            for key, observer in edge_or_node_to_obs_or_fq.items():
                if isinstance(key, Node) and isinstance(observer, observers.MinMaxObserver):
                    edge_or_node_to_obs_or_fq[key] = peer.MinMaxObserver(
                        dtype=torch.int8, qscheme=torch.per_tensor_affine
                    )

    net, prepared, converted, x = flow(pt2q.prepare_pt2e, pt2q.convert_pt2e, Replacing())
    assert any(isinstance(m, peer.MinMaxObserver) for m in prepared.modules())
    assert pt2q.sqnr(net(x), converted(x)) > 30


def test_observers_of_the_peer_without_data_are_reported() -> None:
    class Own(peer.MinMaxObserver):
        pass

    with pytest.raises(NoDataError, match="no data was observed at"):
        flow(
            pt2q.prepare_pt2e,
            pt2q.convert_pt2e,
            Foreign(activation=Foreign.spec(Own)),
            calibrate=False,
        )


def test_saw_data() -> None:
    watching = peer.PerChannelMinMaxObserver(dtype=torch.int8)
    assert not saw_data(watching)
    watching(torch.randn(3, 4))
    assert saw_data(watching)
    fake = peer.FakeQuantize(observer=peer.MinMaxObserver, quant_min=0, quant_max=255)
    assert not saw_data(fake)
    assert saw_data(peer.FixedQParamsObserver(scale=1.0, zero_point=0))


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize(
    "ctr",
    [
        peer.FakeQuantize.with_args(observer=peer.MovingAverageMinMaxObserver),
        peer.FakeQuantize.with_args(observer=peer.MinMaxObserver.with_args(reduce_range=False)),
        peer.FusedMovingAvgObsFakeQuantize.with_args(
            observer=peer.MovingAverageMinMaxObserver.with_args(averaging_constant=0.9)
        ),
    ],
)
def test_fake_quantizers_of_the_peer(ctr, qat) -> None:
    weight = peer_quantizer.QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=peer.FakeQuantize.with_args(
            observer=peer.MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0)
        ),
    )
    quantizer = Foreign(weight, Foreign.spec(ctr))
    prepare = pt2q.prepare_qat_pt2e if qat else pt2q.prepare_pt2e
    net, prepared, converted, x = flow(prepare, pt2q.convert_pt2e, quantizer)
    assert any(isinstance(m, fake_quantize.FakeQuantize) for m in prepared.modules())
    assert not any(isinstance(m, peer.FakeQuantize) for m in prepared.modules())
    assert pt2q.sqnr(net(x), converted(x)) > 20
    assert counts(converted)[1] >= 6


def test_fake_quantizers_that_stay_foreign_train_and_convert() -> None:
    class Own(peer.FakeQuantize):
        pass

    quantizer = Foreign(activation=Foreign.spec(Own.with_args(observer=peer.MinMaxObserver)))
    net, prepared, converted, x = flow(pt2q.prepare_qat_pt2e, pt2q.convert_pt2e, quantizer)
    assert any(isinstance(m, Own) for m in prepared.modules())
    assert pt2q.sqnr(net(x), converted(x)) > 20


def test_a_transformation_may_read_constants_late() -> None:
    class Moving(SmallQuantizer):  # moves what batch norms read behind the layers
        def transform_for_annotation(self, model: GraphModule) -> GraphModule:
            for node in list(model.graph.nodes):
                if node.op == "get_attr" and node.users:
                    min(node.users).prepend(node)
            return model

    torch.manual_seed(0)
    net, x = Conv().train(), torch.randn(4, 4, 8, 8)
    exported = torch.export.export(net, (x,))
    with pytest.warns(NothingQuantizedWarning, match="no fake quantizers"):
        prepared = pt2q.prepare_qat_pt2e(exported, Moving(output=False))
    prepared.graph.lint()
    prepared(x)
    pt2q.move_exported_model_to_eval(prepared)
    converted = pt2q.convert_pt2e(prepared)
    assert not any(ops.is_op(n, ops.BATCH_NORM) for n in converted.graph.nodes)


def test_specs_of_one_value_that_differ_in_their_observer_share_it() -> None:
    class Two(Foreign):
        def _add(self, node: Node) -> None:
            other = self.spec(peer.MovingAverageMinMaxObserver.with_args(eps=1e-7))
            self._set(node, dict.fromkeys(node.args, other), other)

    _, prepared, ours, _ = flow(pt2q.prepare_pt2e, pt2q.convert_pt2e, Two())
    _, _, theirs, _ = flow(peer_prepare, peer_convert, Two())
    assert counts(ours) == counts(theirs)
    # The outputs of both linears have the first one's, only the sum has its own.
    kinds = [type(m) for m in prepared.modules()]
    assert kinds.count(observers.MovingAverageMinMaxObserver) == 1


def test_observers_find_others_by_the_names_of_nodes() -> None:
    class Looking(peer.MinMaxObserver):
        found: ClassVar[list[object]] = []

        def __init__(self, *, graph, **kwargs) -> None:
            super().__init__(**kwargs)
            self.graph = graph

        def forward(self, x):
            calls = [n for n in self.graph.nodes if n.op == "call_module"]
            self.found[:] = [getattr(self.graph.owning_module, n.name) for n in calls]
            return super().forward(x)

    class Asking(Foreign):
        def annotate(self, model: GraphModule) -> GraphModule:
            self.activation = self.spec(Looking.with_args(graph=model.graph))
            return super().annotate(model)

    _, prepared, _, _ = flow(pt2q.prepare_pt2e, pt2q.convert_pt2e, Asking())
    calls = [n for n in prepared.graph.nodes if n.op == "call_module"]
    assert [n.name for n in calls] == [n.target for n in calls]
    assert Looking.found == [prepared.get_submodule(n.target) for n in calls]


# ------------------------------------------------------------------ observers that convert


class Converting(peer.MinMaxObserver):
    """Writes its own operators, as observers of block-wise quantization do."""

    def convert(self, model: GraphModule, observer_node: Node) -> None:
        with model.graph.inserting_before(observer_node):
            new = model.graph.call_function(torch.ops.aten.clone.default, observer_node.args)
        observer_node.replace_all_uses_with(new)
        model.graph.erase_node(observer_node)


def test_observers_may_write_their_own_operators() -> None:
    # The numbers of such a spec are nominal; some do not fit their dtype.
    spec = peer_quantizer.QuantizationSpec(
        dtype=torch.int8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=Converting.with_args(eps=EPS),
    )
    net, _, converted, x = flow(
        pt2q.prepare_pt2e, pt2q.convert_pt2e, OnlyWeights(spec), calibrate=False
    )
    targets = [n.target for n in converted.graph.nodes]
    assert targets.count(torch.ops.aten.clone.default) == 2
    torch.testing.assert_close(converted(x), net(x))


class OnlyWeights(Foreign):
    def _linear(self, node: Node) -> None:
        self._set(node, {node.args[1]: self.weight}, None)

    def _add(self, node: Node) -> None:
        pass

    _sigmoid = _add


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "spec, message",
    [
        (object(), "carries neither an observer"),
        (
            peer_quantizer.QuantizationSpec(
                dtype=torch.int8,
                quant_min=0,
                quant_max=255,
                qscheme=torch.per_tensor_affine,
                observer_or_fake_quant_ctr=peer.MinMaxObserver,
            ),
            r"linear is annotated with a QuantizationSpec .*\[0, 255\] does not fit torch.int8",
        ),
    ],
)
def test_a_spec_that_cannot_be_used_is_named(spec, message) -> None:
    with pytest.raises(AnnotationError, match=message):
        flow(pt2q.prepare_pt2e, pt2q.convert_pt2e, OnlyWeights(spec))


def test_a_foreign_annotation_that_is_none() -> None:
    class Odd(Foreign):
        def _linear(self, node: Node) -> None:
            node.meta["quantization_annotation"] = "int8"

    with pytest.raises(AnnotationError, match="carries a str as its annotation"):
        flow(pt2q.prepare_pt2e, pt2q.convert_pt2e, Odd())


# ------------------------------------------------------------------ the peer is not needed


def test_pt2q_alone_does_not_import_the_peer() -> None:
    code = (
        "import sys, torch, pt2q; from pt2q.quantizers import XNNPACKQuantizer\n"
        "m = torch.export.export(torch.nn.Linear(4, 4).eval(), (torch.randn(2, 4),))\n"
        "p = pt2q.prepare_pt2e(m, XNNPACKQuantizer()); p(torch.randn(2, 4))\n"
        "pt2q.convert_pt2e(p)\n"
        "assert not [n for n in sys.modules if n.startswith('torchao')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ------------------------------------------------------------------ quantizers that ship


def _xnnpack():
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as module

    config = module.get_symmetric_quantization_config(is_per_channel=True)
    return module.XNNPACKQuantizer().set_global(config)


def _vulkan():
    from executorch.backends.vulkan.quantizer import vulkan_quantizer as module

    config = module.get_symmetric_quantization_config()
    return module.VulkanQuantizer().set_global(config)


def _samsung():
    from executorch.backends.samsung.quantizer.quantizer import EnnQuantizer

    return EnnQuantizer()


def _cortex_m():
    from executorch.backends.cortex_m.quantizer.quantizer import CortexMQuantizer

    return CortexMQuantizer()


class Conv(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.more = torch.nn.Conv2d(8, 8, 1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        return self.head((y + self.more(y)).mean((2, 3)))


@pytest.mark.parametrize("make", [_xnnpack, _vulkan, _samsung, _cortex_m])
def test_quantizers_of_executorch(make) -> None:
    torch.manual_seed(0)
    net = Conv().eval()
    batches = [(torch.randn(8, 4, 8, 8).to(memory_format=torch.channels_last),) for _ in range(3)]
    outputs, dequantizes = [], []
    for prepare, convert in (
        (pt2q.prepare_pt2e, pt2q.convert_pt2e),
        (peer_prepare, peer_convert),
    ):
        exported = torch.export.export(net, batches[0]).module(check_guards=False)
        prepared = prepare(exported, make())
        for batch in batches:
            prepared(*batch)
        converted = convert(prepared)
        outputs.append(torch.cat([converted(*batch) for batch in batches]))
        dequantizes.append(counts(converted)[1])
    float_output = torch.cat([net(*batch) for batch in batches])
    assert dequantizes[0] > 0
    assert dequantizes[0] == dequantizes[1]
    ours, theirs = (float(pt2q.sqnr(float_output, o)) for o in outputs)
    assert ours > 20
    assert ours > theirs - 3
    assert is_float_tensor(next(n for n in converted.graph.nodes if n.op == "placeholder"))
