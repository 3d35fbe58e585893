"""What an observer is, and what the flow asks of any, ours or not.

Required are the two methods of `ObserverOrFakeQuantize`. All else is asked by the functions of this
file, which know what it means where an observer does not say it. Attributes that are asked for:

======================  ==============================================  ========================
attribute               meaning                                         where it is missing
======================  ==============================================  ========================
dtype, quant_min,       what is stored, and how                         the spec's (`complete`)
quant_max, qscheme,
ch_axis, is_dynamic
granularity             how much shares a scale                         `granularity_of`
quantizes               conversion writes something in its place        True
has_data                it can tell its parameters                      from min_val and max_val
constant_input          show a constant again when converting           False
observer_enabled,       switches, see `pt2q.observers.switches`         it cannot be switched
fake_quant_enabled                                                      it does not round (`rounds`)
convert(model, node)    writes its own operators                        we write them
reset()                 forgets what was observed                       nothing is forgotten
node_name               set on insertion, for messages                  it is set anyway
======================  ==============================================  ========================
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from pt2q.ir.dtypes import CAST_DTYPES
from pt2q.spec.specs import QuantizationSpecBase

SPEC_FIELDS = ("dtype", "quant_min", "quant_max", "qscheme", "ch_axis")


@runtime_checkable
class ObserverOrFakeQuantize(Protocol):
    """What watches a tensor, and in training rounds it, and says how to quantize it.

    A module with these two methods; ``isinstance`` looks for both.
    """

    def forward(self, x: Tensor, /) -> Tensor:
        """Return ``x``, or ``x`` rounded to its grid."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point."""


class Form(Enum):
    """What stands in the place of an observer in the converted graph."""

    NOTHING = auto()
    OWN = auto()
    """What its ``convert(model, node)`` writes."""
    CAST = auto()
    DYNAMIC = auto()
    """Parameters computed in the graph."""
    STATIC = auto()


def form_of(observer: Any) -> Form:
    """What stands in the place of an observer in the converted graph."""
    if not getattr(observer, "quantizes", True):
        return Form.NOTHING
    if callable(getattr(observer, "convert", None)):
        return Form.OWN
    if observer.dtype in CAST_DTYPES:
        return Form.CAST
    return Form.DYNAMIC if getattr(observer, "is_dynamic", False) else Form.STATIC


def has_data(observer: Any) -> bool:
    """Whether an observer can tell its parameters, as far as is known without asking for them."""
    own = getattr(observer, "has_data", None)
    return range_has_data(observer) if own is None else bool(own)


def range_has_data(observer: Any) -> bool:
    """Whether the range that an observer, or the one inside it, keeps holds a value.

    Args:
        observer: one that keeps ``min_val`` and ``max_val``, as all that follow a range do; of
            any other it is not known, and its own ``calculate_qparams`` has to tell.
    """
    watched = getattr(observer, "activation_post_process", observer)
    low, high = getattr(watched, "min_val", None), getattr(watched, "max_val", None)
    if not isinstance(low, Tensor) or not isinstance(high, Tensor):
        return True
    return low.numel() > 0 and bool((low <= high).any())


def rounds(observer: Any) -> bool:
    """Whether what passes an observer comes out rounded, as it does in training.

    Args:
        observer: a fake quantizer, which is one while it is enabled, or any other.
    """
    switch = getattr(observer, "fake_quant", False)  # of those whose rounding is an option
    return bool(getattr(observer, "fake_quant_enabled", switch))


def complete(observer: Any, spec: QuantizationSpecBase) -> None:
    """Give an observer what it does not say for itself and its spec does.

    Args:
        observer: gets attributes that it does not have.
        spec: what it was made for.
    """
    for name in (*SPEC_FIELDS, "is_dynamic"):
        said = getattr(spec, name, None)
        if not hasattr(observer, name) or (said is not None and getattr(observer, name) is None):
            setattr(observer, name, said)


def set_for_constant(observer: Any, alone: bool) -> None:
    """Tell an observer that it watches a weight.

    Args:
        observer: one that knows by itself, as fake quantizers do, is not told.
        alone: it watches nothing else.
    """
    if not isinstance(getattr(type(observer), "constant_input", None), property):
        observer.constant_input = alone
