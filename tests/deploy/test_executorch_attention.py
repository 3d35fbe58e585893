"""Attention in the runtime: what it gives is what the fused operator gives, in few operators."""

from __future__ import annotations

from typing import Any

import torch
from support.lowering import quantized
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pt2q.deploy.executorch import Program, lower

ROWS, COLUMNS, HEADS, WIDTH = 5, 7, 2, 4
INFINITE = float("-inf")
CAUSAL = torch.ones(ROWS, COLUMNS, dtype=torch.bool).tril()
BAND = CAUSAL & ~torch.ones_like(CAUSAL).tril(-2)


class Kinds(nn.Module):
    """Attentions in float, each with two layers, and a linear layer, which is quantized.

    Args:
        kinds: options of each kind of attention; its known mask is one of them.
    """

    def __init__(self, *kinds: dict[str, Any]) -> None:
        super().__init__()
        self.linear, self.kinds = nn.Linear(4, 4), kinds

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor) -> Any:
        key, value = 1.5 * key, 0.5 * value
        given = [{"attn_mask": mask} for mask in masks]
        return [self.two(query, key, value, kind) for kind in (*self.kinds, *given)], self.linear(
            key
        )

    def two(self, query: Tensor, key: Tensor, value: Tensor, kind: dict[str, Any]) -> Tensor:
        for _ in range(2):
            query = scaled_dot_product_attention(query, key, value, **kind)
        return query


def inputs(heads: int = HEADS) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return (
        torch.randn(1, HEADS, ROWS, WIDTH),
        torch.randn(1, heads, COLUMNS, WIDTH),
        torch.randn(1, heads, COLUMNS, WIDTH),
    )


def numbers(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, INFINITE)


def assert_right(program: Program, model: nn.Module, args: tuple[Tensor, ...]) -> None:
    expected = model(*args)[0]
    given = program.load()(*args)[:-1]
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def lowered(model: nn.Module, args: tuple[Tensor, ...]) -> Program:
    program = lower(quantized(model.eval(), args), args, check=False)
    assert_right(program, model, args)
    return program


def test_known_masks_leave_nothing_to_portable_kernels() -> None:
    torch.manual_seed(1)
    masks = (CAUSAL, BAND, torch.ones_like(CAUSAL), torch.randn(HEADS, ROWS, COLUMNS))
    known = [{"attn_mask": mask} for mask in (*masks, numbers(CAUSAL))]
    model = Kinds({}, {"scale": 0.3}, {"is_causal": True}, *known)
    program = lowered(model, inputs())
    assert program.delegation.portable == ()
    assert program.delegation.blobs == 1


def test_large_causal_masks_do_not_make_the_file_larger() -> None:
    torch.manual_seed(0)
    args = tuple(torch.randn(1, 1, 256, 4) for _ in range(3))
    program = lowered(Kinds({"is_causal": True}), args)
    assert dict(program.delegation.portable) == {"aten.arange.start_step": 2}
    assert program.delegation.blobs == 1
    assert len(program.buffer) < 4 * 256 * 256 // 8


def test_rows_that_see_nothing_give_zero() -> None:
    blind = CAUSAL.clone()
    blind[1] = False
    known = [{"attn_mask": mask} for mask in (blind, numbers(blind))]
    args = (*inputs(), blind, numbers(blind))
    model = Kinds(*known)
    assert not any(found[:, :, 1].any() for found in model(*args)[0])
    converted = quantized(model.eval(), args)
    program = lower(converted, args, check=False)
    # What is asked of each mask that is given, once for both of its layers.
    assert dict(program.delegation.portable) == {
        "aten.any.dim": 2,
        "aten.ne.Scalar": 1,
        "dim_order_ops._to_dim_order_copy.default": 3,
    }
    assert program.delegation.blobs <= 2
    for other in (CAUSAL, ~CAUSAL, torch.ones_like(CAUSAL), BAND, blind):
        assert_right(program, model, (*args[:3], other, numbers(other)))
    exported = lower(torch.export.export(converted, args), check=False)
    assert exported.delegation == program.delegation


def test_what_is_not_taken_apart_is_right_too() -> None:
    program = lowered(Kinds({"enable_gqa": True}), inputs(heads=1))
    assert "aten.where.self" in dict(program.delegation.portable)
