"""One graph and one table: which matches are annotated, and why the rest stays in float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from torch.fx import Graph, GraphModule, Node

from pt2q.ir.control_flow import is_control_flow
from pt2q.ir.graph import is_float_tensor, module_path
from pt2q.ir.ops import DROPOUT, GETITEM, SHAPE, Target, is_mutating, is_op, known_as
from pt2q.quantizers.toolkit import reasons
from pt2q.quantizers.toolkit.config import Mode, QuantizationConfig
from pt2q.quantizers.toolkit.engine.decompositions import why_not_decomposed
from pt2q.quantizers.toolkit.engine.profit import select_gaining
from pt2q.quantizers.toolkit.engine.words import describe
from pt2q.quantizers.toolkit.reading.attention_masks import MaskFinder
from pt2q.quantizers.toolkit.reading.chains import follow_chain
from pt2q.quantizers.toolkit.reading.tensor_roles import float_activations
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.report.decision_report import Report
from pt2q.quantizers.toolkit.report.decisions import Row
from pt2q.quantizers.toolkit.selection.statements import Choice
from pt2q.quantizers.toolkit.table.backend_table import BackendTable
from pt2q.quantizers.toolkit.table.checks import kernel_takes, varies
from pt2q.quantizers.toolkit.table.rule import Context, Match, Rule
from pt2q.spec import annotation_of


class AnnotationRun:
    """The decisions on one graph.

    Args:
        table: the backend's.
        refine: looks at a match once more when its neighbours are decided; see
            `TableQuantizer.refine`.
        model: owns the graph.
        choices: what the user said about each of its calls.
    """

    def __init__(
        self,
        table: BackendTable,
        refine: Callable[[Match, dict[Node, Match]], Match],
        model: GraphModule,
        choices: dict[Node, Choice[QuantizationConfig]],
    ) -> None:
        self.table = table
        self.refine = refine
        self.graph: Graph = model.graph
        self.context = Context(model=model, masks=MaskFinder(model))
        self.choices = choices
        self.live = live_nodes(model.graph)
        self.rules = {mode: _by_head(table.of_mode(mode)) for mode in Mode}
        self.reasons: dict[Node, Reason] = {}
        self.undone = why_not_decomposed(model)
        self.kept: dict[Node, Match] = {}

    def matches(self) -> list[Match]:
        """What to annotate, in the order of the graph."""
        kept, left = select_gaining(self._candidates())
        self.reasons.update(left)
        heads = [match for node, match in kept.items() if match.head is node]
        refined = [self.refine(match, kept) for match in heads]
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
            self.reasons[node] = reasons.ANNOTATED_BEFORE
            return None
        if choice.config is None:
            self.reasons[node] = choice.reason or reasons.NOT_COVERED
            return None
        for rule in self.rules[choice.config.mode].get(known_as(node.target), ()):
            if rule.where is not None and not rule.where(node):
                continue
            match = self._matched(rule, node, choice)
            reason = _why_not(match)
            if reason is None:
                return match
            self.reasons.setdefault(node, reason)
        reason = self.undone.get(node.name) or self.table.why_float(node, choice.config)
        self.reasons.setdefault(node, reason)
        return None

    def _matched(self, rule: Rule, node: Node, choice: Choice[QuantizationConfig]) -> Match:
        nodes = follow_chain(node, rule.tails, self._may_fuse)
        if rule.kernel is not None and choice.config is not None:
            choice = replace(choice, config=self.context.fits.fitted(rule.kernel, choice.config))
        return Match(rule=rule, nodes=nodes, choice=choice, context=self.context)

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
        row = partial(Row, node=node.name, module=module_path(node), operator=str(node.target))
        if match is not None:
            return row(words=describe(match, node), rule=match.rule.name)
        reason = self.reasons.get(node, reasons.NOT_COVERED)
        return row(reason=reason.filled(runtime=self.table.runtime))


def _by_head(rules: Iterable[Rule]) -> dict[Target, list[Rule]]:
    found: dict[Target, list[Rule]] = {}
    for rule in rules:
        for target in rule.heads:
            found.setdefault(target, []).append(rule)
    return found


def _why_not(match: Match) -> Reason | None:
    found = (check(match) for check in (*match.rule.checks, kernel_takes, varies))
    return next(filter(None, found), None)


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
