"""What can be done about a loss, as data, and how it is done to a quantizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.algorithms import ALGORITHMS, Improvement, improve
from pt2q.algorithms.effort import algorithms_for
from pt2q.flow import prepare_pt2e
from pt2q.ir.control_flow import named_graph_modules
from pt2q.ir.module import QuantGraphModule
from pt2q.ir.module.batch_call import as_call
from pt2q.quantizers import QuantizationConfig, Report, TableQuantizer
from pt2q.quantizers.toolkit.other_observers import observed_by
from pt2q.quantizers.toolkit.scales_of_weights import divided
from pt2q.quantizers.toolkit.selection.resolution import resolve
from pt2q.spec import PerAxis, QuantizationSpec

FLOAT, OBSERVER, CHANNEL, DEFAULT = "float", "observer", "channel", "default"
ALGORITHM, CALIBRATION, FORM = "algorithm", "calibration", "form"
WEIGHT_RANGES = {"int8": None, "int4": (-8, 7), "int16": None}
"""The integers of weights by form; None takes those of the backend."""
NO_IMPROVEMENT = Improvement()


@dataclass(frozen=True)
class Change:
    """One thing that is done in another way.

    Args:
        kind: ``"float"``, ``"observer"`` of activations, ``"channel"`` for a scale per channel of
            weights, ``"default"`` for the backend's own configuration, ``"algorithm"`` for one of
            `pt2q.algorithms`, ``"calibration"`` with other data, ``"form"`` with other bits.
        nodes: the operators that it is done to; of an algorithm and of data, all.
        value: which observer or algorithm.
    """

    kind: str
    nodes: tuple[str, ...] = ()
    value: str = ""

    def __str__(self) -> str:
        which = ", ".join(self.nodes[:3]) + (", ..." if len(self.nodes) > 3 else "")
        return {
            FLOAT: f"leave {which} in float",
            OBSERVER: f"observe {which} with {self.value}",
            CHANNEL: f"a scale per channel for {which}",
            DEFAULT: f"the backend's default configuration for {which}",
            ALGORITHM: f"apply {self.value}",
            CALIBRATION: "calibrate on data like the held-out",
            FORM: f"{self.value} for {which}",
        }[self.kind]


class Setup(Protocol):
    """How a model is quantized, and again with changes."""

    def prepared(self, changes: Sequence[Change] = ()) -> tuple[QuantGraphModule, Report]:
        """Prepared and calibrated, with what the quantizer decided."""
        ...


@dataclass(frozen=True)
class QuantizerSetup:
    """A float model, what makes its quantizer, and data.

    Args:
        model: the float model.
        quantizer: makes the quantizer anew, with all that is said to it.
        calibration: what observers see.
        other: data to calibrate on in its place.
        improvement: what wins accuracy back in any case, before what a change adds.
        prepare: `prepare_pt2e`, or `prepare_qat_pt2e` to look at a model before it is trained.
    """

    model: ExportedProgram | GraphModule
    quantizer: Callable[[], TableQuantizer]
    calibration: Sequence[Any]
    other: Sequence[Any] = ()
    prepare: Callable[[Any, Any], QuantGraphModule] = prepare_pt2e
    improvement: Improvement = NO_IMPROVEMENT

    def prepared(self, changes: Sequence[Change] = ()) -> tuple[QuantGraphModule, Report]:
        """See `Setup`."""
        quantizer = changed(self.quantizer(), self.model, changes)
        model = self.prepare(self.model, quantizer)
        kinds = {change.kind for change in changes}
        data = self.other if CALIBRATION in kinds else self.calibration
        with torch.no_grad():
            for batch in data:
                args, kwargs = as_call(model, batch)
                model(*args, **kwargs)
        added = [ALGORITHMS[c.value]() for c in changes if c.kind == ALGORITHM]
        model = improved(model, data, self.improvement, added)
        return model, quantizer.report()


def improved(
    model: QuantGraphModule, data: Sequence[Any], how: Improvement, added: Sequence[Any] = ()
) -> QuantGraphModule:
    """A prepared and calibrated model after what wins accuracy back.

    Args:
        model: it is not changed.
        data: the batches of calibration.
        how: as a recipe says it.
        added: further algorithms.
    """
    chosen = how.algorithms if how.effort is None else algorithms_for(model, how.effort)
    return improve(model, data, [*chosen, *added], seed=how.seed)[0]


def changed(
    quantizer: TableQuantizer, model: ExportedProgram | GraphModule, changes: Iterable[Change]
) -> TableQuantizer:
    """A quantizer that does some operators in another way.

    Args:
        quantizer: gets the statements.
        model: the float model, whose nodes are named.
        changes: what is done, the later over the earlier.
    """
    asked = [change for change in changes if change.nodes]
    configs = configurations(quantizer, model) if asked else {}
    for change in asked:
        for node in change.nodes:
            configs[node] = _config(configs.get(node), change, quantizer)
            quantizer.set_node_name(node, configs[node])
    return quantizer


def configurations(
    quantizer: TableQuantizer, model: ExportedProgram | GraphModule
) -> dict[str, QuantizationConfig | None]:
    """What a quantizer was told about each operator, by the name of its node.

    Args:
        quantizer: with its statements.
        model: the float model; a copy is prepared, as names are those of the prepared one.
    """
    prepared = prepare_pt2e(model, quantizer)
    graphs = {path: module.graph for path, module in named_graph_modules(prepared)}
    paths = {id(graph): path for path, graph in graphs.items()}
    found = resolve(quantizer.selection, graphs)
    return {paths[id(node.graph)] + node.name: choice.config for node, choice in found.items()}


def _config(
    config: QuantizationConfig | None, change: Change, quantizer: TableQuantizer
) -> QuantizationConfig | None:
    if change.kind == FLOAT or config is None:
        return None
    if change.kind == DEFAULT:
        return quantizer.table.configure(config.mode)
    if change.kind == CHANNEL:
        weight = None if config.weight is None else divided(config.weight, PerAxis(0))
        return replace(config, weight=weight)
    if change.kind == FORM:
        return _formed(config, change.value)
    return replace(
        config,
        input_activation=_observed(config.input_activation, change.value),
        output_activation=_observed(config.output_activation, change.value),
    )


def _formed(config: QuantizationConfig, form: str) -> QuantizationConfig:
    """The same configuration with weights, or for 16 bits activations, of another form."""
    if form == "int16":
        given = config.input_activation, config.output_activation
        wide = [None if s is None else replace(s, **_INT16) for s in given]
        return replace(config, input_activation=wide[0], output_activation=wide[1])
    limits = WEIGHT_RANGES[form]
    if limits is None or config.weight is None:
        return config
    low, high = limits
    return replace(config, weight=replace(config.weight, quant_min=low, quant_max=high))


_INT16: dict[str, Any] = {
    "dtype": torch.int16,
    "quant_min": -32767,
    "quant_max": 32767,
    "qscheme": torch.per_tensor_symmetric,
}


def _observed(spec: QuantizationSpec | None, name: str) -> QuantizationSpec | None:
    return None if spec is None else observed_by(spec, name)
