"""Several quantizers on one model."""

from __future__ import annotations

import pytest
import torch
from support.flow import imported
from support.nodes import node_of
from torch import Tensor, nn
from torch.fx import GraphModule

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.errors import AnnotationChangedError, AnnotationError
from pt2q.ir.ops import LINEAR
from pt2q.observers import MinMaxObserver
from pt2q.quantizers import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from pt2q.quantizers.toolkit.table.annotate import set_annotation
from pt2q.spec import QuantizationSpec, Quantizer, annotation_of


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, i: Tensor) -> Tensor:
        return self.fc(self.table(i))


def test_quantizers_annotate_in_turn() -> None:
    quantizer = ComposableQuantizer([EmbeddingQuantizer(), XNNPACKQuantizer()])
    index = torch.tensor([[0, 3, 9]])
    model = Lookup().eval()
    prepared = prepare_pt2e(torch.export.export(model, (index,)).module(), quantizer)
    prepared(index)
    converted = convert_pt2e(prepared)
    assert {row.how for row in quantizer.report()} == {
        "weight only, weight uint8 per-channel",
        "int8 static, weight int8 per-channel",
    }
    assert torch.allclose(converted(index), model(index), atol=0.02)
    assert {t.dtype for n, t in converted.state_dict().items() if t.dim() == 2} == {
        torch.uint8,  # the table
        torch.int8,
    }


def test_the_first_quantizer_has_priority() -> None:
    dynamic = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    first = XNNPACKQuantizer().set_module_name("fc", dynamic)
    quantizer = ComposableQuantizer([first, XNNPACKQuantizer()])
    quantizer.annotate(imported(Lookup(), torch.tensor([[0, 3, 9]])))
    assert quantizer.report()["linear"].how == "int8 dynamic, weight int8 per-channel"


class Overwriting(Quantizer):
    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if annotation_of(node) is not None:
                set_annotation(node)
        return model

    def validate(self, model: GraphModule) -> None:
        raise AssertionError("validate was called")


def test_a_conflict_names_both_quantizers_and_the_node() -> None:
    quantizer = ComposableQuantizer([XNNPACKQuantizer(), Overwriting()])
    with pytest.raises(
        AnnotationChangedError, match=r"Overwriting .* XNNPACKQuantizer .* node linear"
    ):
        quantizer.annotate(imported(Lookup(), torch.tensor([[0, 3, 9]])))
    with pytest.raises(AssertionError, match="validate was called"):
        quantizer.validate(imported(Lookup(), torch.tensor([[0, 3, 9]])))


class Silent(Quantizer):
    """Makes no report of its own."""

    def annotate(self, model: GraphModule) -> GraphModule:
        set_annotation(node_of(model, LINEAR))
        return model

    def validate(self, model: GraphModule) -> None:
        pass


def test_the_report_says_who_annotated_what() -> None:
    index = torch.tensor([[0, 3, 9]])
    quantizer = ComposableQuantizer([EmbeddingQuantizer(), XNNPACKQuantizer()])
    quantizer.annotate(imported(Lookup(), index))
    assert {row.node: row.by for row in quantizer.report()} == {
        "embedding": "EmbeddingQuantizer",
        "linear": "XNNPACKQuantizer",
    }
    table = str(quantizer.report()).splitlines()
    assert table[0].split() == ["node", "module", "operator", "by", "decision"]
    assert "XNNPACKQuantizer    int8 static" in table[3]
    silent = ComposableQuantizer([Silent(), XNNPACKQuantizer()])
    silent.annotate(imported(Lookup(), index))
    row = silent.report()["linear"]
    assert (row.quantized, row.how, row.by) == (True, "annotated", "Silent")


class Foreign(Quantizer):
    """Annotates constants too, as some quantizers do."""

    def annotate(self, model: GraphModule) -> GraphModule:
        spec = QuantizationSpec(torch.int8, MinMaxObserver, qscheme=torch.per_tensor_symmetric)
        linear = node_of(model, LINEAR)
        set_annotation(linear, {linear.all_input_nodes[0]: spec}, spec)
        set_annotation(linear.all_input_nodes[1])
        return model

    def validate(self, model: GraphModule) -> None:
        pass


def test_operators_alone_have_rows_with_the_types_annotated() -> None:
    quantizer = ComposableQuantizer([Foreign()])
    quantizer.annotate(imported(nn.Linear(3, 3), torch.randn(2, 3)))
    assert [(r.node, r.how) for r in quantizer.report()] == [("linear", "annotated, int8")]


def test_quantizers_of_one_class_are_told_apart() -> None:
    first = XNNPACKQuantizer().set_module_type(nn.Linear, None)
    quantizer = ComposableQuantizer([first, XNNPACKQuantizer()])
    quantizer.annotate(imported(Lookup(), torch.tensor([[0, 3, 9]])))
    assert quantizer.report()["linear"].by == "XNNPACKQuantizer [1]"


def test_several_quantizers_go_into_control_flow_and_report_all_of_it() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, self.a, self.b, (self.c(x),))

    program = torch.export.export(Branches().eval(), (torch.randn(2, 4),))
    alone, among = (
        XNNPACKQuantizer(),
        ComposableQuantizer([EmbeddingQuantizer(), XNNPACKQuantizer()]),
    )
    prepare_pt2e(program, alone)
    prepare_pt2e(program, among)
    expected = {(row.node, row.quantized) for row in alone.report()}
    assert len(expected) >= 3
    assert {(row.node, row.quantized) for row in among.report()} == expected


@pytest.mark.parametrize(
    "given, message",
    [
        ([XNNPACKQuantizer], r"entry 0 is the class XNNPACKQuantizer.*write XNNPACKQuantizer\(\)"),
        ([XNNPACKQuantizer(), None], "entry 1 is no quantizer: None has no transform"),
        (XNNPACKQuantizer(), "takes a list of quantizers"),
    ],
)
def test_only_quantizers_are_combined(given, message) -> None:
    with pytest.raises(AnnotationError, match=message):
        ComposableQuantizer(given)


class KeepsItsOwnList(ComposableQuantizer):
    """Makes its quantizers later, and calls no other constructor."""

    def __init__(self) -> None:
        self.made = [XNNPACKQuantizer()]

    @property
    def quantizers(self) -> list[Quantizer]:
        return self.made


def test_a_class_of_ones_own_may_keep_its_quantizers_itself() -> None:
    index, quantizer = torch.tensor([[0, 3, 9]]), KeepsItsOwnList()
    assert len(quantizer.report()) == 0
    quantizer.made.insert(0, EmbeddingQuantizer())
    prepare_pt2e(torch.export.export(Lookup().eval(), (index,)), quantizer)
    found = {row.node: row.by for row in quantizer.report() if row.quantized}
    assert found == {"embedding": "EmbeddingQuantizer", "linear": "XNNPACKQuantizer"}
