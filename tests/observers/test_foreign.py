"""Quantizers written for the peer run here and agree with it."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torchao.quantization.pt2e as peer
from support.foreign_quantizer import EPS, Conv, Foreign, Net, OnlyWeights, counts, flow
from support.small_quantizers import SmallQuantizer
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import quantizer as peer_quantizer
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e as peer_convert
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e as peer_prepare

import pt2q
from pt2q import observers
from pt2q.errors import NoDataError, NothingQuantizedWarning
from pt2q.ir import ops
from pt2q.observers import has_data


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


def test_whether_a_foreign_observer_has_data() -> None:
    watching = peer.PerChannelMinMaxObserver(dtype=torch.int8)
    assert not has_data(watching)
    watching(torch.randn(3, 4))
    assert has_data(watching)
    fake = peer.FakeQuantize(observer=peer.MinMaxObserver, quant_min=0, quant_max=255)
    assert not has_data(fake)
    assert has_data(peer.FixedQParamsObserver(scale=1.0, zero_point=0))


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
    assert any(isinstance(m, observers.FakeQuantize) for m in prepared.modules())
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
