"""For every pass a small model that it has something to do in: what its golden text is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pt2q import QuantGraphModule, convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from pt2q import passes as p
from pt2q.flow import annotate, conversion_passes
from pt2q.ir.modes import switch_mode
from pt2q.ir.module import copy_module, import_exported
from pt2q.ir.record import Stage
from pt2q.observers import LearnableFakeQuantize, PerChannelMinMaxObserver
from pt2q.passes import Pass, run_passes
from pt2q.quantizers import StateQuantizer
from pt2q.spec import QuantizationSpec, Quantizer
from pt2q.spec.plan import build_plan
from support.golden import exact, exact_input
from support.passes import Fork, annotate_all_edges, annotate_inputs
from support.qat_quantizer import QATQuantizer
from support.small_quantizers import ACTIVATION, FunctionQuantizer, SmallQuantizer, linears

Inputs: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """What a pass is given.

    Args:
        model: the float model.
        inputs: for export, and calibration if there is any.
        before: what is done to the imported model first, or makes the module from the exported
            program.
        step: the pass, for the module it is given.
        keeps: how far a value may be off after the pass; None where the pass changes the function.
    """

    model: Callable[[], nn.Module]
    inputs: Inputs
    before: Callable[[Any, Inputs], QuantGraphModule]
    step: Callable[[QuantGraphModule], Pass]
    keeps: float | None = 0.0

    def make(self) -> tuple[nn.Module, QuantGraphModule, Pass]:
        """The float model, the module that is made of it, and the pass to run on that."""
        model = exact(self.model())
        module = self.before(torch.export.export(model, self.inputs), self.inputs)
        return model, module, self.step(module)


# ------------------------------------------------------------------------------- the models


class Heads(nn.Module):
    """Einstein sums with a constant and of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.einsum("bh,hnd->bnd", x, self.weight)
        return torch.einsum("bnd,cnd->nbc", heads, heads)


class Stacked(nn.Module):
    """Matrices picked by the input, and a stack that is stored the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.empty(2, 3, 4)), nn.Parameter(torch.empty(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        picked = self.one[(x[:, 0] > 0).long()]
        return torch.bmm(torch.bmm(picked, x.unsqueeze(-1)).mT, self.two[(x[:, 0] > 0).long()])


class Linear(nn.Module):
    """A layer, and a weight that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.unused = nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class CalledTwice(nn.Module):
    """A layer whose bias serves two sums."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.linear(x))


class ConvBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 2, bias=False), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Branches(nn.Module):
    """A condition; its branches share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.linear(x), lambda x: self.linear(-x), (x,))


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, key, mask)


class Transposed(nn.Module):
    """A linear layer as decompositions write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight.t())


class Added(nn.Module):
    """A product of two activations that is added to a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.t(), x)


class Sliced(nn.Module):
    """A layer whose weight is computed from a larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.ones(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.fused[2:4] * 2.0)


class Cache(nn.Module):
    """A buffer that is written before it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("cache", torch.zeros(2, 4))

    cache: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.cache.copy_(self.linear(x))
        return self.linear(self.cache)


# ------------------------------------------------------------------------ what comes before


def imported(program: Any, inputs: Inputs) -> QuantGraphModule:
    return import_exported(program)


def opened(program: Any, inputs: Inputs) -> QuantGraphModule:
    return run_passes(import_exported(program), [p.OpenControlFlow()])


def calibrated(
    program: Any, inputs: Inputs, quantizer: Quantizer | None = None
) -> QuantGraphModule:
    ready = prepare_pt2e(program, quantizer or SmallQuantizer())
    for sign in (1, -1):  # both branches
        ready(*(sign * x for x in inputs))
    return copy_module(ready, ready.record.at_stage(Stage.CONVERTED))


def converted(program: Any, inputs: Inputs) -> QuantGraphModule:
    ready = prepare_pt2e(program, StateQuantizer(SmallQuantizer()))
    ready(*inputs)
    return convert_pt2e(ready)


def up_to(
    kind: type, quantizer: Quantizer | None = None, *, reference: bool = False
) -> Callable[[Any, Inputs], QuantGraphModule]:
    """A calibrated model converted by all that comes before a pass."""

    def convert(program: Any, inputs: Inputs) -> QuantGraphModule:
        model = calibrated(program, inputs, quantizer)
        for step in conversion_passes(fold_quantize=True, reference=reference):
            if isinstance(step, kind):
                return model
            run_passes(model, [step])
        raise AssertionError(f"{kind.__name__} is no step of convert_pt2e")

    return convert


def annotated_for_training(program: Any, inputs: Inputs) -> QuantGraphModule:
    model = import_exported(program)
    QATQuantizer().annotate(model)
    return model


def trained(program: Any, inputs: Inputs) -> QuantGraphModule:
    ready = prepare_qat_pt2e(program, QATQuantizer())
    ready(*inputs)
    result = copy_module(ready, ready.record.at_stage(Stage.CONVERTED))
    switch_mode(result, False)
    return result


def learnable(program: Any, inputs: Inputs) -> QuantGraphModule:
    observer = LearnableFakeQuantize.with_args(observer=PerChannelMinMaxObserver)
    spec = QuantizationSpec(torch.int8, observer, -127, 127, torch.per_channel_symmetric, 0)
    model = import_exported(program)
    plan = annotate(model, linears(ACTIVATION, spec))
    return run_passes(model, [p.InsertObservers(plan, None, is_qat=True)])


def observers(model: QuantGraphModule) -> Pass:
    FunctionQuantizer(annotate_all_edges).annotate(model)
    return p.InsertObservers(build_plan(model.graph))


def always(step: Pass) -> Callable[[QuantGraphModule], Pass]:
    return lambda model: step


# ------------------------------------------------------------------------------- the table

VECTOR = (exact_input(2, 4),)
IMAGE = (exact_input(1, 1, 3, 3),)
STEPS = (exact_input(2, 1, 2),)
MASK = torch.tensor([[0.0, -1.0, float("-inf")]])
HEADS = (exact_input(1, 1, 2, 4), exact_input(1, 1, 3, 4), MASK)

CASES: dict[type, Case] = {
    p.DecomposeAttention: Case(Attention, HEADS, imported, always(p.DecomposeAttention()), 1e-6),
    p.DecomposeEinsum: Case(Heads, VECTOR, imported, always(p.DecomposeEinsum()), 1e-6),
    p.ComputeInFloat32: Case(
        lambda: nn.Linear(4, 2).bfloat16(),
        tuple(each.bfloat16() for each in VECTOR),
        imported,
        always(p.ComputeInFloat32()),
        0.1,
    ),
    p.DecomposeRecurrent: Case(
        lambda: nn.RNN(2, 2), STEPS, imported, always(p.DecomposeRecurrent()), 1e-6
    ),
    p.ComposeLinear: Case(Transposed, VECTOR, imported, always(p.ComposeLinear())),
    p.SplitProducts: Case(Added, VECTOR, imported, always(p.SplitProducts())),
    p.StoreStacksByRows: Case(Stacked, VECTOR, imported, always(p.StoreStacksByRows())),
    p.OwnBiases: Case(CalledTwice, VECTOR, imported, always(p.OwnBiases())),
    p.FoldComputedWeights: Case(Sliced, VECTOR, imported, always(p.FoldComputedWeights())),
    p.OpenControlFlow: Case(Branches, VECTOR, imported, always(p.OpenControlFlow())),
    p.FoldConvBatchNorm: Case(ConvBatchNorm, IMAGE, imported, always(p.FoldConvBatchNorm()), 1e-5),
    p.FuseConvBatchNormQAT: Case(
        ConvBatchNorm, IMAGE, annotated_for_training, always(p.FuseConvBatchNormQAT()), 1e-5
    ),
    p.InsertObservers: Case(Fork, VECTOR, imported, observers),
    p.SizeLearnedScales: Case(
        lambda: nn.Linear(4, 3), VECTOR, learnable, always(p.SizeLearnedScales()), None
    ),
    p.FoldConvBatchNormQAT: Case(
        ConvBatchNorm, IMAGE, trained, always(p.FoldConvBatchNormQAT()), 1e-5
    ),
    p.ObserversToQDQ: Case(Linear, VECTOR, calibrated, always(p.ObserversToQDQ()), None),
    p.RemoveUnusedConstants: Case(
        Linear, VECTOR, up_to(p.RemoveUnusedConstants), always(p.RemoveUnusedConstants())
    ),
    p.DuplicateDQPass: Case(
        Fork,
        VECTOR,
        up_to(p.DuplicateDQPass, FunctionQuantizer(annotate_inputs)),
        always(p.DuplicateDQPass()),
    ),
    p.PortNodeMetaForQDQ: Case(
        Linear, VECTOR, up_to(p.PortNodeMetaForQDQ), always(p.PortNodeMetaForQDQ())
    ),
    p.FoldQuantizedConstants: Case(
        Linear, VECTOR, up_to(p.FoldQuantizedConstants), always(p.FoldQuantizedConstants())
    ),
    p.RewriteToReference: Case(
        Linear,
        VECTOR,
        up_to(p.RewriteToReference, reference=True),
        always(p.RewriteToReference()),
        0.1,  # a step of the output at most
    ),
    p.CloseControlFlow: Case(
        Branches, VECTOR, up_to(p.CloseControlFlow), always(p.CloseControlFlow())
    ),
    p.RemoveUnusedAttributes: Case(
        Linear, VECTOR, up_to(p.RemoveUnusedAttributes), always(p.RemoveUnusedAttributes())
    ),
    p.OwnTensors: Case(Linear, VECTOR, imported, always(p.OwnTensors())),
    p.StoreStateQuantized: Case(Cache, VECTOR, converted, always(p.StoreStateQuantized())),
}
