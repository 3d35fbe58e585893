"""Small models with conditions, loops, scans and maps, alone and nested, with inputs for them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch._higher_order_ops import map as map_op
from torch._higher_order_ops import scan, while_loop


class Cond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cond(x.sum() > 0, lambda x: self.a(x).relu(), lambda x: self.b(x), (x,))
        return self.c(y)


class WhileLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        def body(i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return i + 1, self.a(x).tanh()

        _, y = while_loop(lambda i, x: i < 3, body, (torch.tensor(0), x))
        return self.c(y)


class Scan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        def step(carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(carry + x).tanh()
            return y, y.clone()

        carry, rows = scan(step, torch.zeros(8), x, dim=0)
        return torch.cat([carry[None], rows])


class Map(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return map_op(lambda row: self.a(row).relu(), x)


class Nested(nn.Module):
    """A condition inside a loop, both reading one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        def body(i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.cond(
                x.sum() > 0, lambda x: self.a(x).tanh(), lambda x: self.a(self.b(x)).tanh(), (x,)
            )
            return i + 1, y

        _, y = while_loop(lambda i, x: i < 2, body, (torch.tensor(0), x))
        return y


class Branches(nn.Module):
    """What the second branch computes on its way is seen nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.a(self.b(x)), (x,))


MODELS = (Cond, WhileLoop, Scan, Map, Nested)


def inputs() -> list[Tensor]:
    """Samples that take both branches of a condition on the sum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, generator=generator)
    y = torch.rand(6, 8, generator=generator)
    return [x + 0.3, x - 0.3, y, -y]


@functools.cache
def model_of(kind: type[nn.Module]) -> tuple[nn.Module, torch.export.ExportedProgram]:
    torch.manual_seed(0)
    model = kind().eval()
    return model, torch.export.export(model, (inputs()[0],))


@functools.cache
def expected(kind: type[nn.Module]) -> tuple[Tensor, ...]:
    """What a model gives for each of the inputs; each call is compiled, which takes its time."""
    with torch.no_grad():
        return tuple(model_of(kind)[0](x) for x in inputs())


def exported(kind: type[nn.Module]) -> torch.export.ExportedProgram:
    return model_of(kind)[1]
