"""The same spec with another observer, or another smallest scale."""

from __future__ import annotations

from dataclasses import replace

from pt2q.errors import SpecError
from pt2q.observers import OBSERVERS
from pt2q.spec import PartialWrapper, PerTensor, QuantizationSpec
from pt2q.spec.constructor import accepted, unwrapped


def observed_by(spec: QuantizationSpec, name: str) -> QuantizationSpec:
    """The same spec with an observer of a family, which keeps the smallest scale allowed.

    Args:
        spec: of an activation; one whose range is found at run time stays.
        name: of a family in `pt2q.observers.OBSERVERS` that observes whole tensors.
    """
    if spec.is_dynamic:
        return spec
    cls = OBSERVERS[name].member(PerTensor())
    assert cls is not None, "the family observes whole tensors"
    _, arguments = unwrapped(spec.observer_or_fake_quant_ctr)
    floor = {"eps": arguments["eps"]} if "eps" in arguments else {}  # the backend's
    constructor = PartialWrapper(cls).with_args(**accepted(cls, floor))
    return replace(spec, observer_or_fake_quant_ctr=constructor)


def with_smallest_scale(spec: QuantizationSpec, min_scale: float) -> QuantizationSpec:
    """The same spec with another floor of its scales.

    Args:
        spec: of an activation or a weight.
        min_scale: no scale is smaller.

    Raises:
        SpecError: its observer has no such setting.
    """
    constructor = spec.observer_or_fake_quant_ctr
    if not accepted(unwrapped(constructor)[0], {"eps": min_scale}):
        raise SpecError(f"{constructor!r} takes no smallest scale (eps): choose another observer")
    other = PartialWrapper(constructor).with_args(eps=min_scale)
    return replace(spec, observer_or_fake_quant_ctr=other)
