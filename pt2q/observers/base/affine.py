"""Observers in the words of affine quantization: a mapping, a stored dtype, a granularity."""

from __future__ import annotations

from typing import Any

import torch

from pt2q.ir.dtypes import dtype_bounds
from pt2q.observers.base.observer_base import ObserverBase
from pt2q.spec.granularity import Granularity, PerAxis, PerTensor, PerToken
from pt2q.spec.mapping import MappingType, ZeroPointDomain
from pt2q.spec.resolved_granularity import as_granularity

_SCHEMES = {
    (True, True): torch.per_tensor_symmetric,
    (True, False): torch.per_tensor_affine,
    (False, True): torch.per_channel_symmetric,
    (False, False): torch.per_channel_affine,
}


class AffineQuantizedObserverBase(ObserverBase):
    """Base of observers that say how with a `MappingType` and a `Granularity`.

    A subclass has ``forward``, which may set ``block_size`` and ``original_dtype``, and
    ``calculate_qparams``, whose results have the shape of the parts: [C] along an axis, [R, G] for
    groups in rows. Conversion writes the operators of `quantized_decomposed` for them; other
    operators, or granularities that those do not know, are for ``convert(model, node)``.

    Args:
        mapping_type: where zero goes.
        target_dtype: what is stored.
        granularity: how much shares a scale.
        quant_min, quant_max: the integers used; all of ``target_dtype`` if not given.
        eps: the smallest scale.
        scale_dtype, zero_point_dtype: what the parameters are kept in.
        preserve_zero: whether zero is exact.
        zero_point_domain: what a zero point is.
        is_dynamic: the parameters are found at run time.
        **_: what a spec says besides, which is said here in other words.
    """

    block_size: tuple[int, ...] | None
    original_dtype: torch.dtype | None

    def __init__(
        self,
        mapping_type: MappingType,
        target_dtype: torch.dtype,
        granularity: Granularity,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float | None = None,
        scale_dtype: torch.dtype | None = None,
        zero_point_dtype: torch.dtype | None = None,
        preserve_zero: bool = True,
        zero_point_domain: ZeroPointDomain | None = ZeroPointDomain.INT,
        *,
        is_dynamic: bool = False,
        **_: Any,
    ) -> None:
        low, high = dtype_bounds(target_dtype)
        granularity = as_granularity(granularity) or granularity
        symmetric = mapping_type is not MappingType.ASYMMETRIC
        super().__init__(
            target_dtype,
            is_dynamic,
            quant_min=int(low) if quant_min is None else quant_min,
            quant_max=int(high) if quant_max is None else quant_max,
            qscheme=_SCHEMES[isinstance(granularity, PerTensor | PerToken), symmetric],
            ch_axis=granularity.axis if isinstance(granularity, PerAxis) else None,
        )
        self.mapping_type, self.target_dtype = mapping_type, target_dtype
        self.granularity, self.eps = granularity, eps
        self.scale_dtype, self.zero_point_dtype = scale_dtype, zero_point_dtype
        self.preserve_zero, self.zero_point_domain = preserve_zero, zero_point_domain
        self.block_size = self.original_dtype = None
