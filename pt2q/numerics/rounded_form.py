"""A rounded tensor as one byte, or two, an element: the integers that it was made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pt2q.ir.saved_tensors import SmallForm
from pt2q.numerics.parts import row_parts

_INTEGERS = ((torch.int8, 2**8), (torch.int16, 2**16))


@dataclass(frozen=True, eq=False)
class RoundedForm(SmallForm):
    """Of ``x = n * scale`` with whole numbers ``n``, in float32: ``n + shift``.

    ``n`` is found anew by rounding ``x * inverse``: below 2**16, the errors of both products are
    far below a half. So ``n * scale`` is the number that it was, but for the sign of a zero.

    Args:
        inverse, scale: float32 numbers, or tensors of a shape that broadcasts.
        shift: a whole number that brings each ``n`` into ``dtype``.
        dtype: int8 or int16.
    """

    inverse: float | Tensor
    scale: float | Tensor
    shift: float
    dtype: torch.dtype

    def shrunk(self, tensor: Tensor) -> Tensor:
        """See `SmallForm.shrunk`; part by part, or new pages would cost more than the numbers."""
        parts = row_parts(tensor)
        if not parts:
            return self._levels(tensor, self.inverse).to(self.dtype)
        result = torch.empty_like(tensor, dtype=self.dtype)
        for rows in parts:
            inverse = self.inverse
            if isinstance(inverse, Tensor) and inverse.shape[0] > 1:
                inverse = inverse[rows]
            result[rows].copy_(self._levels(tensor[rows], inverse))
        return result

    def _levels(self, tensor: Tensor, inverse: float | Tensor) -> Tensor:
        if isinstance(inverse, Tensor):
            levels = (tensor * inverse).round_()
            return levels.add_(self.shift) if self.shift else levels
        # One sweep for both; the sum is rounded to the same whole number.
        return torch.add(tensor.new_tensor(self.shift), tensor, alpha=inverse).round_()

    def restored(self, small: Tensor) -> Tensor:
        """See `SmallForm.restored`."""
        levels = small.to(torch.float32)
        return (levels.sub_(self.shift) if self.shift else levels).mul_(self.scale)


def rounded_form(
    inverse: float | Tensor, scale: float | Tensor, low: float, high: float
) -> RoundedForm | None:
    """The form of a rounded tensor, or None where its integers need more than two bytes.

    Args:
        inverse, scale: see `RoundedForm`; they may be written after this.
        low, high: the smallest and the largest ``n`` that there can be.
    """
    for dtype, count in _INTEGERS:
        if high - low < count:
            least = torch.iinfo(dtype).min
            fits = least <= low and high < least + count
            inverse, scale = (n.clone() if isinstance(n, Tensor) else n for n in (inverse, scale))
            return RoundedForm(inverse, scale, 0.0 if fits else least - low, dtype)
    return None
