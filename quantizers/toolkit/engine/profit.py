"""Which of the matched operators gain from int8, given their neighbours.

An operator that does not always gain is quantized if it lies on a path of quantized operators that
starts where a value is quantized anyway and ends where one is read quantized. The largest such
set is found by taking out what fails, and looking again at the neighbours of what was taken out;
every match is taken out at most once, so the work is linear in the edges.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from torch.fx import Node

from pt2q.quantizers.toolkit.reading.tensor_roles import roles_of
from pt2q.quantizers.toolkit.reasons import NO_QUANTIZED_READER, NO_QUANTIZED_SOURCE, Reason
from pt2q.quantizers.toolkit.table.annotate import output_is_quantized
from pt2q.quantizers.toolkit.table.rule import Match, When


def select_gaining(matches: Iterable[Match]) -> tuple[dict[Node, Match], dict[Node, Reason]]:
    """Split matches into those to annotate and those that stay in float.

    Args:
        matches: at most one per node.

    Returns:
        The matches kept, by each of their nodes; and a reason per node of those left out.
    """
    kept = {node: match for match in matches for node in match.nodes}
    left: dict[Node, Reason] = {}
    waiting = deque(_unique(kept.values()))
    while waiting:
        match = waiting.popleft()
        if kept.get(match.head) is not match:
            continue
        reason = _reason_to_leave(match, kept)
        if reason is None:
            continue
        for node in match.nodes:
            left[node] = reason
            del kept[node]
        waiting.extend(_neighbours(match, kept))
    return kept, left


def _unique(matches: Iterable[Match]) -> list[Match]:
    return list({match.head: match for match in matches}.values())


def _reason_to_leave(match: Match, kept: dict[Node, Match]) -> Reason | None:
    when = match.rule.when
    if when is When.ALWAYS or (when is When.BETWEEN_QUANTIZED and match.choice.by_operator):
        return None
    if not _has_source(match, kept):
        return NO_QUANTIZED_SOURCE
    return None if _has_reader(match, kept) else NO_QUANTIZED_READER


def _has_source(match: Match, kept: dict[Node, Match]) -> bool:
    activations = match.roles.activations
    if match.rule.when is When.INPUT_QUANTIZED:
        return bool(activations) and _comes_quantized(activations[0], kept)
    # A graph's input is neither quantized nor computed: it does not speak against int8.
    return any(a.op == "placeholder" or _comes_quantized(a, kept) for a in activations)


def _comes_quantized(node: Node, kept: dict[Node, Match]) -> bool:
    match = kept.get(node)
    if match is None:
        return output_is_quantized(node)
    if match.rule.when is When.ALWAYS:
        return match.last is node and match.config.output_activation is not None
    return match.last is node


def _has_reader(match: Match, kept: dict[Node, Match]) -> bool:
    return any(_reads_quantized(user, match, kept) for user in match.last.users)


def _reads_quantized(user: Node, match: Match, kept: dict[Node, Match]) -> bool:
    if user.op == "output":
        return match.rule.output_counts
    reader = kept.get(user)
    return reader is not None and match.last in roles_of(user).activations


def _neighbours(match: Match, kept: dict[Node, Match]) -> list[Match]:
    around = [*match.head.all_input_nodes, *match.last.users]
    return [kept[node] for node in around if node in kept]
