"""`X86InductorQuantizer`: what Inductor runs in int8 on x86, with oneDNN's kernels.

Each row was checked by compiling the quantized pattern and reading the kernels off the generated
graph. Inductor reads quantization from the inputs of operators: a convolution writes uint8 when
whoever reads its result quantizes it. So inputs are annotated, results never, and a tensor that
is read in float alone stays in float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from typing_extensions import Self

from pt2q.errors import AnnotationError
from pt2q.ir.ops import (
    ADAPTIVE_AVG_POOL,
    ADD,
    ADDMM,
    AVG_POOL,
    BATCH_NORM,
    BMM,
    CAT,
    CONV1D,
    CONV2D,
    CONV3D,
    CONV_TRANSPOSE,
    COPY,
    DROPOUT,
    GELU,
    HARDSWISH,
    HARDTANH,
    LINEAR,
    MATMUL,
    MAX_POOL2D,
    MEAN,
    MM,
    PERMUTE,
    RELU,
    RELU6,
    RESHAPE,
    SDPA,
    SILU,
    UPSAMPLE_NEAREST,
    is_op,
)
from pt2q.quantizers.toolkit import checks
from pt2q.quantizers.toolkit.annotate import annotate_chain_inputs, annotate_joined, set_annotation
from pt2q.quantizers.toolkit.config import (
    EPS,
    QuantizationConfig,
    get_symmetric_quantization_config,
)
from pt2q.quantizers.toolkit.engine import TableQuantizer
from pt2q.quantizers.toolkit.residual import residual_of, why_no_residual
from pt2q.quantizers.toolkit.roles import float_activations, roles_of
from pt2q.quantizers.toolkit.rules import Kind, Match, Rule
from pt2q.spec import QuantizationSpec, QuantizationSpecBase

CONV_FUSED = RELU | RELU6 | HARDTANH | HARDSWISH | SILU
LINEAR_FUSED = RELU | GELU


def get_default_x86_inductor_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False, reduce_range: bool = False
) -> QuantizationConfig:
    """uint8 activations, affine and per tensor; int8 weights, symmetric and per channel.

    Args:
        is_qat: for `prepare_qat_pt2e`.
        is_dynamic: activations are quantized at run time, one scale per tensor.
        reduce_range: activations use 7 bits, for processors without VNNI instructions, whose
            16-bit sums of products would overflow.
    """
    weight = get_symmetric_quantization_config(is_per_channel=True, is_qat=is_qat).weight
    activation = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=127 if reduce_range else 255,
        qscheme=torch.per_tensor_affine,
        is_dynamic=is_dynamic,
        observer_or_fake_quant_ctr=_activation_constructor(is_qat, is_dynamic),
    )
    output = None if is_dynamic else activation
    return QuantizationConfig(activation, output, weight, is_qat=is_qat)


def _activation_constructor(is_qat: bool, is_dynamic: bool) -> Any:
    from pt2q.observers import HistogramObserver, MovingAverageMinMaxObserver, PlaceholderObserver

    if is_dynamic:
        return PlaceholderObserver
    if not is_qat:
        return HistogramObserver.with_args(eps=EPS)
    from pt2q.observers import FusedMovingAvgObsFakeQuantize

    return FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=EPS)


# ------------------------------------------------------------------ residual additions


_CONVOLUTIONS = CONV1D | CONV2D


def _adds_to_convolution(match: Match) -> str | None:
    # The later convolution takes the addition in: by then the other operand is there.
    if residual_of(match.head, _CONVOLUTIONS, prefer_last=True) is None:
        return why_no_residual(match.head, _CONVOLUTIONS, "a convolution")
    return None


def _same_shape(match: Match) -> str | None:
    # As text: symbolic sizes have no hash.
    shapes = {str(tuple(source.meta["val"].shape)) for source in float_activations(match.head)}
    return None if len(shapes) == 1 else "its operands differ in shape"


def _annotate_residual(match: Match) -> None:
    found = residual_of(match.head, _CONVOLUTIONS, prefer_last=True)
    assert found is not None
    annotate_chain_inputs(match, {found.other: match.config.input_activation})


# ------------------------------------------------------------------ other annotations


def _annotate_weighted(match: Match) -> None:
    roles = roles_of(match.head)
    inputs: dict[Node, QuantizationSpecBase | None] = dict.fromkeys(
        float_activations(match.head), match.config.input_activation
    )
    if roles.weight is not None:
        inputs[roles.weight] = match.config.weight
    annotate_chain_inputs(match, inputs)


def _annotate_inputs(match: Match) -> None:
    spec = match.config.input_activation
    set_annotation(match.head, dict.fromkeys(float_activations(match.head), spec))


def _several(match: Match) -> str | None:
    if len(float_activations(match.head)) < 2:
        return "it joins fewer than two different tensors"
    return None


def _rows(match: Match) -> str | None:
    if float_activations(match.head)[0].meta["val"].dim() < 2:
        return "its input has no batch dimension"
    return None


_FLOAT_PRODUCT = "Inductor multiplies two activations in float"


def _asked_for(match: Match) -> str | None:
    """A product of activations computes in float: rounding its factors has to be asked for."""
    return None if match.choice.by_operator else _FLOAT_PRODUCT


# ------------------------------------------------------------------ the table

_WEIGHTED = (checks.constant_weight, checks.float32_only, checks.writes_nothing_shared)
_CONVOLUTION = (*_WEIGHTED, checks.batched)
_LINEAR = (*_WEIGHTED, _rows)
_FACTORS = (checks.two_tensors, checks.float32_only, _asked_for)
_ADDITION = (
    checks.two_tensors,
    checks.float32_only,
    checks.no_alpha,
    checks.no_mask,
    checks.writes_nothing_shared,
    _same_shape,
    _adds_to_convolution,
)
_MOVED = (checks.float_inputs, checks.float32_only, checks.writes_nothing_shared)

_COMMON = (
    Rule("linear", LINEAR, _annotate_weighted, (LINEAR_FUSED,), _LINEAR),
    Rule("product", BMM | MATMUL, _annotate_inputs, (), _FACTORS, Kind.JOINING),
    Rule(
        "residual addition",
        ADD,
        _annotate_residual,
        (RELU,),
        _ADDITION,
        Kind.JOINING,
        ends_at_output=False,
    ),
    Rule(
        "concatenation",
        CAT,
        annotate_joined,
        (),
        (_several, checks.float32_only),
        Kind.JOINING,
        ends_at_output=False,
    ),
    Rule(
        "average",
        AVG_POOL | ADAPTIVE_AVG_POOL | MEAN,
        _annotate_inputs,
        (),
        (checks.float32_only,),
        Kind.JOINING,
        ends_at_output=False,
    ),
    Rule(
        "move",
        MAX_POOL2D | RESHAPE | PERMUTE | UPSAMPLE_NEAREST | COPY,
        annotate_joined,
        (),
        _MOVED,
        Kind.CARRYING,
        ends_at_output=False,
    ),
    Rule(
        "dropout",
        DROPOUT,
        annotate_joined,
        (),
        (*_MOVED, checks.inactive),
        Kind.CARRYING,
        ends_at_output=False,
    ),
)


def _convolution(*tails: frozenset[Any]) -> Rule:
    return Rule("convolution", CONV1D | CONV2D, _annotate_weighted, tails, _CONVOLUTION)


STATIC_RULES = (_convolution(CONV_FUSED), *_COMMON)
QAT_RULES = (_convolution(BATCH_NORM, CONV_FUSED), *_COMMON)
DYNAMIC_RULES = (Rule("linear", LINEAR, _annotate_weighted, (LINEAR_FUSED,), _LINEAR),)

# ------------------------------------------------------------------ why the rest stays in float

_REASONS = (
    (BMM | MATMUL | SDPA, _FLOAT_PRODUCT),
    (ADDMM | MM, "Inductor's int8 patterns start at linear layers"),
    (CONV3D | CONV_TRANSPOSE, "Inductor has no int8 kernel for 3d or transposed convolutions"),
    (BATCH_NORM, "a batch norm that is not folded into a convolution runs in float"),
)


def _why_not_fused(node: Node) -> str:
    """Why an activation is not part of the operator before it."""
    before = node.args[0]
    if is_op(before, BATCH_NORM):
        return f"a batch norm stands before it: {before.name}"  # type: ignore[union-attr]
    if not is_op(before, _CONVOLUTIONS | LINEAR):
        return "it does not directly follow a convolution or linear layer"
    assert isinstance(before, Node)
    if len(before.users) > 1:
        return f"others read the result of {before.name} too"
    if is_op(before, LINEAR) and not is_op(node, LINEAR_FUSED):
        return "Inductor's linear layers take in relu and gelu only"
    if is_op(before, _CONVOLUTIONS) and not is_op(node, CONV_FUSED):
        return "Inductor's convolutions take in relu, relu6, hardtanh, hardswish and silu only"
    return f"{before.name} before it stays in float"


class X86InductorQuantizer(TableQuantizer):
    """Quantizes for Inductor on x86; see `pt2q.deploy.inductor`.

    ``X86InductorQuantizer()`` is ready to use: static uint8 activations and int8 weights with a
    scale per channel, in the whole model::

        quantizer = X86InductorQuantizer().set_module_name("head", None)
        prepared = prepare_pt2e(exported.module(), quantizer)
        print(quantizer.report())

    Args:
        default: taken in place of that configuration.
    """

    def __init__(self, default: QuantizationConfig | None = None) -> None:
        super().__init__(default or get_default_x86_inductor_quantization_config())

    def set_module_name_qconfig(
        self, module_name: str, quantization_config: QuantizationConfig | None
    ) -> Self:
        """`set_module_name` under the name it has in PyTorch's x86 quantizer."""
        return self.set_module_name(module_name, quantization_config)

    def set_module_type_qconfig(
        self, module_type: type | str, quantization_config: QuantizationConfig | None
    ) -> Self:
        """`set_module_type` under the name it has in PyTorch's x86 quantizer."""
        return self.set_module_type(module_type, quantization_config)

    def set_function_type_qconfig(
        self, function_type: Any, quantization_config: QuantizationConfig | None
    ) -> Self:
        """`set_operator_type` under the name it has in PyTorch's x86 quantizer."""
        return self.set_operator_type(function_type, quantization_config)

    def rules(self, config: QuantizationConfig) -> tuple[Rule, ...]:
        """The table for static, dynamic or quantization-aware configurations."""
        if config.is_dynamic:
            return DYNAMIC_RULES
        return QAT_RULES if config.is_qat else STATIC_RULES

    def why_float(self, node: Node, config: QuantizationConfig) -> str:
        """Inductor's reason for an operator that no rule names."""
        if config.is_dynamic:
            return "Inductor quantizes linear layers dynamically, nothing else"
        for targets, reason in _REASONS:
            if is_op(node, targets):
                return reason
        if is_op(node, CONV_FUSED | LINEAR_FUSED):
            return _why_not_fused(node)
        return "Inductor computes it in float, in a loop of its own"

    def validate(self, model: GraphModule) -> None:
        """Check every configuration against what Inductor's int8 kernels take.

        Raises:
            AnnotationError: a configuration asks for something no kernel takes.
        """
        for config in self.selection.configs():
            _check("input_activation", config.input_activation, torch.uint8)
            _check("output_activation", config.output_activation, torch.uint8)
            _check("weight", config.weight, torch.int8)
            if not config.is_per_channel:
                raise AnnotationError(
                    "Inductor's int8 kernels take a weight scale per channel; use "
                    "get_default_x86_inductor_quantization_config()"
                )


def _check(role: str, spec: QuantizationSpec | None, dtype: torch.dtype) -> None:
    if spec is not None and spec.dtype is not dtype:
        raise AnnotationError(
            f"Inductor's int8 kernels take {dtype} here, but {role} asks for {spec.dtype}; use "
            "get_default_x86_inductor_quantization_config()"
        )
