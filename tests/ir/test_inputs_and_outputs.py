"""Inputs are checked by name; outputs keep their structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.moved_modules import both, copies
from support.results import assert_same, leaves
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from pt2q.errors import InputShapeError

pytestmark = pytest.mark.usefixtures("no_gradients")


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        y = self.linear(x) * scale
        return y if shift is None else y + shift


def test_a_wrong_size_is_named_with_the_way_out() -> None:
    for model in both(nn.Sequential(nn.Linear(4, 4)), (torch.randn(3, 4),)):
        for moved in copies(model):
            with pytest.raises(InputShapeError) as caught:
                moved(torch.randn(5, 4))
            text = str(caught.value)
            assert "input 'input' was exported with size 3 in dimension 0, found 5" in text
            assert "dynamic_shapes={'input': {0: torch.export.Dim.AUTO}}" in text
            assert isinstance(caught.value, ValueError)


def test_the_way_out_has_the_structure_that_export_wants() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, more: dict[str, Any], *, last: Tensor) -> Tensor:
            return x + more["a"][0] + last

    def inputs(batch: int) -> tuple[Any, ...]:
        return torch.randn(batch, 4), {"a": [torch.randn(batch, 4)], "b": 3}

    last = {"last": torch.randn(4)}
    for model in both(Model(), inputs(1), kwargs=last):
        with pytest.raises(InputShapeError) as caught:
            model(*inputs(4), **last)
        shown = str(caught.value).split("dynamic_shapes=")[1].splitlines()[0].removesuffix(")")
        shapes = eval(shown, {"torch": torch})
        assert shapes["more"] == {"a": [{0: Dim.AUTO}], "b": None} and shapes["last"] is None
        again = torch.export.export(Model(), inputs(4), last, dynamic_shapes=shapes)
        assert again.module()(*inputs(7), **last).shape == (7, 4)


def test_the_way_out_works() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    shapes = {"input": {0: Dim.AUTO}}
    for done in both(model, (torch.randn(3, 4),), dynamic_shapes=shapes):
        for moved in copies(done):
            assert moved(torch.randn(7, 4)).shape == (7, 4)
            with pytest.raises(InputShapeError, match="size 4 in dimension 1, found 5"):
                moved(torch.randn(7, 5))


def test_a_wrong_number_of_dimensions() -> None:
    for model in both(nn.Sequential(nn.Linear(4, 4)), (torch.randn(3, 4),)):
        with pytest.raises(InputShapeError, match=r"2 dimensions, found shape \(1, 3, 4\)"):
            model(torch.randn(1, 3, 4))


def test_keyword_inputs_in_any_order() -> None:
    x, scale, shift = torch.randn(3, 4), torch.randn(4), torch.randn(3, 1)
    for model in both(Keywords(), (x,), kwargs={"scale": scale, "shift": shift}):
        for moved in copies(model):
            value = moved(x, scale=scale, shift=shift)
            assert_same(moved(x, shift=shift, scale=scale), value)
            with pytest.raises(InputShapeError, match=r"input 'scale' .* size 4 .* found 5"):
                moved(x, shift=shift, scale=torch.randn(5))
            with pytest.raises(Exception, match="shift"):
                moved(x, scale=scale)


def test_a_keyword_that_was_none() -> None:
    x, scale = torch.randn(3, 4), torch.randn(4)
    for model in both(Keywords(), (x,), kwargs={"scale": scale}):
        assert model(x, scale=scale).shape == (3, 4)


def test_nested_inputs() -> None:
    class Model(nn.Module):
        def forward(self, batch: dict[str, Any], more: tuple[Tensor, int]) -> Tensor:
            return batch["a"] @ batch["b"][0] + more[0] * more[1]

    args = ({"a": torch.randn(2, 3), "b": [torch.randn(3, 4)]}, (torch.randn(4), 3))
    for model in both(Model(), args):
        for moved in copies(model):
            assert moved(*args).shape == (2, 4)
            wrong = ({"a": torch.randn(2, 3), "b": [torch.randn(4, 4)]}, args[1])
            with pytest.raises(InputShapeError, match="size 3 in dimension 0, found 4"):
                moved(*wrong)


@dataclass
class Answer:
    logits: Tensor
    hidden: dict[str, Tensor]


pytree.register_dataclass(Answer, serialized_type_name="tests.Answer")


class Outputs(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        if self.kind == "tuple":
            return y, (x + y, [y])
        if self.kind == "dict":
            return {"y": y, "more": {"x": x + y}}
        if self.kind == "none":
            return y, None, 3
        return Answer(y, {"sum": x + y})


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass", "none"])
def test_outputs_keep_their_structure(kind: str) -> None:
    x = torch.randn(3, 4)
    model = Outputs(kind).eval()
    expected = model(x)
    for graph_module in both(model, (x,)):
        for moved in copies(graph_module):
            value = moved(x)
            assert pytree.tree_structure(value) == pytree.tree_structure(expected)
            for one, other in zip(leaves(value), leaves(expected), strict=True):
                torch.testing.assert_close(one, other, atol=0.1, rtol=0.1)
    again = torch.export.export(graph_module, (x,)).module()(x)
    assert pytree.tree_structure(again) == pytree.tree_structure(expected)
