"""`TableQuantizer`: a quantizer made of rule tables, on which backends stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.fx import GraphModule, Node
from typing_extensions import Self

from pt2q.errors import SpecError
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.ops import ADDMM, GROUPED_MM
from pt2q.passes import (
    ComposeLinear,
    DecomposeEinsum,
    FoldComputedWeights,
    SplitProducts,
    StoreStacksByRows,
)
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.engine.annotation_run import AnnotationRun
from pt2q.quantizers.toolkit.engine.decompositions import Decompositions
from pt2q.quantizers.toolkit.report.decision_report import Report
from pt2q.quantizers.toolkit.report.decisions import Row
from pt2q.quantizers.toolkit.selection.resolution import resolve
from pt2q.quantizers.toolkit.selection.statements import NodeFilter, Selection
from pt2q.quantizers.toolkit.table.backend_table import BackendTable
from pt2q.quantizers.toolkit.table.rule import Match, Rule
from pt2q.spec import Quantizer


class TableQuantizer(Quantizer):
    """Annotates by rule tables what the user selected; see `Selection` for the precedence.

    Attributes:
        table: what the backend runs quantized; a class of its own says it.
        decompositions: which operators are taken apart before annotation.

    Args:
        default: the configuration used everywhere if no ``set_`` method is given one; None takes
            the table's.
    """

    table: BackendTable
    annotates_bodies = True
    decompositions = Decompositions()

    def __init__(self, default: QuantizationConfig | None = None) -> None:
        self.selection: Selection[QuantizationConfig] = Selection(
            _config(default) or self.table.configure(Mode.STATIC)
        )
        self._report = Report()

    # ------------------------------------------------------------ what the user says

    def set_global(self, quantization_config: QuantizationConfig | None) -> Self:
        """Use a configuration wherever nothing more specific is said; None: float."""
        self.selection.set_global(_config(quantization_config))
        return self

    def set_node_name(self, node_name: str, quantization_config: QuantizationConfig | None) -> Self:
        """Use a configuration for one operator of the graph; None leaves it in float.

        Args:
            node_name: as reports name it; in a body of control flow with the body's path in front.
            quantization_config: what to use.

        Raises:
            SpecError: the name is empty.
        """
        self.selection.set_node_name(node_name, _config(quantization_config))
        return self

    def set_module_name(
        self, module_name: str, quantization_config: QuantizationConfig | None
    ) -> Self:
        """Use a configuration in a module and all it holds; None leaves it in float.

        Args:
            module_name: as in ``named_modules``; ``block.1`` also means ``block.1.conv``, and
                ``block.*`` every module directly in ``block``.
            quantization_config: what to use.

        Raises:
            SpecError: the name is empty.
        """
        self.selection.set_module_name(module_name, _config(quantization_config))
        return self

    def set_module_type(
        self, module_type: type | str, quantization_config: QuantizationConfig | None
    ) -> Self:
        """Use a configuration in all modules of a class; None leaves them in float.

        Args:
            module_type: the class, or its qualified name.
            quantization_config: what to use.
        """
        self.selection.set_module_type(module_type, _config(quantization_config))
        return self

    def set_operator_type(
        self, operator_type: Any, quantization_config: QuantizationConfig | None
    ) -> Self:
        """Use a configuration for an operator; None leaves it in float.

        Args:
            operator_type: an overload, a packet (all its overloads), or a function of torch named
                like one.
            quantization_config: what to use.

        Raises:
            SpecError: it is no operator.
        """
        self.selection.set_operator_type(operator_type, _config(quantization_config))
        return self

    def set_filter_function(self, filter_fn: NodeFilter | None) -> Self:
        """Leave in float every node for which a function returns False; None: no filter."""
        if filter_fn is not None and not callable(filter_fn):
            raise SpecError(f"set_filter_function takes a function of a node, found {filter_fn!r}")
        self.selection.node_filter = filter_fn
        return self

    def set_decompositions(
        self,
        *,
        attention: bool | None = None,
        recurrent: bool | None = None,
        max_steps: int | None = None,
    ) -> Self:
        """Say which operators are taken apart before annotation; None leaves a setting as it is.

        Args:
            attention: fused attention becomes matrix products and a softmax.
            recurrent: LSTM, GRU and plain recurrent layers become linears, step by step.
            max_steps: recurrent layers over longer sequences stay as they are.
        """
        given = {"attention": attention, "recurrent": recurrent, "max_steps": max_steps}
        stated = {name: value for name, value in given.items() if value is not None}
        self.decompositions = replace(self.decompositions, **stated)  # type: ignore[arg-type]
        return self

    def add_rule(self, rule: Rule) -> Self:
        """Put a row in front of the backend's table, for this quantizer alone.

        Args:
            rule: comes before the rows that the table has for the same operators.
        """
        self.table = self.table.with_rule(rule)
        return self

    def statements(self) -> tuple[str, ...]:
        """What it was told, a line each; the most specific first."""
        said = (
            f"{where}: {'float' if config is None else config.summary}"
            for where, config in self.selection.statements()
        )
        return (f"for {self.table.runtime}", *said)

    # ------------------------------------------------------------ what a backend adds

    def refine(self, match: Match, kept: dict[Node, Match]) -> Match:
        """Look at a match once more, now that its neighbours are decided.

        Args:
            match: one that will be annotated.
            kept: all that will be, by each of their nodes; whoever reads the match's output
                quantized is among them.

        Returns:
            The match, or one on the same head with another rule or configuration.
        """
        return match

    # ------------------------------------------------------------ annotation

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Take operators apart (see `set_decompositions`), and make weights constants."""
        steps = self.decompositions.passes()
        is_qat = any(getattr(c, "is_qat", False) for c in self.selection.configs())
        turn = not is_qat and not any(rule.heads & ADDMM for rule in self.table.rules)
        stated = self.selection.stated_operators()
        steps.append(DecomposeEinsum(stated))
        if not is_qat:
            steps.append(SplitProducts(stated, of_constant=True))
        steps += [ComposeLinear(stated, turn, not is_qat)]
        if not is_qat:
            steps.append(FoldComputedWeights())
            if any(rule.heads & GROUPED_MM for rule in self.table.rules):
                steps.append(StoreStacksByRows())
        if any([step(model) for step in steps]):
            model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate the graph, and those its control flow runs, and make the report."""
        modules = list(named_graph_modules(model))
        choices = resolve(self.selection, {path: module.graph for path, module in modules})
        rows: list[Row] = []
        for path, module in modules:
            run = AnnotationRun(self.table, self.refine, module, choices)
            for match in run.matches():
                match.rule.annotate(match)
            rows += (replace(row, node=path + row.node) for row in run.report().rows)
        self._report = Report(tuple(rows))
        return model

    def validate(self, model: GraphModule) -> None:
        """Check every configuration against what the backend's kernels take.

        Raises:
            AnnotationError: a configuration asks for something that no kernel takes.
        """
        for config in self.selection.configs():
            self.table.check_configuration(config)

    def report(self) -> Report:
        """The decisions of the last `annotate`, node by node."""
        return self._report


def _config(given: Any) -> QuantizationConfig | None:
    """What a user gave as a configuration, checked."""
    if given is None or isinstance(given, QuantizationConfig):
        return given
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    raise SpecError(
        f"expected a pt2q.quantizers.QuantizationConfig, such as "
        f"get_symmetric_quantization_config() gives, or None for float; found {kind}: {given!r}"
    )
