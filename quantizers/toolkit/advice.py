"""What a user can do about an operator that stays in float, where anything can be done."""

from __future__ import annotations

from pt2q.quantizers.toolkit.profit import NO_READER, NO_SOURCE

_ALL_THE_SAME = (
    "int8 between float operators costs time and gains nothing; to have it all the same, name "
    "the operator: set_operator_type(...), or [[override]] operator in a recipe"
)

# The beginnings of reasons, as checks and quantizers give them.
_ADVICE = (
    (NO_READER, _ALL_THE_SAME),
    (NO_SOURCE, _ALL_THE_SAME),
    ("its input has no batch dimension", "export the model with a batch of inputs"),
    ("it computes in ", "export the model in float32: model.float()"),
    ("its weight is computed", "compute it once before export, such as by remove_parametrizations"),
    ("its bias is computed", "compute it once before export"),
    ("dropout is active", "call model.eval() before torch.export.export"),
    ("alpha is ", "multiply the operand first"),
    ("it writes in place", "write the operator out of place: add, not add_"),
    ("no configuration covers it", "cover it by set_global, or by its module or operator"),
)


def advice_for(reason: str) -> str:
    """What to do about a reason; "" where float is what the backend has for it.

    Args:
        reason: as in a report, without ``float: ``.
    """
    return next((advice for start, advice in _ADVICE if reason.startswith(start)), "")
