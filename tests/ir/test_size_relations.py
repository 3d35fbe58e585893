"""What export found out about sizes is checked, not only the sizes that it was told to keep."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small_quantizers import SmallQuantizer
from torch import Tensor, nn
from torch.export import Dim

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e
from pt2q.deploy.signature import dynamic_shapes, signature_of
from pt2q.errors import InputShapeError, TiedInputsWarning
from pt2q.ir.module.size_relations import broken, readable

pytestmark = pytest.mark.usefixtures("no_gradients")


class AddsStored(nn.Module):
    """A size of 1 broadcasts, and gives four rows for one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("rows", torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.rows


class AddsTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, more: dict[str, Tensor]) -> Tensor:
        return self.linear(x) + self.linear(more["y"])


class ByThrees(AddsTwo):
    """What it computes depends on a remainder, which export takes for settled."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.linear(x) + 1 if x.shape[0] % 3 == 0 else self.linear(x)


def _rows(count: int) -> Tensor:
    return torch.randn(count, 8)


def _stages(model: nn.Module, args: tuple[Any, ...], shapes: Any) -> list[Any]:
    """Prepared and converted, from the program and from its module, and their copies."""
    program = torch.export.export(model.eval(), args, dynamic_shapes=shapes)
    found = []
    for source in (program, program.module()):
        ready = prepare_pt2e(source, SmallQuantizer())
        ready(*args)
        found += [ready, convert_pt2e(ready)]
    return [*found, copy.deepcopy(found[1]), pickle.loads(pickle.dumps(found[1]))]


def _assert_refused(call: Callable[..., Any], *args: Any, match: str) -> None:
    with pytest.raises(InputShapeError, match=match):
        call(*args)


def test_a_size_that_export_specialised() -> None:
    shapes = ({0: Dim.AUTO},)
    for model in _stages(AddsStored(), (_rows(4),), shapes):
        assert model(_rows(4)).shape == (4, 8)
        for count in (1, 5):
            _assert_refused(model, _rows(count), match="size 4 in dimension 0.*this size alone")


def test_sizes_that_are_one() -> None:
    shapes = ({0: Dim.AUTO}, {"y": {0: Dim.AUTO}})
    for model in _stages(AddsTwo(), (_rows(4), {"y": _rows(4)}), shapes):
        assert model(_rows(6), {"y": _rows(6)}).shape == (6, 8)
        for count in (1, 3):
            _assert_refused(
                model, _rows(4), {"y": _rows(count)}, match=r"more\['y'\].size\(\)\[0\]"
            )


def test_a_remainder_and_bounds() -> None:
    for model in _stages(ByThrees(), (_rows(6),), ({0: Dim.AUTO},)):
        assert model(_rows(9)).shape == (9, 8)
        _assert_refused(model, _rows(7), match=r"% 3")
    for model in _stages(nn.Linear(8, 8), (_rows(6),), ({0: Dim("rows", min=4, max=9)},)):
        assert model(_rows(9)).shape == (9, 8)
        _assert_refused(model, _rows(3), match=">= 4")
        _assert_refused(model, _rows(10), match="<= 9")


def test_a_dynamic_size_stays_free_when_exported_again() -> None:
    model = _stages(AddsTwo(), (_rows(4), {"y": _rows(4)}), ({0: Dim.AUTO}, {"y": {0: Dim.AUTO}}))[
        1
    ]
    assert isinstance(model, QuantGraphModule)
    args = (_rows(4), {"y": _rows(4)})
    for strict in (False, True):
        again = torch.export.export(
            model, args, dynamic_shapes=({0: Dim.AUTO}, {"y": {0: Dim.AUTO}}), strict=strict
        )
        assert again.module()(_rows(7), {"y": _rows(7)}).shape == (7, 8)


def test_a_signature_knows_specialised_sizes() -> None:
    program = torch.export.export(AddsStored().eval(), (_rows(4),), dynamic_shapes=({0: Dim.AUTO},))
    signature = signature_of(program)
    assert signature.inputs[0].shape == (4, 8)
    assert dynamic_shapes(program, signature) is None


def test_a_relation_that_is_code_is_not_run() -> None:
    texts = (
        "x.size()[0] == 3",
        "__import__('os').getcwd() == 3",
        "x.size()[y] == 3",
        "1 +",
        "f(2)",
    )
    assert readable(texts) == texts[:1]
    assert broken(texts, {"x": (4,)}) == texts[0]
    assert broken(texts, {"x": (3,)}) is None
    assert broken(("y.size()[0] == 2", "5 // x.size()[0] == 2"), {"x": (0,)}) is None


def test_one_tensor_for_two_inputs_is_said() -> None:
    class Two(AddsTwo):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            return self.linear(x) + y

    same = _rows(4)
    with pytest.warns(TiedInputsWarning, match="does not read input 'x'.*reads 'y' for both"):
        prepare_pt2e(torch.export.export(Two().eval(), (same, same)), SmallQuantizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_pt2e(torch.export.export(Two().eval(), (same, same.clone())), SmallQuantizer())
