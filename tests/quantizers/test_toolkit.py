"""Roles, masks, chains, worth, the report, and quantizers in combination."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pt2q import convert_pt2e, prepare_pt2e
from pt2q.errors import AnnotationError
from pt2q.ir.module import QuantGraphModule, import_exported
from pt2q.ir.ops import ADD, ADDMM, CAT, CONV2D, LINEAR, RELU, is_op
from pt2q.observers import MinMaxObserver
from pt2q.quantizers import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    MaskFinder,
    Reason,
    Report,
    Row,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
    roles_of,
)
from pt2q.quantizers.toolkit.reading.chains import follow_chain
from pt2q.quantizers.toolkit.reasons import NO_QUANTIZED_READER
from pt2q.quantizers.toolkit.table.annotate import set_annotation
from pt2q.spec import QuantizationSpec, Quantizer, annotation_of


class Apply(nn.Module):
    def __init__(self, fn: object, *layers: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.layers = nn.ModuleList(layers)

    def forward(self, *args: Tensor) -> object:
        return self.fn(self.layers, *args)  # type: ignore[operator]


def exported(module: nn.Module, *args: Tensor) -> QuantGraphModule:
    return import_exported(torch.export.export(module.eval(), args))


def find(model: GraphModule, ops: frozenset[object], index: int = 0) -> Node:
    return [n for n in model.graph.nodes if is_op(n, ops)][index]  # type: ignore[arg-type]


# ------------------------------------------------------------------ roles and chains


def test_roles_come_from_the_schema() -> None:
    layers = nn.Conv2d(2, 2, 1), nn.Linear(3, 3)
    net = Apply(lambda m, x: torch.cat([m[1](m[0](x)), x], 1), *layers)
    model = exported(net, torch.randn(1, 2, 3, 3))
    for ops, weight, bias in (
        (CONV2D, "layers_0_weight", "layers_0_bias"),
        (LINEAR, "layers_1_weight", "layers_1_bias"),
    ):
        roles = roles_of(find(model, ops))
        assert roles.weight is not None and roles.weight.name == weight
        assert roles.bias is not None and roles.bias.name == bias
        assert len(roles.activations) == 1
    assert len(roles_of(find(model, CAT)).activations) == 2


def test_roles_of_matrix_products() -> None:
    net = Apply(lambda m, x: torch.addmm(m[0].bias, x, m[0].weight), nn.Linear(4, 4))
    roles = roles_of(find(exported(net, torch.randn(2, 4)), ADDMM))
    assert roles.weight is not None and roles.weight.op == "get_attr"
    assert roles.bias is not None and [n.name for n in roles.activations] == ["args_0"]


def test_a_chain_ends_where_a_value_is_used_twice() -> None:
    net = Apply(lambda m, x: F.relu(m[0](x)), nn.Conv2d(2, 2, 1))
    model = exported(net, torch.randn(1, 2, 3, 3))
    assert [n.name for n in follow_chain(find(model, CONV2D), (RELU,))] == ["conv2d", "relu"]
    net = Apply(lambda m, x: F.relu(y := m[0](x)) + y, nn.Conv2d(2, 2, 1))
    model = exported(net, torch.randn(1, 2, 3, 3))
    assert [n.name for n in follow_chain(find(model, CONV2D), (RELU,))] == ["conv2d"]


# ------------------------------------------------------------------ masks

LOWEST = torch.finfo(torch.float32).min
MASKS = {
    "scaled": lambda m: ((1.0 - m.float()) * LOWEST)[:, None],
    "ten thousand": lambda m: (m.float() - 1) * 10000.0,
    "where": lambda m: torch.where(m > 0, 0.0, LOWEST)[:, None].expand(2, 3, 3),
    "masked_fill": lambda m: torch.zeros(2, 3).masked_fill(m == 0, float("-inf")),
    "causal": lambda m: torch.triu(torch.full((3, 3), float("-inf")), 1),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_known_by_how_they_are_built(name: str) -> None:
    net = Apply(lambda _, x, m: torch.sigmoid(x + MASKS[name](m)))
    args = torch.randn(2, 3, 3) if name in ("where", "scaled") else torch.randn(2, 3)
    if name == "causal":
        args = torch.randn(3, 3)
    model = exported(net, args, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    node = [n for n in model.graph.nodes if is_op(n, ADD)][-1]
    finder = MaskFinder(model)
    assert [finder.is_mask(n) for n in node.all_input_nodes] == [False, True]


def test_a_mask_kept_as_a_buffer() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
            self.register_buffer("table", torch.randn(3, 3))
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x) + self.mask) + self.fc(self.fc(x) + self.table)

    quantizer = XNNPACKQuantizer()
    quantizer.annotate(exported(Masked(), torch.randn(3, 3)))
    adds = [row for row in quantizer.report() if row.operator == "aten.add.Tensor"]
    assert adds[0].how.startswith("float: an operand is an attention mask")
    assert [row.quantized for row in adds] == [False, True, True]


def test_large_sizes_and_learned_values_are_no_masks() -> None:
    net = Apply(lambda m, x: m[0](x)[:, 0:] + x * 100.0, nn.Linear(3, 3))
    model = exported(net, torch.randn(2, 3))
    finder = MaskFinder(model)
    assert not any(finder.is_mask(n) for n in find(model, ADD).all_input_nodes)


# ------------------------------------------------------------------ report


def test_the_report_is_a_table() -> None:
    quantizer = XNNPACKQuantizer()
    net = Apply(lambda m, x: F.softmax(m[0](x), -1), nn.Linear(3, 3))
    quantizer.annotate(exported(net, torch.randn(2, 3)))
    assert str(quantizer.report()) == "\n".join(
        [
            "node     module    operator             decision",
            "-------  --------  -------------------  ----------------------------------------",
            "linear   layers.0  aten.linear.default  int8 static, weight int8 per-channel",
            "softmax            aten.softmax.int     float: XNNPACK has no int8 kernel for it",
            "",
            "1 of 2 operators quantized; 1 in float:",
            "    1 x XNNPACK has no int8 kernel for it [no-int8-kernel]",
            "          aten.softmax",
        ]
    )
    report = quantizer.report()
    assert report.counts() == {"aten.linear.default": (1, 0), "aten.softmax.int": (0, 1)}
    assert report["linear"].quantized and len(report.left_float) == 1
    with pytest.raises(KeyError, match="no row for node 'conv'"):
        report["conv"]


NO_KERNEL = Reason("no-kernel", "no kernel for it")


def left(node: str, module: str, operator: str, reason: Reason) -> Row:
    return Row(node=node, module=module, operator=operator, reason=reason)


def test_an_unrolled_layer_is_a_few_lines() -> None:
    gates = [left(f"gate_{i}", "lstm", "aten.sigmoid.default", NO_KERNEL) for i in range(8)]
    few = [left(f"add_{i}", "lstm", "aten.add.Tensor", NO_KERNEL) for i in range(7)]
    alone = [left(f"mul_{i}", "", "aten.mul.Tensor", NO_KERNEL) for i in range(9)]
    mixed = [row for rows in zip(gates, [*few, alone[0]], alone[1:], strict=True) for row in rows]
    report = Report(tuple(mixed))
    lines = report.table().splitlines()[2:]
    assert lines[0].startswith("gate_0 ... gate_7 (8)  lstm ")
    assert len(lines) == 1 + len(few) + len(alone)
    assert len(report) == len(mixed) and "24 in float" in report.summary()


def _long_report() -> Report:
    module = "encoder.layers.0.attention.output"
    return Report(
        (
            Row(node="linear", module=module, operator="aten.linear.default", words="int8 static"),
            left("add", "", "aten.add.Tensor", NO_QUANTIZED_READER),
            left("mul", module, "aten.mul.Tensor", NO_QUANTIZED_READER),
            left("add_1", "", "aten.add.Tensor", NO_QUANTIZED_READER),
            left("cumsum", "", "aten.cumsum.default", NO_KERNEL),
        )
    )


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_report_fits_the_terminal(width) -> None:
    report = _long_report()
    lines = report.text(width).splitlines()
    # What cannot be broken: the names.
    assert all(len(line) <= max(width, 66) for line in lines), [len(x) for x in lines]
    words = " ".join(report.text(width).split())
    for row in report:
        assert row.node in words and row.operator in words
        assert " ".join(row.how.split()) in words


def test_the_summary_names_every_reason_with_its_operators_and_what_to_do() -> None:
    report = _long_report()
    lines = report.summary(200).splitlines()
    assert lines[:3] == [
        "1 of 5 operators quantized; 4 in float:",
        f"    3 x {NO_QUANTIZED_READER} [no-quantized-reader]",
        "          2 aten.add, aten.mul",
    ]
    assert lines[3].startswith("        > int8 between float operators")
    assert "set_operator_type" in lines[3] and "[[override]] operator" in lines[3]
    assert lines[4:] == ["    1 x no kernel for it [no-kernel]", "          aten.cumsum"]
    assert [reason for reason in report.reasons()] == [NO_QUANTIZED_READER, NO_KERNEL]
    assert Report(report.quantized).summary() == "1 of 1 operators quantized"


def test_integers_and_dead_nodes_have_no_rows() -> None:
    def forward(m: nn.ModuleList, x: Tensor, i: Tensor) -> Tensor:
        torch.tanh(m[1](x))  # read by nobody, as an unused pooler is
        return m[0](x) + (i + 1).float()

    quantizer = XNNPACKQuantizer()
    net = Apply(forward, nn.Linear(3, 3), nn.Linear(3, 3))
    quantizer.annotate(exported(net, torch.randn(2, 3), torch.arange(3)))
    assert [row.node for row in quantizer.report()][:1] == ["linear_1"]
    assert {row.operator for row in quantizer.report()} == {
        "aten.linear.default",
        "aten.add.Tensor",
    }


# ------------------------------------------------------------------ combination


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
        "weight only, weight int8 per-channel",
        "int8 static, weight int8 per-channel",
    }
    assert torch.allclose(converted(index), model(index), atol=0.02)
    assert {t.dtype for n, t in converted.state_dict().items() if t.dim() == 2} == {torch.int8}


def test_the_first_quantizer_has_priority() -> None:
    dynamic = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    first = XNNPACKQuantizer().set_module_name("fc", dynamic)
    quantizer = ComposableQuantizer([first, XNNPACKQuantizer()])
    quantizer.annotate(exported(Lookup(), torch.tensor([[0, 3, 9]])))
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
    with pytest.raises(AnnotationError, match=r"Overwriting .* XNNPACKQuantizer .* node linear"):
        quantizer.annotate(exported(Lookup(), torch.tensor([[0, 3, 9]])))
    with pytest.raises(AssertionError, match="validate was called"):
        quantizer.validate(exported(Lookup(), torch.tensor([[0, 3, 9]])))


class Silent(Quantizer):
    """Makes no report of its own."""

    def annotate(self, model: GraphModule) -> GraphModule:
        set_annotation(find(model, LINEAR))
        return model

    def validate(self, model: GraphModule) -> None:
        pass


def test_the_report_says_who_annotated_what() -> None:
    index = torch.tensor([[0, 3, 9]])
    quantizer = ComposableQuantizer([EmbeddingQuantizer(), XNNPACKQuantizer()])
    quantizer.annotate(exported(Lookup(), index))
    assert {row.node: row.by for row in quantizer.report()} == {
        "embedding": "EmbeddingQuantizer",
        "linear": "XNNPACKQuantizer",
    }
    table = str(quantizer.report()).splitlines()
    assert table[0].split() == ["node", "module", "operator", "by", "decision"]
    assert "XNNPACKQuantizer    int8 static" in table[3]
    silent = ComposableQuantizer([Silent(), XNNPACKQuantizer()])
    silent.annotate(exported(Lookup(), index))
    row = silent.report()["linear"]
    assert (row.quantized, row.how, row.by) == (True, "annotated", "Silent")


class Foreign(Quantizer):
    """Annotates constants too, as some quantizers do."""

    def annotate(self, model: GraphModule) -> GraphModule:
        spec = QuantizationSpec(torch.int8, MinMaxObserver, qscheme=torch.per_tensor_symmetric)
        linear = find(model, LINEAR)
        set_annotation(linear, {linear.all_input_nodes[0]: spec}, spec)
        set_annotation(linear.all_input_nodes[1])
        return model

    def validate(self, model: GraphModule) -> None:
        pass


def test_operators_alone_have_rows_with_the_types_annotated() -> None:
    quantizer = ComposableQuantizer([Foreign()])
    quantizer.annotate(exported(nn.Linear(3, 3), torch.randn(2, 3)))
    assert [(r.node, r.how) for r in quantizer.report()] == [("linear", "annotated, int8")]


def test_quantizers_of_one_class_are_told_apart() -> None:
    first = XNNPACKQuantizer().set_module_type(nn.Linear, None)
    quantizer = ComposableQuantizer([first, XNNPACKQuantizer()])
    quantizer.annotate(exported(Lookup(), torch.tensor([[0, 3, 9]])))
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
