"""The logged values of two models side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pt2q.debug.error_sums import mismatch
from pt2q.debug.identity import Key
from pt2q.errors import ComparisonError
from pt2q.ir.torch_private import pytree
from pt2q.numerics.sqnr import sqnr

Logged = tuple[str, object, list[Any]]
"""Node name, module stack, and one value per call."""


@dataclass(frozen=True)
class QuantizationComparisonResult:
    """One value of the quantized model beside that of the float model.

    Args:
        actual, ref: tensors, or tuples of them.

    Raises:
        ComparisonError: the two have different structures or shapes.
    """

    actual: Any
    ref: Any

    def __post_init__(self) -> None:
        reason = mismatch(self.ref, self.actual)
        if reason:
            raise ComparisonError(str(reason))

    @property
    def mse_loss(self) -> Any:
        """The mean of the squared differences."""
        return self.loss(lambda a, b: torch.nn.functional.mse_loss(a.double(), b.double()))

    @property
    def sqnr(self) -> Any:
        """The signal to quantization noise ratio in dB."""
        return self.loss(lambda a, b: sqnr(b, a))

    def loss(self, function: Callable[[Tensor, Tensor], Tensor]) -> Any:
        """``function(actual, ref)`` of the tensor, or of each tensor of a tuple."""
        return pytree.tree_map(
            lambda a, b: function(a, b) if isinstance(a, Tensor) else None, self.actual, self.ref
        )

    def __repr__(self) -> str:
        return f"QuantizationComparisonResult(mse_loss={self.mse_loss}, sqnr={self.sqnr})"


@dataclass(frozen=True)
class NodeAccuracySummary:
    """The values of one operator in both models.

    Args:
        handle: their identity.
        actual_node_name, actual_module_stack: in the quantized model.
        ref_node_name, ref_module_stack: in the float model.
        results: one per call.
    """

    handle: Key
    actual_node_name: str
    actual_module_stack: str
    ref_node_name: str
    ref_module_stack: str
    results: Sequence[QuantizationComparisonResult]


def compare_results(
    ref_results: Mapping[Key, Logged], actual_results: Mapping[Key, Logged]
) -> dict[Key, NodeAccuracySummary]:
    """Put the logged values of two models side by side.

    Args:
        ref_results: of the float model, from `extract_results_from_loggers`.
        actual_results: of the quantized model, called with the same inputs.

    Returns:
        By handle or origin, for what both have; in the order of ``ref_results``.

    Raises:
        ComparisonError: they have nothing in common, or an operator ran in different numbers of
            calls or gave values of different shapes.
    """
    common = [key for key in ref_results if key in actual_results]
    if ref_results and actual_results and not common:
        raise ComparisonError(
            "the two models log nothing in common. Call generate_numeric_debug_handle on the "
            "float model before it is prepared, or on neither"
        )
    return {key: _summary(key, ref_results[key], actual_results[key]) for key in common}


def _summary(key: Key, ref: Logged, actual: Logged) -> NodeAccuracySummary:
    if len(ref[2]) != len(actual[2]):
        raise ComparisonError(
            f"{ref[0]} ran {len(ref[2])} times in the float model and {actual[0]} "
            f"{len(actual[2])} times in the quantized one; call both with the same inputs"
        )
    try:
        results = [
            QuantizationComparisonResult(a, r) for a, r in zip(actual[2], ref[2], strict=True)
        ]
    except ComparisonError as error:
        raise ComparisonError(f"{ref[0]}: {error}") from error
    return NodeAccuracySummary(key, actual[0], _stack(actual[1]), ref[0], _stack(ref[1]), results)


def _stack(stack: object) -> str:
    """A module stack as text: the innermost module's path and class."""
    if not isinstance(stack, Mapping) or not stack:
        return ""
    path, kind = list(stack.values())[-1]
    name = kind if isinstance(kind, str) else kind.__name__
    return f"{path} ({name})" if path else str(name)
