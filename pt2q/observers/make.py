"""The observers, or fake quantizers, that a plan asks for."""

from __future__ import annotations

from typing import Any

from pt2q.errors import AnnotationError
from pt2q.ir.graph import EdgeOrNode, edge_name, is_observer
from pt2q.observers.fake_quantizers.fixed import FixedQParamsFakeQuantize
from pt2q.observers.protocol import SPEC_FIELDS
from pt2q.observers.without_statistics.derived import DerivedObserverOrFakeQuantize
from pt2q.observers.without_statistics.fixed import FixedQParamsObserver
from pt2q.spec.constructor import accepted
from pt2q.spec.plan import Group, Plan
from pt2q.spec.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
)

Observers = dict[EdgeOrNode, Any]


def make_observers(plan: Plan, *, is_qat: bool) -> Observers:
    """One observer per group, for every edge and node of the plan.

    Args:
        plan: the groups.
        is_qat: make fake quantizers where the spec leaves the choice.
    """
    made: list[Any] = []
    for group in plan.groups:
        made.append(make_observer(group, [made[i] for i in group.derived_from], is_qat=is_qat))
    return {key: made[index] for key, index in plan.group_of.items()}


def make_observer(group: Group, sources: list[Any], *, is_qat: bool) -> Any:
    """The observer, or fake quantizer, of one group.

    Args:
        group: its spec says which.
        sources: the observers its parameters are derived from.
        is_qat: whether what passes is rounded.

    Raises:
        AnnotationError: the spec's constructor did not make an observer.
    """
    spec = group.spec
    if isinstance(spec, DerivedQuantizationSpec):
        return DerivedObserverOrFakeQuantize(
            obs_or_fqs=sources,
            derive_qparams_fn=spec.derive_qparams_fn,
            fake_quant=is_qat,
            is_dynamic=spec.is_dynamic,
            **_given(spec),
        )
    if isinstance(spec, FixedQParamsQuantizationSpec):
        fixed: Any = FixedQParamsFakeQuantize if is_qat else FixedQParamsObserver
        return fixed(scale=spec.scale, zero_point=spec.zero_point, **_given(spec))
    assert isinstance(spec, QuantizationSpec)
    constructor = spec.observer_or_fake_quant_ctr
    asked = {**_given(spec), "is_dynamic": spec.is_dynamic}
    made = constructor(**accepted(constructor, asked))
    if is_observer(made):
        return made
    raise AnnotationError(
        f"{edge_name(group.members[0])}: observer_or_fake_quant_ctr made a "
        f"{type(made).__name__}; it must make a module with calculate_qparams()"
    )


def _given(spec: QuantizationSpecBase) -> dict[str, Any]:
    """What a spec says for itself; the rest is the observer's own."""
    given = {name: getattr(spec, name, None) for name in SPEC_FIELDS}
    return {name: value for name, value in given.items() if value is not None}
