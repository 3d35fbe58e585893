"""What counts in floating point is not rounded, whatever a quantizer asks for."""

from __future__ import annotations

import pytest
import torch
from support.small_quantizers import ACTIVATION, FunctionQuantizer, NoopQuantizer
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pt2q import QuantizationAnnotation, convert_pt2e, prepare_pt2e, sqnr
from pt2q.ir import ops
from pt2q.ir.graph import is_float_tensor

pytestmark = pytest.mark.usefixtures("no_gradients")
IDS = torch.randint(0, 20, (1, 24), generator=torch.Generator().manual_seed(0))


def everything(node: Node) -> QuantizationAnnotation | None:
    """Asks for int8 of all that a call reads and gives."""
    if node.op != "call_function":
        return None
    read = {n: ACTIVATION for n in node.all_input_nodes if is_float_tensor(n)}
    return QuantizationAnnotation(read, ACTIVATION if is_float_tensor(node) else None)


class Positions(nn.Module):
    """Positions counted in floating point, as OPT has them, beside a value that is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.positions = nn.Embedding(20, 16), nn.Embedding(26, 16)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mask = torch.ones(ids.shape)
        counted = torch.cumsum(mask, 1) * mask - 1
        angles = torch.arange(24).float() * 0.1
        late = torch.cumsum(mask, 1) > 12
        return self.tokens(ids) + self.positions(counted.long() + 2), angles.sin(), late


def test_positions_are_not_rounded() -> None:
    model = Positions().eval()
    prepared = prepare_pt2e(torch.export.export(model, (IDS,)), FunctionQuantizer(everything))
    prepared(IDS)
    converted = convert_pt2e(prepared)
    (wanted, angles, late), found = model(IDS), converted(IDS)
    assert sqnr(wanted, found[0]) > 30
    assert sqnr(angles, found[1]) > 30 and not torch.equal(angles, found[1])
    assert torch.equal(late, found[2])


class TakesNoProducts(NoopQuantizer):
    """Fails on ``addmm``, after it has changed the graph, as transformations of others do."""

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        found = [n for n in model.graph.nodes if ops.is_op(n, ops.ADDMM)]
        for node in found:
            node.target = ops.aten.mm.default
            raise RuntimeError("a product with a bias")
        return model


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def test_a_transformation_that_fails_on_products_is_given_linear_layers() -> None:
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    exported = torch.export.export(Product(), (x,))
    with pytest.warns(match="annotated nothing"):
        prepared = prepare_pt2e(exported, TakesNoProducts())
    assert any(ops.is_op(n, ops.LINEAR) for n in prepared.graph.nodes)
    torch.testing.assert_close(prepared(x), Product()(x))
    assert "a product with a bias" in prepared.record.notes[0].text


def test_other_failures_of_a_transformation_are_its_own() -> None:
    class Fails(NoopQuantizer):
        def transform_for_annotation(self, model: GraphModule) -> GraphModule:
            raise RuntimeError("mine")

    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    for model in (nn.Linear(8, 4), Product()):
        with pytest.raises(RuntimeError, match="mine"):
            prepare_pt2e(torch.export.export(model.eval(), (x,)), Fails())


class Narrows(NoopQuantizer):
    """Makes int32 of what ``arange`` makes, as quantizers for hardware without int64 do."""

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if ops.is_op(node, ops.FILLED) and "arange" in node.name:
                node.kwargs = {**node.kwargs, "dtype": torch.int32}
                node.meta["val"] = node.meta["val"].to(torch.int32)
        return model


class Inverse(nn.Module):
    """The inverse of a permutation, as a mixture of experts needs it."""

    def forward(self, x: Tensor) -> Tensor:
        order = torch.argsort(x)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.shape[0])
        return x[order][inverse]


@pytest.mark.filterwarnings("ignore:.*annotated nothing")
def test_integers_that_are_written_keep_the_type_of_their_target() -> None:
    x = torch.randn(9, generator=torch.Generator().manual_seed(1))
    prepared = prepare_pt2e(torch.export.export(Inverse(), (x,)), Narrows())
    assert torch.equal(prepared(x), x)
