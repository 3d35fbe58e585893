"""Tables for documentation: a backend's rows, and the reasons why operators stay in float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from pt2q.ir.ops import Target
from pt2q.ir.torch_private import OpOverload
from pt2q.quantizers.toolkit.config import Mode
from pt2q.quantizers.toolkit.reasons import Reason
from pt2q.quantizers.toolkit.table.backend_table import BackendTable
from pt2q.quantizers.toolkit.table.kernel_limits import KernelLimits, TensorLimits
from pt2q.quantizers.toolkit.table.rule import Rule


def rule_table(table: BackendTable) -> str:
    """What a backend runs quantized, a line per row of its table.

    Args:
        table: the backend's.
    """
    header = ("row", "operators", "fused with", "mode", "quantized", "kernel")
    return markdown_table(header, map(_rule_cells, table.rules))


def limits_table(table: BackendTable) -> str:
    """What a backend's kernels take, a line for all rows that take the same.

    Args:
        table: the backend's.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for rule in table.rules:
        if rule.kernel is not None:
            rows.setdefault(_limits_cells(rule.kernel), []).append(rule.name)
    header = ("rows", "activations", "weights", "results")
    return markdown_table(header, [(", ".join(names), *cells) for cells, names in rows.items()])


def reason_table(reasons: Mapping[str, Reason]) -> str:
    """Every reason with what can be done about it.

    Args:
        reasons: by code.
    """
    rows = [(f"`{code}`", reason.text, reason.advice) for code, reason in reasons.items()]
    return markdown_table(("code", "reason", "what to do"), rows)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, one line per row.

    Args:
        header: the names of the columns.
        rows: their cells.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _rule_cells(rule: Rule) -> tuple[str, ...]:
    kernels = () if rule.kernel is None else rule.kernel.names
    return (
        rule.name,
        _names(rule.heads),
        "; ".join(map(_names, rule.tails)),
        ", ".join(mode.value for mode in Mode if mode in rule.modes),
        rule.when.value,
        ", ".join(f"`{name}`" for name in kernels) or "in float",
    )


def _limits_cells(kernel: KernelLimits) -> tuple[str, str, str]:
    weight = "" if kernel.weight is None else _tensor(kernel.weight)
    result = "float" if kernel.result is None else _tensor(kernel.result)
    return _tensor(kernel.activation), weight, result


def _tensor(limits: TensorLimits) -> str:
    if not limits.stored:
        return "float"
    floor = f", no scale below {_power(limits.min_scale)}" if limits.min_scale else ""
    return f"{limits}{floor}"


def _power(scale: float) -> str:
    exponent = math.log2(scale)
    return f"2^{exponent:.0f}" if exponent.is_integer() else f"{scale:g}"


def _names(targets: Iterable[Target]) -> str:
    """The operators without their overloads, in-place and private forms."""
    names = {_name(target) for target in targets}
    return ", ".join(sorted(name for name in names if not name.startswith("_")))


def _name(target: Target) -> str:
    if isinstance(target, OpOverload):
        return str(target).split(".")[1].rstrip("_")
    return str(target.__name__).rpartition(".")[2].rstrip("_")
