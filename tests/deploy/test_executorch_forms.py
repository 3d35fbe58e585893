"""Operators that are lowered as others, which XNNPACK runs, give the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from support.lowering import quantized
from torch import Tensor, nn

from pt2q.deploy.executorch import Program, lower

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "split": lambda x: torch.cat(x.split([1, 5, 2], -1)[::-1], -1),
    "chunk": lambda x: torch.cat(x.chunk(3, 1)[1:], 1),
    "unbind": lambda x: x.unbind(-2)[-1],
    "select": lambda x: x.select(-1, -2),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x.squeeze(0),
    "expand": lambda x: x.unsqueeze(1).expand(2, 3, 8, 8),
    "mean of rows": lambda x: x.mean(-1, keepdim=True),
    "mean of two": lambda x: x.unsqueeze(0).mean((1, -1)),
    "mean of columns": lambda x: x.mean(1),
    "square": lambda x: x.pow(2.0),
    "cube": lambda x: x.pow(3),
    "integers": lambda x: ((2 + x) * 3 - 1) / 4,
    "hard sigmoid": lambda x: nn.functional.hardsigmoid(4 * x),
    "norm": lambda x: nn.functional.layer_norm(x, [8], x[0, 0], x[0, 1], 0.1),
    "bare norm": lambda x: nn.functional.layer_norm(x, [8]),
}
NORM = "aten.native_layer_norm.default"


class Each(nn.Module):
    """Each form of a number that is computed, in float, and a linear layer, which is quantized."""

    def __init__(self, forms: dict[str, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.linear, self.forms = nn.Linear(8, 8), forms

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        given = 1.5 * x
        return self.linear(x), *(form(given) * 2.0 for form in self.forms.values())


def lowered(model: nn.Module, *args: Tensor) -> Program:
    program = lower(quantized(model.eval(), args), args, check=False)
    pairs = zip(program.load()(*args)[1:], model(*args)[1:], strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    return program


def test_each_form_runs_on_xnnpack() -> None:
    torch.manual_seed(0)
    found = lowered(Each(FORMS), torch.randn(2, 8, 8)).delegation
    assert found.portable == ()
    assert found.blobs == 1


def test_norms_of_single_rows_long_rows_and_images_stay_as_they_are() -> None:
    torch.manual_seed(0)
    forms = {
        "one row": lambda x: nn.functional.layer_norm(x[0], [8]),
        "long rows": lambda x: nn.functional.layer_norm(x.repeat(8, 64), [512]),
        "image": lambda x: nn.functional.layer_norm(x.expand(2, 3, 4, 8), [8]),
        "two dimensions": lambda x: nn.functional.layer_norm(
            x.expand(8, 8).reshape(2, 4, 8), [4, 8]
        ),
    }
    found = lowered(Each(forms), torch.randn(1, 8)).delegation
    assert dict(found.portable)[NORM] == 4


class Parts(nn.Module):
    """Parts of what is quantized: some are read quantized, some in float."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = self.first(x).chunk(3, -1)
        return self.second(a), self.second(b), torch.atan2(c, x[:, :4])


def test_parts_of_quantized_tensors() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    converted = quantized(Parts().eval(), (x,))
    program = lower(converted, (x,))  # which compares it with the converted model
    assert dict(program.delegation.portable) == {"aten.atan2.default": 1}
    for found, expected in zip(program.load()(x), converted(x), strict=True):
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.0)
