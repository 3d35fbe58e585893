"""`OnnxQDQQuantizer`: where ONNX Runtime, OpenVINO and TensorRT want quantizes and dequantizes.

The runtimes read the same file differently. ONNX Runtime has an operator in integers, from uint8
to uint8, for each row of its table: results are quantized too. TensorRT fuses from the inputs on,
in symmetric int8; a residual addition stays in its convolution's kernel if the skip branch alone
is quantized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from pt2q.errors import AnnotationError
from pt2q.ir.ops import (
    ADAPTIVE_AVG_POOL,
    ADD,
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
    HARDTANH,
    LINEAR,
    MATMUL,
    MAX_POOL2D,
    MEAN,
    MUL,
    PERMUTE,
    RELU,
    RELU6,
    RESHAPE,
    SDPA,
    SUBSET,
    UPSAMPLE_NEAREST,
    is_op,
)
from pt2q.quantizers.toolkit import checks
from pt2q.quantizers.toolkit.annotate import (
    annotate_chain_inputs,
    annotate_independent,
    annotate_joined,
    annotate_weighted,
    annotate_with,
    set_annotation,
)
from pt2q.quantizers.toolkit.config import (
    EPS,
    QuantizationConfig,
    get_symmetric_quantization_config,
    per_channel_at,
)
from pt2q.quantizers.toolkit.decompositions import Decompositions
from pt2q.quantizers.toolkit.engine import TableQuantizer
from pt2q.quantizers.toolkit.fixed_ranges import bound_observers
from pt2q.quantizers.toolkit.residual import Residual, residual_of, why_no_residual
from pt2q.quantizers.toolkit.roles import float_activations, roles_of
from pt2q.quantizers.toolkit.rules import Kind, Match, Rule
from pt2q.quantizers.x86_inductor import get_default_x86_inductor_quantization_config
from pt2q.spec import EdgeOrNode, QuantizationSpec, QuantizationSpecBase

FUSED = RELU | RELU6 | HARDTANH
CONVOLUTIONS = CONV1D | CONV2D | CONV3D


# ------------------------------------------------------------------ configurations


def get_onnxruntime_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False, reduce_range: bool = False
) -> QuantizationConfig:
    """uint8 activations, affine and per tensor; int8 weights, symmetric and per channel.

    Args:
        is_qat: for `prepare_qat_pt2e`.
        is_dynamic: activations are quantized at run time; results stay in float.
        reduce_range: weights use 7 bits, for processors without VNNI instructions, whose 16-bit
            sums of products would overflow.
    """
    config = get_default_x86_inductor_quantization_config(is_qat, is_dynamic)
    if not reduce_range or config.weight is None:
        return config
    return replace(config, weight=replace(config.weight, quant_min=-64, quant_max=63))


def get_tensorrt_quantization_config(is_qat: bool = False) -> QuantizationConfig:
    """Symmetric int8 throughout: activations per tensor, weights per channel, all zero points 0.

    Args:
        is_qat: for `prepare_qat_pt2e`.
    """
    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=_symmetric_constructor(is_qat),
    )
    weight = get_symmetric_quantization_config(is_per_channel=True, is_qat=is_qat).weight
    return QuantizationConfig(activation, activation, weight, is_qat=is_qat)


def _symmetric_constructor(is_qat: bool) -> Any:
    from pt2q.observers import HistogramObserver, MovingAverageMinMaxObserver

    if not is_qat:
        return HistogramObserver.with_args(eps=EPS)
    from pt2q.observers import FusedMovingAvgObsFakeQuantize

    return FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=EPS)


# ------------------------------------------------------------------ checks and annotations


def _several(match: Match) -> str | None:
    if len(float_activations(match.head)) < 2:
        return "it joins fewer than two different tensors"
    return None


def _computed_factors(match: Match) -> str | None:
    if is_op(match.head, MATMUL) and roles_of(match.head).weight is not None:
        return "its second factor is a constant: write it as a linear layer"
    return None


_PRODUCTS = CONVOLUTIONS | CONV_TRANSPOSE | LINEAR


def _residual(match: Match) -> Residual | None:
    return residual_of(match.head, _PRODUCTS, prefer_last=False, own_input=True)


def _adds_to_product(match: Match) -> str | None:
    if _residual(match) is None:
        return why_no_residual(match.head, _PRODUCTS, "a convolution or linear layer")
    return None


def _annotate_skip_branch(match: Match) -> None:
    found = _residual(match)
    assert found is not None
    annotate_chain_inputs(match, {found.other: match.config.input_activation})


def _annotate_inputs(match: Match) -> None:
    spec = match.config.input_activation
    set_annotation(match.head, dict.fromkeys(float_activations(match.head), spec))


def _annotate_product(match: Match) -> None:
    """The inputs of an operator with a weight; its result is left to whoever reads it."""
    annotate_chain_inputs(match, _weighted_inputs(match, match.config.weight))


def _annotate_transposed_product(match: Match) -> None:
    annotate_chain_inputs(match, _weighted_inputs(match, _transposed_weight(match)))


def _annotate_transposed(match: Match) -> None:
    annotate_with(match, replace(match.config, weight=_transposed_weight(match)))


def _transposed_weight(match: Match) -> QuantizationSpec | None:
    """Weights are [in, out / groups, ...]: their own output channels lie along axis 1.

    With groups that axis repeats over the groups and each has channels of its own; ONNX can
    only give all groups the same scales, so each is as wide as the widest.
    """
    return per_channel_at(match.config.weight, 1)


def _weighted_inputs(
    match: Match, weight: QuantizationSpec | None
) -> dict[Node, QuantizationSpecBase | None]:
    roles = roles_of(match.head)
    inputs: dict[Node, QuantizationSpecBase | None] = dict.fromkeys(
        float_activations(match.head), match.config.input_activation
    )
    if roles.weight is not None:
        inputs[roles.weight] = weight
    return inputs


# ------------------------------------------------------------------ the tables

_WEIGHTED = (checks.constant_weight, checks.float32_only, checks.writes_nothing_shared)
_BINARY = (
    checks.two_tensors,
    checks.float32_only,
    checks.no_alpha,
    checks.no_mask,
    checks.writes_nothing_shared,
)
_CARRIED = (checks.float_inputs, checks.float32_only, checks.writes_nothing_shared)
_FACTORS = (checks.two_tensors, checks.float32_only, _computed_factors)


def _runtime_rules(*convolution_tails: frozenset[Any]) -> tuple[Rule, ...]:
    """ONNX Runtime: an operator in integers for each row."""
    product = (*_WEIGHTED, checks.batched)
    return (
        Rule("convolution", CONVOLUTIONS, annotate_weighted, convolution_tails, product),
        Rule(
            "transposed convolution",
            CONV_TRANSPOSE,
            _annotate_transposed,
            convolution_tails,
            product,
        ),
        # Its operator also gives float: a transformer's residual stream needs more than 8 bits.
        Rule("linear", LINEAR, _annotate_product, (FUSED,), _WEIGHTED),
        Rule("matrix product", MATMUL | BMM, _annotate_inputs, (), _FACTORS, Kind.JOINING),
        Rule("addition", ADD, annotate_independent, (RELU,), _BINARY, Kind.JOINING),
        Rule("multiplication", MUL, annotate_independent, (), _BINARY, Kind.JOINING),
        Rule(
            "concatenation",
            CAT,
            annotate_joined,
            (),
            (_several, checks.float32_only),
            Kind.JOINING,
        ),
        Rule(
            "average",
            AVG_POOL | ADAPTIVE_AVG_POOL | MEAN,
            annotate_independent,
            (),
            (checks.float32_only,),
            Kind.JOINING,
        ),
        Rule(
            "move",
            MAX_POOL2D | RESHAPE | PERMUTE | SUBSET | UPSAMPLE_NEAREST | COPY,
            annotate_joined,
            (),
            _CARRIED,
            Kind.CARRYING,
            ends_at_output=False,
        ),
        Rule(
            "dropout",
            DROPOUT,
            annotate_joined,
            (),
            (*_CARRIED, checks.inactive),
            Kind.CARRYING,
            ends_at_output=False,
        ),
    )


def _tensorrt_rules(*convolution_tails: frozenset[Any]) -> tuple[Rule, ...]:
    """TensorRT: the inputs of what computes, and the skip branch of residual additions."""
    product = (*_WEIGHTED, checks.batched)
    return (
        Rule("convolution", CONVOLUTIONS, _annotate_product, convolution_tails, product),
        Rule(
            "transposed convolution",
            CONV_TRANSPOSE,
            _annotate_transposed_product,
            convolution_tails,
            product,
        ),
        Rule("linear", LINEAR, _annotate_product, (FUSED,), _WEIGHTED),
        Rule("matrix product", MATMUL | BMM, _annotate_inputs, (), _FACTORS, Kind.JOINING),
        Rule(
            "residual addition",
            ADD,
            _annotate_skip_branch,
            (RELU,),
            (*_BINARY, _adds_to_product),
            Kind.JOINING,
        ),
        Rule(
            "average",
            AVG_POOL | ADAPTIVE_AVG_POOL | MEAN,
            _annotate_inputs,
            (),
            (checks.float32_only,),
            Kind.JOINING,
        ),
        # These commute with a quantize; the runtime moves it by itself.
        Rule(
            "move",
            MAX_POOL2D | RESHAPE | PERMUTE | CAT | UPSAMPLE_NEAREST | COPY,
            annotate_joined,
            (),
            _CARRIED,
            Kind.CARRYING,
            ends_at_output=False,
        ),
    )


_DYNAMIC = (Rule("linear", LINEAR, annotate_weighted, (), _WEIGHTED),)
_ONNXRUNTIME = (_runtime_rules(FUSED), _runtime_rules(BATCH_NORM, FUSED), _DYNAMIC)
_TENSORRT = (_tensorrt_rules(FUSED), _tensorrt_rules(BATCH_NORM, FUSED), ())


@dataclass(frozen=True)
class Runtime:
    """What a runtime makes of a file.

    Args:
        name: for messages.
        dtype: of quantized activations.
        symmetric: activations must have zero point 0.
        static, qat, dynamic: its tables.
    """

    name: str
    dtype: torch.dtype
    symmetric: bool
    static: tuple[Rule, ...]
    qat: tuple[Rule, ...]
    dynamic: tuple[Rule, ...]


ONNXRUNTIME = Runtime("ONNX Runtime", torch.uint8, False, *_ONNXRUNTIME)
OPENVINO = Runtime("OpenVINO", torch.uint8, False, *_ONNXRUNTIME)
TENSORRT = Runtime("TensorRT", torch.int8, True, *_TENSORRT)


class OnnxQDQQuantizer(TableQuantizer):
    """Quantizes for runtimes that read ONNX; see `pt2q.deploy.onnx`.

    Take a preset::

        quantizer = OnnxQDQQuantizer.onnxruntime()
        quantizer = OnnxQDQQuantizer.tensorrt().set_module_name("head", None)

    Args:
        runtime: `ONNXRUNTIME`, `OPENVINO` or `TENSORRT`.
        default: how to quantize; None takes the runtime's configuration.
    """

    # These runtimes multiply two activations in integers.
    decompositions = Decompositions(attention=True)

    def __init__(
        self, runtime: Runtime = ONNXRUNTIME, default: QuantizationConfig | None = None
    ) -> None:
        if default is None:
            symmetric = runtime.symmetric
            default = (
                get_tensorrt_quantization_config()
                if symmetric
                else get_onnxruntime_quantization_config()
            )
        super().__init__(default)
        self.runtime = runtime

    @classmethod
    def onnxruntime(
        cls, *, is_qat: bool = False, is_dynamic: bool = False, reduce_range: bool = False
    ) -> OnnxQDQQuantizer:
        """For ONNX Runtime on CPUs; the arguments are `get_onnxruntime_quantization_config`'s."""
        return cls(
            ONNXRUNTIME, get_onnxruntime_quantization_config(is_qat, is_dynamic, reduce_range)
        )

    @classmethod
    def openvino(cls, *, is_qat: bool = False) -> OnnxQDQQuantizer:
        """For OpenVINO, which fuses what ONNX Runtime does."""
        return cls(OPENVINO, get_onnxruntime_quantization_config(is_qat))

    @classmethod
    def tensorrt(cls, *, is_qat: bool = False) -> OnnxQDQQuantizer:
        """For TensorRT: symmetric int8, zero points 0, biases in float."""
        return cls(TENSORRT, get_tensorrt_quantization_config(is_qat))

    def rules(self, config: QuantizationConfig) -> tuple[Rule, ...]:
        """The runtime's table for static, dynamic or quantization-aware configurations."""
        if config.is_dynamic:
            return self.runtime.dynamic
        return self.runtime.qat if config.is_qat else self.runtime.static

    def why_float(self, node: Node, config: QuantizationConfig) -> str:
        """The reason for an operator that no rule names."""
        if config.is_dynamic:
            return "dynamic quantization covers linear layers only"
        if is_op(node, SDPA):
            return "attention as one operator has no form in integers in ONNX"
        if is_op(node, BATCH_NORM):
            return "a batch norm that is not folded into a convolution runs in float"
        return f"{self.runtime.name} has no operator in integers for it"

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]
    ) -> None:
        """Let the grids of what follows a relu end with it: ONNX Runtime then leaves it out."""
        if not self.runtime.symmetric:
            bound_observers(edge_or_node_to_obs_or_fq)

    def validate(self, model: GraphModule) -> None:
        """Check every configuration against what the runtime reads.

        Raises:
            AnnotationError: a configuration asks for something the runtime does not fuse.
        """
        for config in self.selection.configs():
            if config.is_dynamic and not self.runtime.dynamic:
                raise AnnotationError(f"{self.runtime.name} quantizes nothing at run time")
            for spec in (config.input_activation, config.output_activation):
                self._check(spec)

    def _check(self, spec: QuantizationSpec | None) -> None:
        if spec is None or (spec.dtype is torch.int16 and not self.runtime.symmetric):
            return
        if spec.dtype is not self.runtime.dtype:
            raise AnnotationError(
                f"{self.runtime.name} fuses {self.runtime.dtype} activations, found {spec.dtype}"
            )
        if self.runtime.symmetric and spec.qscheme is not torch.per_tensor_symmetric:
            raise AnnotationError(
                f"{self.runtime.name} wants zero point 0: use torch.per_tensor_symmetric, "
                f"found {spec.qscheme}"
            )
