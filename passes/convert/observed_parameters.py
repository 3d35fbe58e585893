"""Scale and zero point of every observer of a prepared model that is asked for them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch.fx import Node

from pt2q.errors import NoDataError, NoDataWarning
from pt2q.ir.constants import Constants
from pt2q.ir.graph import module_path
from pt2q.ir.module import QuantGraphModule
from pt2q.observers import Form, ObserverBase, batched_qparams, form_of, has_data
from pt2q.passes.convert.kernel_scales import fit_to_kernels
from pt2q.passes.convert.smallest_scales import warn_of_smallest_scales

ObservedParameters: TypeAlias = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Scale and zero point by the identity of the observer."""

OnNoData: TypeAlias = Literal["error", "warn"]
"""What to do about an observer that never saw data: refuse, or leave its tensor in float."""

Calls: TypeAlias = list[tuple[Node, Any]]
"""The calls of observers in a graph, each with its observer."""


def found_parameters(
    found: Sequence[tuple[str, QuantGraphModule, Calls]], on_no_data: OnNoData = "error"
) -> tuple[ObservedParameters, frozenset[int]]:
    """The parameters of all static observers, each asked once however often it is used.

    Args:
        found: of each module its path, itself and its calls of observers.
        on_no_data: what to do about a static activation observer that never saw data.

    Returns:
        The parameters, and the identities of the observers without data, which have none.

    Raises:
        NoDataError: there are such observers, and ``on_no_data`` is ``error``.
    """
    with _constants_shown(found):
        blind = _without_data([(path, *call) for path, _, calls in found for call in calls])
        _say(blind, on_no_data)
        left = frozenset(id(observer) for _, _, observer in blind)
        calls = [call for _, _, calls in found for call in calls if id(call[1]) not in left]
        qparams = _all_qparams(calls)
        warn_of_smallest_scales(calls, qparams)
        fit_to_kernels(found, qparams)
        return qparams, left


def _is_static(observer: Any) -> bool:
    return form_of(observer) is Form.STATIC


@contextmanager
def _constants_shown(found: Sequence[tuple[str, QuantGraphModule, Calls]]) -> Iterator[None]:
    """Within it, observers of constants have seen them: weights want no forward pass.

    Those that had no data of their own, because what they watch is computed (a transposed weight),
    forget it afterwards: they belong to the prepared model, which a conversion leaves as it was.
    """
    forget: dict[int, Any] = {}
    for _, module, calls in found:
        constants = Constants(module)
        for node, observer in calls:
            value = node.args[0]
            if not _is_static(observer) or not isinstance(value, Node):
                continue
            if constants.is_constant(value) and _wants_to_see(observer, forget):
                observer(constants.value(value))
    try:
        yield
    finally:
        for forgets in forget.values():
            forgets()


def _wants_to_see(observer: Any, forget: dict[int, Any]) -> bool:
    """Whether a constant is to be shown; enters how it is forgotten where it has to be."""
    if getattr(observer, "constant_input", False) or id(observer) in forget:
        return True
    if has_data(observer):
        return False
    forget[id(observer)] = _way_back(observer)
    return True


def _way_back(observer: Any) -> Any:
    """What makes an observer forget: its own ``reset``, else its state as it is now."""
    own = getattr(type(observer), "reset", ObserverBase.reset)
    if own is not ObserverBase.reset:
        return observer.reset
    state = copy.deepcopy(observer.__dict__)
    return lambda: observer.__dict__.update(state)


def _all_qparams(found: Calls) -> ObservedParameters:
    static = {id(o): o for _, o in found if _is_static(o)}
    # Ours are searched together, which is several times faster than one by one.
    together = [o for o in static.values() if isinstance(o, ObserverBase) and o.together_with]
    qparams: ObservedParameters = dict(
        zip(map(id, together), batched_qparams(together), strict=True)
    )
    for key, observer in static.items():
        if key not in qparams:
            qparams[key] = observer.calculate_qparams()
    return qparams


def _without_data(found: list[tuple[str, Node, Any]]) -> list[tuple[str, Node, Any]]:
    """The static observers without data, each where it is first used."""
    static = {id(o): (path, node, o) for path, node, o in reversed(found) if _is_static(o)}
    return [place for place in reversed(static.values()) if not has_data(place[2])]


def bodies_not_run(
    found: Sequence[tuple[str, QuantGraphModule, Calls]], on_no_data: OnNoData = "error"
) -> frozenset[str]:
    """The bodies of control flow that calibration never took, and that want its data.

    Their observers may have data all the same: those of what goes in and out are others' too.

    Args:
        found: as in `found_parameters`.
        on_no_data: what to do about them.

    Returns:
        Their paths.

    Raises:
        NoDataError: there are some, and ``on_no_data`` is ``error``.
    """
    idle = [
        path
        for path, module, calls in found
        if path and not module.record.ran and _wants_data(module, calls)
    ]
    names = ", ".join(path.removesuffix(".") for path in idle)
    if idle and on_no_data == "warn":
        warnings.warn(
            f"calibration never ran {names}, of control flow: left in float. Calibrate with "
            "inputs that take it to have it quantized",
            NoDataWarning,
            stacklevel=2,
        )
    elif idle:
        raise NoDataError(
            f"calibration never ran {names}, of control flow, and it is quantized. Either "
            "calibrate: call the prepared model with representative inputs that take it before "
            "convert_pt2e; or leave it in float: give the quantizer None for its modules, "
            "quantizer.set_module_name('name.of.module', None)"
        )
    return frozenset(idle)


def _wants_data(module: QuantGraphModule, calls: Calls) -> bool:
    """Whether an observer in a module finds the range of what is computed: weights want no run."""
    watched = [node.args[0] for node, observer in calls if _is_static(observer)]
    constants = Constants(module)
    return any(isinstance(value, Node) and not constants.is_constant(value) for value in watched)


def _say(empty: list[tuple[str, Node, Any]], on_no_data: OnNoData) -> None:
    if not empty:
        return
    names = [path + node.args[0].name for path, node, _ in empty if isinstance(node.args[0], Node)]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    if on_no_data == "warn":
        warnings.warn(
            f"no data was observed at {shown}: left in float. Calibrate with inputs that reach "
            "them to have them quantized",
            NoDataWarning,
            stacklevel=2,
        )
        return
    raise NoDataError(
        f"no data was observed at {shown}. Either calibrate: call the prepared model with "
        "representative inputs that reach them before convert_pt2e; or leave them in float: "
        "give the quantizer None for their module, e.g. "
        f"quantizer.set_module_name({_module_hint(empty[0][1])!r}, None)"
    )


def _module_hint(node: Node) -> str:
    return module_path(node) or "name.of.module"
