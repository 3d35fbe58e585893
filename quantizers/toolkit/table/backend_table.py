"""`BackendTable`: what a backend runs quantized and why it leaves the rest in float, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch.fx import Node

from pt2q.errors import AnnotationError
from pt2q.ir.experts import picks_matrices
from pt2q.ir.ops import GROUPED_MM, Target, is_op, known_as
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.reasons import (
    DYNAMIC_LINEAR_ONLY,
    NO_GROUPED_PRODUCT,
    NO_INT8_KERNEL,
    PICKED_MATRICES,
    Reason,
)
from pt2q.quantizers.toolkit.table.kernel_limits import ROLES, TensorLimits, spec_words
from pt2q.quantizers.toolkit.table.rule import Rule
from pt2q.spec import QuantizationSpec

FloatReason = Reason | Callable[[Node], Reason]


@dataclass(frozen=True, kw_only=True)
class BackendTable:
    """All that a `TableQuantizer` has to know of a backend.

    Args:
        runtime: what computes; put into reasons as ``{runtime}``.
        configure: makes a configuration that the kernels take, for a mode; that for
            `Mode.STATIC` is used if the user gives none.
        configuration: the call by which a user makes one, for messages.
        rules: its rows; of several for one operator the first that passes its checks wins.
        in_float: why operators that no rule names stay in float; the first that fits.
        else_in_float: why all others do.
        in_float_dynamic, else_in_float_dynamic: the same under a dynamic configuration.
        multiplies_groups: it computes, in float, what multiplies groups of rows by a matrix each.
    """

    runtime: str
    configure: Callable[[Mode], QuantizationConfig]
    configuration: str
    rules: tuple[Rule, ...]
    in_float: tuple[tuple[frozenset[Target], FloatReason], ...] = ()
    else_in_float: Reason = NO_INT8_KERNEL
    in_float_dynamic: tuple[tuple[frozenset[Target], FloatReason], ...] = ()
    else_in_float_dynamic: Reason = DYNAMIC_LINEAR_ONLY
    multiplies_groups: bool = False

    def of_mode(self, mode: Mode) -> tuple[Rule, ...]:
        """The rows that hold in a mode, in order."""
        return tuple(rule for rule in self.rules if mode in rule.modes)

    def why_float(self, node: Node, config: QuantizationConfig) -> Reason:
        """Why a node that no rule names stays in float."""
        if picks_matrices(node):
            known = self.multiplies_groups or known_as(node.target) not in GROUPED_MM
            return PICKED_MATRICES if known else NO_GROUPED_PRODUCT
        reasons, other = self.in_float, self.else_in_float
        if config.is_dynamic:
            reasons, other = self.in_float_dynamic, self.else_in_float_dynamic
        found = next((why for ops, why in reasons if is_op(node, ops)), other)
        return found if isinstance(found, Reason) else found(node)

    def with_rule(self, rule: Rule) -> BackendTable:
        """The same table with a rule that comes before all others.

        Args:
            rule: the row to add.
        """
        return replace(self, rules=(rule, *self.rules))

    def check_configuration(self, config: QuantizationConfig) -> None:
        """Check a configuration against what the kernels of its mode take.

        Args:
            config: what a user gave for a module, an operator or the whole model.

        Raises:
            AnnotationError: no kernel takes what it says of some role.
        """
        kernels = [rule.kernel for rule in self.of_mode(config.mode) if rule.kernel is not None]
        if not self.of_mode(config.mode):
            raise AnnotationError(f"{self.runtime} quantizes nothing at run time")
        if config.is_dynamic and config.output_activation is not None:
            raise AnnotationError(
                f"{self.runtime} gives float results from dynamically quantized inputs, but the "
                "configuration has an output_activation; set it to None"
            )
        for role in ROLES:
            limits = dict.fromkeys(filter(None, (kernel.of_role(role) for kernel in kernels)))
            self._check_role(role, getattr(config, role), tuple(limits))

    def _check_role(
        self, role: str, spec: QuantizationSpec | None, limits: tuple[TensorLimits, ...]
    ) -> None:
        if spec is None or not limits or any(taken.takes(spec) for taken in limits):
            return
        taken = "; or ".join(dict.fromkeys(map(str, limits)))
        raise AnnotationError(
            f"{self.runtime} takes {role} in {taken}, but the configuration "
            f"asks for {spec_words(spec)}; use {self.configuration}"
        )
