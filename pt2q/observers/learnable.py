"""Fake quantizers with learned or grouped parameters.

`LearnableFakeQuantize` learns its step size: Esser et al. 2020, "Learned Step Size Quantization";
the zero point after Bhalgat et al. 2020, "LSQ+". `GroupFakeQuantize` has parameters per group of
neighbouring weights, as 4-bit runtimes want them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pt2q.errors import SpecError
from pt2q.numerics.quantization import DEFAULT_EPS, choose_qparams, is_symmetric
from pt2q.numerics.straight_through import fake_quantize_groups
from pt2q.observers.base import ObserverConstructor
from pt2q.observers.fake_quantize import FakeQuantize
from pt2q.observers.standard import MovingAverageMinMaxObserver


class _LearnedStep(torch.autograd.Function):
    """``(clamp(round(x / s) + z, low, high) - z) * s`` with gradients for ``x``, ``s`` and ``z``.

    With ``v = x / s`` and ``q`` the clamped integer (LSQ, equations 2 and 3, and LSQ+)::

        d/dx = 1 inside, 0 outside
        d/ds = q - z - v inside, q - z outside
        d/dz = 0 inside, -s outside
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, z: Tensor, low: int, high: int) -> Tensor:
        levels = x / s
        q = levels.round().add_(z)
        inside = (q >= low) & (q <= high)
        q.clamp_(low, high).sub_(z)
        ctx.save_for_backward(q, levels, inside, s)
        return q * s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, levels, inside, s = ctx.saved_tensors
        passed = grad * inside
        grad_s = (grad * q).sub_(passed * levels).sum_to_size(s.shape)
        grad_z = (passed - grad).mul_(s).sum_to_size(s.shape)
        return passed, grad_s, grad_z, None, None


class _ScaleGradient(torch.autograd.Function):
    """The input; its gradient times a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def learned_step(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    ch_axis: int | None = None,
) -> Tensor:
    """Fake-quantize with gradients for the parameters, scaled as LSQ says.

    The gradients of the parameters are multiplied by ``1 / sqrt(numbers per scale * quant_max)``
    (Esser et al. 2020, section 2.2), so that steps of scales and of weights are of like size.

    Args:
        x: floating point numbers.
        scale: [1], or [C] with ``ch_axis``; positive.
        zero_point: of the same shape, a float; rounded here.
        quant_min, quant_max: the integers used.
        ch_axis: the axis the parameters run along, or None.
    """
    shape = [1] * x.dim()
    if ch_axis is not None:
        shape[ch_axis] = -1
    share = 1.0 / math.sqrt(x.numel() / scale.numel() * max(quant_max, 1))
    s = _ScaleGradient.apply(scale, share)  # type: ignore[no-untyped-call]
    z = _ScaleGradient.apply(zero_point, share)  # type: ignore[no-untyped-call]
    # The zero point in use is an integer of the range; its gradient passes straight through.
    whole = z + (z.detach().round().clamp(quant_min, quant_max) - z.detach())
    result: Tensor = _LearnedStep.apply(  # type: ignore[no-untyped-call]
        x, s.reshape(shape), whole.reshape(shape), quant_min, quant_max
    )
    return result


class LearnableFakeQuantize(FakeQuantize):
    """Fake-quantize with a scale, and for affine schemes a zero point, that training learns.

    Starts by observing: every call takes the parameters from the observed range, which is the
    initialization. `enable_param_learning`, or `enable_learning` with ``model.apply``, stops the
    observer and lets the optimizer move ``scale`` and ``zero_point``, which are Parameters from
    the beginning (per-channel ones have their shape once the module is in a prepared model). Give
    them no weight decay.

    Args:
        observer: finds the initial parameters.
        channels: the number of scales of a per-channel scheme, if it is known.
        **kwargs: as for `FakeQuantize`.

    Raises:
        SpecError: dynamic parameters cannot be learned.
    """

    def __init__(
        self, observer: Any = MovingAverageMinMaxObserver, channels: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(observer, **kwargs)
        if self.is_dynamic:
            raise SpecError("LearnableFakeQuantize: parameters of a dynamic spec are not learned")
        self.set_channels(channels)

    def set_channels(self, channels: int) -> None:
        """Make room for that many scales; before the optimizer is made.

        Args:
            channels: the size of ``ch_axis``.
        """
        affine = not is_symmetric(self.qscheme)
        for name in ("scale", "zero_point"):
            self._buffers.pop(name, None)
            self._parameters.pop(name, None)
        self.register_parameter("scale", nn.Parameter(torch.ones(channels)))
        zeros = torch.zeros(channels)
        if affine:
            self.register_parameter("zero_point", nn.Parameter(zeros))
        else:
            self.register_buffer("zero_point", zeros)

    def enable_param_learning(self) -> None:
        """Stop observing; from now on the optimizer moves the parameters."""
        self.disable_observer()
        self.enable_fake_quant()

    def enable_static_estimate(self) -> None:
        """Take the parameters from the observed range at every call."""
        self.enable_observer()
        self.enable_fake_quant()

    @property
    def constant_input(self) -> bool:
        """Whether conversion may still look at a constant: not once parameters are learned."""
        return self._is_on()[0]

    def _set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        if self.scale.numel() != scale.numel():
            raise SpecError(
                f"LearnableFakeQuantize on node '{self.node_name}': found {scale.numel()} channels "
                f"and has {self.scale.numel()} scales; call set_channels({scale.numel()}) before "
                "the optimizer is made"
            )
        self.scale.data.copy_(scale)
        self.zero_point.data.copy_(zero_point)
        self._ready = True

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + "scale")
        if stored is not None and stored.numel() != self.scale.numel():
            self.set_channels(stored.numel())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _round(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.clamp_(min=self.eps)
        low, high = self.quant_min, self.quant_max
        return learned_step(x, self.scale, self.zero_point, low, high, self.ch_axis)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return the parameters in use, float32 and int64."""
        scale, _ = super().calculate_qparams()
        zero_point = self.zero_point.detach().round().clamp(self.quant_min, self.quant_max)
        return scale.clamp(min=self.eps), zero_point.to(torch.int64)


def enable_learning(module: nn.Module) -> None:
    """Let `LearnableFakeQuantize` learn; for ``model.apply(enable_learning)``."""
    if isinstance(module, LearnableFakeQuantize):
        module.enable_param_learning()


class GroupFakeQuantize(nn.Module):
    """Fake-quantize weights [rows, columns] with parameters per group of neighbours in a row.

    The parameters are those of the weight as it is, at every step: nothing is averaged.

    Args:
        group_size: how many neighbours share parameters.
        dtype, quant_min, quant_max: [-8, 7] of int8 are 4 bits.
        qscheme: symmetric or affine, per channel.
        eps: the smallest scale.
        scale_dtype: scales are rounded to it: bfloat16 is what 4-bit kernels store.
        **_: what specs pass to every constructor (``ch_axis``, ``is_dynamic``).
    """

    scale: Tensor
    zero_point: Tensor
    fake_quant_enabled: Tensor
    observer_enabled: Tensor

    def __init__(
        self,
        group_size: int = 32,
        dtype: torch.dtype = torch.int8,
        quant_min: int = -8,
        quant_max: int = 7,
        qscheme: torch.qscheme = torch.per_channel_symmetric,
        eps: float = DEFAULT_EPS,
        scale_dtype: torch.dtype = torch.float32,
        **_: Any,
    ) -> None:
        super().__init__()
        self.group_size, self.dtype, self.qscheme = group_size, dtype, qscheme
        self.quant_min, self.quant_max, self.eps = quant_min, quant_max, eps
        self.scale_dtype = scale_dtype
        self.ch_axis, self.is_dynamic, self.node_name = 0, False, ""
        self.constant_input = True
        self.register_buffer("scale", torch.ones(1, 1))
        self.register_buffer("zero_point", torch.zeros(1, 1, dtype=torch.int64))
        self.register_buffer("fake_quant_enabled", torch.ones(1, dtype=torch.int64))
        self.register_buffer("observer_enabled", torch.ones(1, dtype=torch.int64))
        self.has_data = False

    @classmethod
    def with_args(cls, **kwargs: Any) -> ObserverConstructor:
        """Return a constructor of this class with some arguments filled in."""
        return ObserverConstructor(cls).with_args(**kwargs)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round, or let pass."""
        self.fake_quant_enabled.fill_(int(enabled))

    def enable_observer(self, enabled: bool = True) -> None:
        """Follow the weight, or keep the parameters as they are."""
        self.observer_enabled.fill_(int(enabled))
        self.constant_input = enabled

    def forward(self, x: Tensor) -> Tensor:
        """Return the weight rounded to its grids.

        Raises:
            SpecError: the columns are no multiple of the group size.
        """
        if self.observer_enabled or not self.has_data:
            self._observe(x.detach())
        if not self.fake_quant_enabled:
            return x
        low, high = self.quant_min, self.quant_max
        return fake_quantize_groups(x, self.scale, self.zero_point, low, high, self.group_size)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] % self.group_size:
            raise SpecError(
                f"GroupFakeQuantize on node '{self.node_name}': expected [rows, columns] with "
                f"columns a multiple of {self.group_size}, found {tuple(x.shape)}"
            )
        low, high = torch.aminmax(x.float().unflatten(1, (-1, self.group_size)), dim=2)
        scale, zero_point = choose_qparams(
            low,
            high,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            dtype=self.dtype,
            qscheme=self.qscheme,
            eps=self.eps,
        )
        self.scale, self.zero_point = scale.to(self.scale_dtype).float(), zero_point
        self.has_data = True

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scales and zero points, [rows, columns / group_size]."""
        return self.scale, self.zero_point

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in ("scale", "zero_point"):
            stored = state_dict.get(prefix + name)
            if stored is not None:
                self._buffers[name] = stored.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.has_data = True
        self.constant_input = bool(self.observer_enabled)
