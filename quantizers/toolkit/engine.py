"""`TableQuantizer`: a quantizer made of rule tables, on which backends stand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch.fx import Graph, GraphModule, Node
from typing_extensions import Self

from pt2q.errors import SpecError
from pt2q.ir.control_flow import is_control_flow, named_graph_modules
from pt2q.ir.graph import is_float_tensor, module_path
from pt2q.ir.ops import DROPOUT, GETITEM, SHAPE, is_mutating, is_op
from pt2q.passes.computed_weights import ComposeLinear, FoldComputedWeights
from pt2q.quantizers.toolkit.annotate import carried_from
from pt2q.quantizers.toolkit.config import QuantizationConfig
from pt2q.quantizers.toolkit.decompositions import Decompositions, why_not_decomposed
from pt2q.quantizers.toolkit.masks import MaskFinder
from pt2q.quantizers.toolkit.profit import select_worthwhile
from pt2q.quantizers.toolkit.report import Report, Row
from pt2q.quantizers.toolkit.roles import float_activations, roles_of
from pt2q.quantizers.toolkit.rules import Context, Kind, Match, Rule, RuleTable, follow_chain
from pt2q.quantizers.toolkit.selection import Choice, NodeFilter, Selection
from pt2q.spec import QuantizationSpec, Quantizer, annotation_of


class TableQuantizer(Quantizer):
    """Annotates by rule tables what the user selected; see `Selection` for the precedence.

    A backend says which rules hold under a configuration (`rules`) and why what no rule names
    stays in float (`why_float`).

    Args:
        default: the configuration used everywhere if no ``set_`` method is given one.
    """

    annotates_bodies = True
    decompositions = Decompositions()

    def __init__(self, default: QuantizationConfig | None = None) -> None:
        self.selection: Selection[QuantizationConfig] = Selection(_config(default))
        self._report = Report()

    # ------------------------------------------------------------ what the user says

    def set_global(self, quantization_config: QuantizationConfig | None) -> Self:
        """Use a configuration wherever nothing more specific is said; None: float."""
        self.selection.set_global(_config(quantization_config))
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

    # ------------------------------------------------------------ what a backend says

    @abstractmethod
    def rules(self, config: QuantizationConfig) -> tuple[Rule, ...]:
        """The table for nodes with this configuration."""

    @abstractmethod
    def why_float(self, node: Node, config: QuantizationConfig) -> str:
        """Why a node that no rule names stays in float, for the user."""

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
        steps.append(ComposeLinear(self.selection.stated_operators()))
        if not any(getattr(c, "is_qat", False) for c in self.selection.configs()):
            steps.append(FoldComputedWeights())
        if any([step(model) for step in steps]):
            model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate the graph, and those its control flow runs, and make the report."""
        modules = list(named_graph_modules(model))
        choices = self.selection.resolve(*(module.graph for _, module in modules))
        rows: list[Row] = []
        for path, module in modules:
            run = _Run(self, module, choices)
            for match in run.matches():
                match.rule.annotate(match)
            rows += (replace(row, node=path + row.node) for row in run.report().rows)
        self._report = Report(tuple(rows))
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check that the rules have not."""

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


class _Run:
    """The annotation of one graph."""

    def __init__(
        self,
        quantizer: TableQuantizer,
        model: GraphModule,
        choices: dict[Node, Choice[QuantizationConfig]],
    ) -> None:
        self.quantizer = quantizer
        self.graph: Graph = model.graph
        self.context = Context(model, MaskFinder(model))
        self.choices = choices
        self.live = live_nodes(model.graph)
        self.tables: dict[QuantizationConfig, RuleTable] = {}
        self.reasons: dict[Node, str] = {}
        self.undone = why_not_decomposed(model)
        self.kept: dict[Node, Match] = {}

    def matches(self) -> list[Match]:
        """What to annotate, in the order of the graph."""
        kept, left = select_worthwhile(self._candidates())
        self.reasons.update(left)
        heads = [match for node, match in kept.items() if match.head is node]
        refined = [self.quantizer.refine(match, kept) for match in heads]
        self.kept = {node: match for match in refined for node in match.nodes}
        return refined

    def _candidates(self) -> Iterator[Match]:
        claimed: set[Node] = set()
        for node in self.graph.nodes:
            if node not in self.live or node in claimed or node not in self.choices:
                continue
            match = self._match(node, self.choices[node])
            if match is not None:
                claimed.update(match.nodes)
                yield match

    def _match(self, node: Node, choice: Choice[QuantizationConfig]) -> Match | None:
        if annotation_of(node) is not None:
            self.reasons[node] = "another quantizer annotated it"
            return None
        if choice.config is None:
            self.reasons[node] = choice.origin
            return None
        for rule in self._table(choice.config).rules_for(node):
            match = Match(
                rule, follow_chain(node, rule.tails, self._may_fuse), choice, self.context
            )
            reason = next(filter(None, (check(match) for check in rule.checks)), None)
            if reason is None:
                return match
            self.reasons.setdefault(node, reason)
        reason = self.undone.get(node.name) or self.quantizer.why_float(node, choice.config)
        self.reasons.setdefault(node, reason)
        return None

    def _table(self, config: QuantizationConfig) -> RuleTable:
        if config not in self.tables:
            self.tables[config] = RuleTable(self.quantizer.rules(config))
        return self.tables[config]

    def _may_fuse(self, node: Node) -> bool:
        """A follower joins its chain unless the user wants it in float or it is taken."""
        choice = self.choices[node]
        wanted = choice.config is not None or not choice.stated
        return wanted and annotation_of(node) is None

    # ------------------------------------------------------------ report

    def report(self) -> Report:
        """One row per live operator that computes on floating point tensors."""
        return Report(tuple(self._row(n) for n in self.graph.nodes if self._is_of_interest(n)))

    def _is_of_interest(self, node: Node) -> bool:
        if node not in self.choices or node not in self.live or is_control_flow(node):
            return False
        if node.target is GETITEM or (is_op(node, SHAPE | DROPOUT) and node not in self.kept):
            return False
        computes = node in self.kept or bool(float_activations(node))
        return yields_float(node) and computes

    def _row(self, node: Node) -> Row:
        match = self.kept.get(node)
        how = f"float: {self.reasons.get(node, '')}" if match is None else describe(match, node)
        return Row(node.name, module_path(node), str(node.target), match is not None, how)


def live_nodes(graph: Graph) -> set[Node]:
    """Nodes that an output, or a write into a tensor, depends on."""
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or is_mutating(node) or any(u in live for u in node.users):
            live.add(node)
    return live


def yields_float(node: Node) -> bool:
    """Whether a node gives a floating point tensor, or several."""
    value = node.meta.get("val")
    if not isinstance(value, list | tuple):
        return is_float_tensor(node)
    return any(getattr(v, "dtype", None) is not None and v.is_floating_point() for v in value)


# ------------------------------------------------------------------ words


def describe(match: Match, node: Node) -> str:
    """How a node is quantized, in a few words.

    Args:
        match: what it belongs to.
        node: one of the match's nodes.
    """
    spec = match.config.input_activation
    words = type_words(spec) if spec is not None else "weight only"
    if node is not match.head:
        return f"{words}, fused into {match.head.name}"
    if match.rule.kind is Kind.CARRYING:
        return f"{words}, parameters of {carried_from(node).name}"
    weight = roles_of(node).weight
    annotation = annotation_of(node)
    found = annotation.input_qspec_map.get(weight) if annotation and weight else None
    if not isinstance(found, QuantizationSpec):
        return words
    axis = "per-tensor" if found.ch_axis is None else "per-channel"
    return f"{words}, weight {bits_words(found)} {axis}"


def type_words(spec: QuantizationSpec) -> str:
    """``int8 static`` or ``int8 dynamic``."""
    return f"{bits_words(spec)} {'dynamic' if spec.is_dynamic else 'static'}"


def bits_words(spec: QuantizationSpec) -> str:
    """``int8``, or ``int4`` where fewer of the dtype's bits are used."""
    name = str(spec.dtype).removeprefix("torch.")
    if spec.quant_min is None or spec.quant_max is None or not name.startswith(("int", "uint")):
        return name
    bits = (spec.quant_max - spec.quant_min).bit_length()
    kind = name.rstrip("0123456789")
    return f"{kind}{min(bits, int(name.removeprefix(kind)))}"
