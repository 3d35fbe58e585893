"""What the values of a recipe may be, and what of that a backend leaves open.

What depends on the backend comes in pydantic's validation context, as an `Allowed`.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from pt2q.algorithms import ALGORITHMS
from pt2q.app.recipe.allowed import Allowed
from pt2q.app.recipe.config import Range
from pt2q.deploy.registry import BACKENDS
from pt2q.ir import ops
from pt2q.offers import EFFORTS

EXPECTED = "expected"
"""The type of errors whose message is what was expected, and nothing else."""

REFUSED = "refused"
"""The type of errors of keys that a backend does not take."""

_SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)


def _expected(text: str) -> PydanticCustomError:
    return PydanticCustomError(EXPECTED, "{text}", {"text": text})


def _one_of(choices: tuple[str, ...]) -> PydanticCustomError:
    return _expected(f"one of {', '.join(f'{choice!r}' for choice in choices)}".replace("'", '"'))


def _allowed(info: ValidationInfo) -> Allowed:
    assert isinstance(info.context, Allowed)
    return info.context


def _backend(value: object) -> object:
    if value not in BACKENDS:
        raise _one_of(tuple(BACKENDS))
    return value


def _taken(value: object, info: ValidationInfo) -> object:
    allowed = _allowed(info)
    if info.field_name in allowed.refused:
        found = {"backend": allowed.backend, "refused": sorted(allowed.refused)}
        raise PydanticCustomError(REFUSED, "{backend}", found)
    return value


def _choice(value: object, info: ValidationInfo) -> object:
    _taken(value, info)
    choices = _allowed(info).choices[str(info.field_name)]
    if value not in choices:
        raise _one_of(choices)
    return value


def _range(value: Any, info: ValidationInfo) -> Range:
    spec = _allowed(info).specs[str(info.field_name)]
    if spec is None:
        raise _expected("no such key, as the backend leaves these tensors in float")
    bounds = torch.iinfo(spec.dtype)
    whole = isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)
    if not whole or not bounds.min <= value[0] < value[1] <= bounds.max:
        inside = f"[{bounds.min}, {bounds.max}]"
        raise _expected(f"two whole numbers [low, high] within {inside}, low first")
    below_0 = value[0] < 0 or bounds.min == 0  # unsigned integers begin at their zero point
    if spec.qscheme in _SYMMETRIC and not (below_0 and value[1] > 0):
        raise _expected("a range that holds 0, where the zero point is, and both signs")
    return value[0], value[1]


def _scale(value: float, info: ValidationInfo) -> float:
    least = _allowed(info).min_scale
    if not least <= value < 1:
        raise _expected(f"a number from {least:.3g}, the smallest scale computed with, to 1")
    return value


def _group(value: object, info: ValidationInfo) -> object:
    _taken(value, info)
    least = _allowed(info).groups_of
    if type(value) is not int or value < 1 or value % least:
        raise _expected(f"a multiple of {least}" if least > 1 else "a whole number from 1 up")
    return value


def _name(value: str) -> str:
    if not value:
        raise _expected("a name")
    return value


def _operator(value: str) -> str:
    if ops.operator_named(value) is None:
        raise _expected('an operator, such as "aten.add"')
    return value


def _algorithm(value: object) -> object:
    if value not in ALGORITHMS:
        raise _one_of(tuple(ALGORITHMS))
    return value


def _effort(value: object) -> object:
    if value not in EFFORTS:
        raise _one_of(EFFORTS)
    return value


AlgorithmName = Annotated[str, BeforeValidator(_algorithm)]
Effort = Annotated[str, BeforeValidator(_effort)]
BackendName = Annotated[str, BeforeValidator(_backend)]
Choice = Annotated[str | None, BeforeValidator(_choice)]
Embeddings = Annotated[bool, BeforeValidator(_taken)]
GroupSize = Annotated[int | None, BeforeValidator(_group)]
Scale = Annotated[float, AfterValidator(_scale)]
Limits = Annotated[Range | None, BeforeValidator(_range)]
Name = Annotated[str, AfterValidator(_name)]
Operator = Annotated[Name, AfterValidator(_operator)]
