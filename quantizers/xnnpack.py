"""`XNNPACKQuantizer`: what XNNPACK, as ExecuTorch delegates to it, runs in int8.

Each row below was checked by lowering the quantized pattern and running it. Two facts shape the
table. A convolution or linear layer whose quantized pattern is not delegated cannot be lowered
at all, so their checks are strict. An operator without an int8 kernel gains nothing from a
quantize and a dequantize around it, so it stays in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch.fx import GraphModule, Node

from pt2q.errors import AnnotationError
from pt2q.ir.graph import is_constant, value_of
from pt2q.ir.ops import (
    ADAPTIVE_AVG_POOL2D,
    ADD,
    ADDMM,
    BATCH_NORM,
    BMM,
    CAT,
    CLAMP,
    CONV1D,
    CONV2D,
    CONV3D,
    CONV_TRANSPOSE1D,
    CONV_TRANSPOSE2D,
    CONV_TRANSPOSE3D,
    COPY,
    DROPOUT,
    GETITEM,
    HARDTANH,
    LINEAR,
    MATMUL,
    MAX_POOL2D,
    MEAN,
    MM,
    MUL,
    PERMUTE,
    RELU,
    RELU6,
    REPEAT,
    RESHAPE,
    SDPA,
    SHAPE,
    SPLIT,
    SUB,
    SUBSET,
    UPSAMPLE_NEAREST,
    Target,
    argument,
    is_op,
)
from pt2q.quantizers.toolkit import checks
from pt2q.quantizers.toolkit.annotate import (
    annotate_carried,
    annotate_independent,
    annotate_joined,
    annotate_weighted,
    annotate_with,
)
from pt2q.quantizers.toolkit.config import (
    QuantizationConfig,
    dynamic_form,
    get_symmetric_quantization_config,
    per_channel_at,
    per_tensor,
)
from pt2q.quantizers.toolkit.decompositions import Decompositions
from pt2q.quantizers.toolkit.engine import TableQuantizer
from pt2q.quantizers.toolkit.roles import float_activations, roles_of
from pt2q.quantizers.toolkit.rules import Check, Kind, Match, Rule
from pt2q.quantizers.toolkit.shared_biases import untie_biases
from pt2q.spec import QuantizationSpec

MAX_DIMENSIONS = 6
FUSED = RELU | RELU6 | HARDTANH


# ------------------------------------------------------------------ checks


def _rank(node: Node) -> int:
    return int(value_of(node).dim())


def _few_dimensions(match: Match) -> str | None:
    for node in (*float_activations(match.head), match.head):
        value = value_of(node)
        if hasattr(value, "dim") and value.dim() > MAX_DIMENSIONS:
            return f"a tensor has {value.dim()} dimensions, more than {MAX_DIMENSIONS}"
    return None


def _per_channel_weight(match: Match) -> str | None:
    if match.config.is_per_channel:
        return None
    return "dynamic quantization needs a weight scale per channel"


def _matrix_operand(match: Match) -> str | None:
    source = float_activations(match.head)
    if len(source) != 1 or _rank(source[0]) != 2:
        return "both factors are computed, or are not matrices: the runtime multiplies in float"
    return None


def _unscaled(match: Match) -> str | None:
    """The delegate drops the factors of ``addmm``."""
    if argument(match.head, "alpha") == 1 and argument(match.head, "beta") == 1:
        return None
    return "it scales its product or its bias (alpha, beta)"


def _mean_over_image(match: Match) -> str | None:
    node = match.head
    source = float_activations(node)[0]
    dims = argument(node, "dim") if _has_dim(node) else None
    if _rank(source) != 4 or dims is None or sorted(d % 4 for d in dims) != [2, 3]:
        return "the int8 kernel averages the last two of four dimensions"
    if not argument(node, "keepdim"):
        return "the int8 kernel keeps the averaged dimensions (keepdim=True)"
    return None if argument(node, "dtype") is None else "it changes the dtype"


def _has_dim(node: Node) -> bool:
    return any(a.name == "dim" for a in node.target._schema.arguments)  # type: ignore[union-attr]


def _pools_to_one(match: Match) -> str | None:
    source = float_activations(match.head)[0]
    if _rank(source) != 4 or list(argument(match.head, "output_size")) != [1, 1]:
        return "the int8 kernel pools a batch of images to size 1"
    return None


def _pool_window(match: Match) -> str | None:
    node = match.head
    kernel = _pair(argument(node, "kernel_size"))
    stride = _pair(argument(node, "stride") or kernel)
    if _rank(float_activations(node)[0]) != 4:
        return "its input has no batch dimension"
    if stride[0] > kernel[0] or stride[1] > kernel[1]:
        return "its stride is larger than its window"
    return None


def _pair(value: Sequence[int] | int) -> tuple[int, int]:
    items = [value] if isinstance(value, int) else value
    return items[0], items[-1]


def _several(match: Match) -> str | None:
    if len(float_activations(match.head)) < 2:
        return "it joins fewer than two different tensors"
    return None


def _literal_bounds(match: Match) -> str | None:
    if len(roles_of(match.head).activations) > 1:
        return "its bounds are tensors"
    return None


# ------------------------------------------------------------------ annotations that adapt


def _annotate_transposed(match: Match) -> None:
    """Weights are [in, out / groups, ...]; with groups the runtime takes one scale only."""
    config = match.config
    grouped = argument(match.head, "groups") > 1
    weight = per_tensor(config.weight, config.is_qat) if grouped else None
    _annotate_with_weight(match, weight or per_channel_at(config.weight, 1))


def _annotate_addmm(match: Match) -> None:
    _annotate_with_weight(match, per_channel_at(match.config.weight, 1))


def _annotate_mm(match: Match) -> None:
    """Without a bias the lowering of a product cannot find scales per channel."""
    _annotate_with_weight(match, per_tensor(match.config.weight, match.config.is_qat))


def _annotate_with_weight(match: Match, weight: QuantizationSpec | None) -> None:
    annotate_with(match, replace(match.config, weight=weight))


# ------------------------------------------------------------------ the table

_WEIGHTED = (checks.constant_weight, checks.float32_only, checks.writes_nothing_shared)
_BINARY = (
    checks.two_tensors,
    checks.float32_only,
    checks.no_alpha,
    checks.no_mask,
    checks.writes_nothing_shared,
    _few_dimensions,
)
_CARRIED = (checks.float_inputs, checks.writes_nothing_shared, _few_dimensions)


def _convolutions(tails: tuple[frozenset[Target], ...]) -> tuple[Rule, ...]:
    return (
        Rule(
            "convolution",
            CONV1D | CONV2D,
            annotate_weighted,
            tails,
            (*_WEIGHTED, checks.batched),
        ),
        Rule(
            "transposed convolution",
            CONV_TRANSPOSE1D | CONV_TRANSPOSE2D,
            _annotate_transposed,
            tails,
            (*_WEIGHTED, checks.batched),
        ),
    )


def _carrying(name: str, heads: frozenset[Target], *more: Check) -> Rule:
    """An operator with a kernel of its own in the runtime's int8."""
    return Rule(
        name,
        heads,
        annotate_carried,
        checks=(*_CARRIED, *more),
        kind=Kind.CARRYING,
    )


def _passing(name: str, heads: frozenset[Target], *more: Check) -> Rule:
    """An operator that the runtime runs in float; int8 before and after it loses nothing."""
    return Rule(
        name,
        heads,
        annotate_carried,
        checks=(*_CARRIED, *more),
        kind=Kind.CARRYING,
        ends_at_output=False,
    )


_STATIC_COMMON = (
    Rule("linear", LINEAR, annotate_weighted, (FUSED,), _WEIGHTED),
    # An activation fused with a bare matrix product makes the runtime reject the model.
    Rule("addmm", ADDMM, _annotate_addmm, (), (_unscaled, *_WEIGHTED)),
    Rule("matrix product", MM | MATMUL, _annotate_mm, (), (_matrix_operand, *_WEIGHTED)),
    Rule("addition", ADD, annotate_independent, (RELU,), _BINARY, Kind.JOINING),
    Rule("subtraction", SUB, annotate_independent, (), _BINARY, Kind.JOINING),
    Rule("multiplication", MUL, annotate_independent, (), _BINARY, Kind.JOINING),
    Rule(
        "concatenation",
        CAT,
        annotate_joined,
        (),
        (_several, checks.float32_only, _few_dimensions),
        Kind.JOINING,
    ),
    Rule(
        "mean",
        MEAN,
        annotate_independent,
        (),
        (checks.float32_only, _mean_over_image),
        Kind.JOINING,
    ),
    Rule(
        "global average pool",
        ADAPTIVE_AVG_POOL2D,
        annotate_independent,
        (),
        (checks.float32_only, _pools_to_one),
        Kind.JOINING,
    ),
    _carrying("max pool", MAX_POOL2D, _pool_window),
    _carrying("bound", RELU | RELU6 | HARDTANH | CLAMP, _literal_bounds),
    _carrying("reshape", RESHAPE),
    _carrying("permute", PERMUTE),
    _passing("part", SUBSET),
    _passing("split", SPLIT | frozenset({GETITEM})),
    _passing("repeat", REPEAT | UPSAMPLE_NEAREST),
    _passing("copy", COPY),
    _passing("dropout", DROPOUT, checks.inactive),
)

STATIC_RULES = (*_convolutions((FUSED,)), *_STATIC_COMMON)
QAT_RULES = (
    *_convolutions((BATCH_NORM, FUSED)),
    Rule("linear", LINEAR, annotate_weighted, (BATCH_NORM, FUSED), _WEIGHTED),
    *(rule for rule in _STATIC_COMMON if rule.name != "linear"),
)
DYNAMIC_RULES = (
    Rule("linear", LINEAR, annotate_weighted, (), (*_WEIGHTED, _per_channel_weight)),
    Rule("addmm", ADDMM, _annotate_addmm, (), (_unscaled, *_WEIGHTED, _per_channel_weight)),
)

# ------------------------------------------------------------------ residual projections

_RESIDUAL_PROJECTION = DYNAMIC_RULES[0]


def _is_static_linear(match: Match) -> bool:
    config = match.config
    static = config.output_activation is not None and config.input_activation is not None
    return static and not config.is_qat and len(match.nodes) == 1 and is_op(match.head, LINEAR)


def _feeds_float_residual(match: Match, kept: dict[Node, Match]) -> bool:
    """Whether nobody reads the result quantized, and an addition in float reads it."""
    found = False
    waiting = [match.last]
    while waiting:
        for user in waiting.pop().users:
            if user in kept:
                return False
            if is_op(user, SHAPE | DROPOUT):
                waiting.append(user)
            found = found or _is_residual_addition(user, match)
    return found


def _is_residual_addition(node: Node, match: Match) -> bool:
    sources = float_activations(node)
    if not is_op(node, ADD) or len(sources) != 2 or any(is_constant(s) for s in sources):
        return False
    return not any(match.context.masks.is_mask(source) for source in sources)


# ------------------------------------------------------------------ why the rest stays in float

_DYNAMIC_ONLY = "dynamic quantization covers linear layers only"
_NO_KERNEL = "the runtime has no int8 kernel for it"
_REASONS: tuple[tuple[frozenset[Target], str], ...] = (
    (BMM | MATMUL | SDPA, "the runtime multiplies two activations in float"),
    (CONV3D | CONV_TRANSPOSE3D, "the runtime has no 3d convolution"),
    (BATCH_NORM, "a batch norm that is not folded into a convolution runs in float"),
)


class XNNPACKQuantizer(TableQuantizer):
    """Quantizes for ExecuTorch's XNNPACK backend.

    ``XNNPACKQuantizer()`` is ready to use: static int8 activations, int8 weights with a scale per
    channel, in the whole model. Any ``set_`` method given a configuration replaces that; with
    None it makes an exception to it. The order of precedence is module name, module type,
    operator type, global::

        quantizer = XNNPACKQuantizer().set_module_name("head", None)
        prepared = prepare_pt2e(exported.module(), quantizer)
        print(quantizer.report())

    Args:
        default: taken in place of that configuration.
        residual_projections: what happens, under a static configuration, to a linear layer whose
            result is added to a residual stream that is read in float only, as the last layer of
            an attention or feed-forward block is. The runtime's static kernel gives int8 results,
            and one scale for that stream, with its few huge values, spoils all others; its
            dynamic kernel takes the same int8 weights and gives float results. "dynamic" takes
            it; "static" does not.
    """

    # The runtime multiplies two activations in float, and has no recurrent operator.
    decompositions = Decompositions(recurrent=True)

    def __init__(
        self,
        default: QuantizationConfig | None = None,
        *,
        residual_projections: Literal["dynamic", "static"] = "dynamic",
    ) -> None:
        super().__init__(default or get_symmetric_quantization_config(is_per_channel=True))
        self.residual_projections = residual_projections

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Take operators apart, and give calls that share a bias copies of it.

        The runtime stores a bias in one scale. In training it stays one tensor.
        """
        model = super().transform_for_annotation(model)
        if not any(config.is_qat for config in self.selection.configs()):
            untie_biases(model)
        return model

    def refine(self, match: Match, kept: dict[Node, Match]) -> Match:
        """Quantize at run time what a static output would spoil; see `residual_projections`."""
        if self.residual_projections == "static" or not _is_static_linear(match):
            return match
        if not _feeds_float_residual(match, kept):
            return match
        choice = replace(match.choice, config=dynamic_form(match.config))
        return replace(match, rule=_RESIDUAL_PROJECTION, choice=choice)

    def rules(self, config: QuantizationConfig) -> tuple[Rule, ...]:
        """The table for static, dynamic or quantization-aware configurations."""
        if config.is_dynamic:
            return DYNAMIC_RULES
        return QAT_RULES if config.is_qat else STATIC_RULES

    def why_float(self, node: Node, config: QuantizationConfig) -> str:
        """The backend's reason for an operator that no rule names."""
        if config.is_dynamic:
            return _DYNAMIC_ONLY
        for ops, reason in _REASONS:
            if is_op(node, ops):
                return reason
        return _NO_KERNEL

    def validate(self, model: GraphModule) -> None:
        """Check every configuration against what the backend can run.

        Raises:
            AnnotationError: a configuration asks for something no kernel takes.
        """
        for config in self.selection.configs():
            _validate_config(config)


def _validate_config(config: QuantizationConfig) -> None:
    for role in ("input_activation", "output_activation", "weight"):
        spec = getattr(config, role)
        if spec is not None and spec.dtype is not torch.int8:
            raise AnnotationError(
                f"XNNPACK runs int8 only, but {role} asks for {spec.dtype}; "
                "use get_symmetric_quantization_config()"
            )
    if config.is_dynamic and config.output_activation is not None:
        raise AnnotationError(
            "XNNPACK gives float results from dynamically quantized inputs, but the configuration "
            "has an output_activation; set it to None"
        )
    if config.is_dynamic and config.weight is not None and not config.is_per_channel:
        raise AnnotationError(
            "XNNPACK needs a weight scale per channel for dynamic quantization; use "
            "get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)"
        )
