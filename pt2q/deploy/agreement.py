"""Whether a file computes what the model does that it was made from, but for roundings.

A runtime adds in another order, and a value near the middle between two steps falls the other way.
How much noise that can make is measured, not assumed: it is at most what rounding itself makes, the
difference between the converted model and the same model with its activations left unrounded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from pt2q.errors import DisagreementError, MissingDependencyError, NotCheckedWarning
from pt2q.ir import ops
from pt2q.ir.control_flow import graph_modules
from pt2q.ir.graph import is_constant
from pt2q.ir.model_state import keep_state
from pt2q.ir.module import QuantGraphModule, copy_module
from pt2q.ir.qparams import quantized_nodes, read_qparams
from pt2q.ir.torch_private import codegen_of, pytree, reorder_kwargs
from pt2q.library_output import first_line

AGREES = 25.0
"""Decibels between a converted model and its file beyond which they agree, whatever else."""
MARGIN = 6.0
"""How much less, in decibels, they may agree than the converted model and float do: roundings that
fall the other way make up as much noise as quantizing itself does, and no more."""
STEPS = 2
"""So many steps of a quantized output are a rounding that fell the other way, too."""


@dataclass(frozen=True)
class Call:
    """One call of a model, to compare its file on.

    Args:
        args, kwargs: the inputs.
        spec: how an exported program nests them; None takes them as they are.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    spec: Any = None

    @classmethod
    def of(
        cls, model: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Call:
        """A call of a model.

        Args:
            model: a program, or what was made from one.
            args, kwargs: the inputs.
        """
        if isinstance(model, ExportedProgram):
            return cls(tuple(args), kwargs, model.call_spec.in_spec)
        info = (
            getattr(codegen_of(model.graph), "pytree_info", None)
            if isinstance(model, GraphModule)
            else None
        )
        return cls(tuple(args), kwargs, None if info is None else info.in_spec)

    def own(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs in tensors of their own, which a model may write into."""
        args, kwargs = pytree.tree_map(_own, (tuple(self.args), dict(self.kwargs)))
        return args, kwargs

    def leaves(self) -> list[Any]:
        """The inputs, flat, in the order of the exported program."""
        args, kwargs = self.own()
        ordered = kwargs if self.spec is None else reorder_kwargs(kwargs, self.spec)
        found: list[Any] = pytree.tree_leaves((args, ordered))
        return found

    def tensors(self) -> list[Tensor]:
        """Those of `leaves` that are tensors."""
        return [leaf for leaf in self.leaves() if isinstance(leaf, Tensor)]


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def check_agreement(
    model: nn.Module | ExportedProgram,
    call: Call,
    run: Callable[[Call], Sequence[Any]],
    runtime: str,
) -> None:
    """Compare what a file computes with what its model does, on one call.

    A model without quantized operators is not compared. Where the runtime is not installed nothing
    is; where the model itself fails on the inputs there is a `NotCheckedWarning`.

    Args:
        model: what the file was made from; its state stays as it is.
        call: the inputs.
        run: loads the file, runs it, and gives its results, flat.
        runtime: what runs it, for messages.

    Raises:
        DisagreementError: they differ by more than roundings do.
    """
    module = model.module(check_guards=False) if isinstance(model, ExportedProgram) else model
    if not isinstance(module, GraphModule) or not quantized_nodes(module):
        return
    wanted = _results(module, call)
    if wanted is None:
        return
    try:
        found = [value for value in run(call) if isinstance(value, Tensor)]
    except MissingDependencyError:
        return
    if len(found) != len(wanted):
        raise DisagreementError(f"{runtime} gives {len(found)} results, the model {len(wanted)}")
    wrong = [i for i, pair in enumerate(zip(wanted, found, strict=True)) if not _near(*pair)]
    if wrong:
        _judge(module, call, wanted, found, wrong, runtime)


def _results(module: GraphModule, call: Call) -> list[Tensor] | None:
    """What a model gives, flat; None where it fails."""
    args, kwargs = call.own()
    try:
        with torch.no_grad():
            results = with_own_state(module)(*args, **kwargs)
    except Exception as error:
        warnings.warn(
            "the file is not compared with its model, which fails on the example inputs: "
            f"{first_line(error)}. Give inputs that it takes",
            NotCheckedWarning,
            stacklevel=5,
        )
        return None
    return [value for value in pytree.tree_leaves(results) if isinstance(value, Tensor)]


def with_own_state(module: GraphModule) -> QuantGraphModule:
    """A copy that writes into buffers of its own, and shares all others.

    Args:
        module: exported or converted.
    """
    copied = copy_module(module)
    keep_state(copied)
    return copied


def _near(wanted: Tensor, found: Tensor) -> bool:
    return _error(wanted, found) <= _energy(wanted) * 10 ** (-AGREES / 10)


def _judge(
    module: GraphModule,
    call: Call,
    wanted: Sequence[Tensor],
    found: Sequence[Tensor],
    wrong: Iterable[int],
    runtime: str,
) -> None:
    """Look at outputs that differ much: rounding itself may make as much of a difference."""
    unrounded = _results(_unrounded(module), call)
    steps = _steps(module)
    for place in wrong:
        exact, value = wanted[place], found[place]
        error = _error(exact, value)
        noise = _error(exact, unrounded[place]) if unrounded is not None else 0.0
        least = exact.numel() * (STEPS * steps[place]) ** 2 if place < len(steps) else 0.0
        if error > max(noise * 10 ** (MARGIN / 10), least):
            between = f"{_decibels(exact, error)} where rounding makes {_decibels(exact, noise)}"
            raise DisagreementError(
                f"{runtime} computes something else than the converted model, "
                f"{_where(place, wanted)}{between}. Nothing is written. Leave what it gets wrong "
                "in float; check=False writes it all the same"
            )


def _where(place: int, outputs: Sequence[Tensor]) -> str:
    return f"in output {place}: " if len(outputs) > 1 else ""


def _decibels(signal: Tensor, noise: float) -> str:
    if noise == 0:
        return "no difference"
    energy = _energy(signal)
    if energy == 0 or noise == float("inf"):
        return "-inf dB"
    return f"{10 * torch.log10(torch.tensor(energy / noise, dtype=torch.float64)):.1f} dB"


def _energy(value: Tensor) -> float:
    return float(torch.nan_to_num(value.double(), 0, 0, 0).square().sum())


def _error(wanted: Tensor, found: Tensor) -> float:
    """The sum of squared differences where the model is finite; infinite for another shape."""
    if wanted.shape != found.shape:
        return float("inf")
    exact, value = wanted.double(), found.double()
    finite = exact.isfinite()
    return float(torch.nan_to_num((exact - value)[finite], nan=torch.inf).square().sum())


def _unrounded(module: GraphModule) -> QuantGraphModule:
    """A copy whose activations are not rounded; weights are as they are stored."""
    copied = copy_module(module)
    for inner in graph_modules(copied):
        for node in inner.graph.nodes:
            source = _rounded(node)
            if source is not None:
                node.replace_all_uses_with(source)
        inner.recompile()
    return copied


def _rounded(node: Node) -> Node | None:
    """What a dequantize stands for; None for that of a constant, and for other nodes."""
    if not ops.is_op(node, ops.DEQUANTIZE):
        return None
    quantize = node.args[0]
    if not isinstance(quantize, Node) or not ops.is_op(quantize, ops.QUANTIZE):
        return None
    source = quantize.args[0]
    return source if isinstance(source, Node) and not is_constant(source) else None


def _steps(module: GraphModule) -> list[float]:
    """The step of each output that is a tensor; 0 for one that is not quantized with one scale."""
    leaves = pytree.tree_leaves(module.graph.output_node().args[0])
    return [_step(leaf) for leaf in leaves if isinstance(leaf, Node)]


def _step(node: Node) -> float:
    if not ops.is_op(node, ops.DEQUANTIZE):
        return 0.0
    scale = read_qparams(node).scale
    return float(scale) if isinstance(scale, int | float) else 0.0
