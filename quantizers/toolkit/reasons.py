"""Why operators stay in float: every reason is a row of one table, with what can be done about it.

Checks, quantizers and the report hand these rows around; programs compare codes, people read
texts. A backend outside of this package makes rows of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Reason:
    """Why an operator stays in float.

    Args:
        code: names the reason for programs; it does not change when words do.
        text: for people; ``{name}`` stands for a detail that `filled` puts in.
        advice: what the user can do; "" where float is what the backend has for it.
    """

    code: str
    text: str
    advice: str = ""

    def filled(self, **details: object) -> Reason:
        """The same reason with details in its text.

        Args:
            details: by the names that stand in braces; others stay for a later call.
        """
        text = self.text
        for name, value in details.items():
            text = text.replace(f"{{{name}}}", str(value))
        return replace(self, text=text)

    def __str__(self) -> str:
        return self.text


_BY_NAME = (
    "int8 between float operators costs time and gains nothing; to have it all the same, name "
    "the operator: set_operator_type(...), or [[override]] operator in a recipe"
)
_AS_LINEAR = "write it as a linear layer for each matrix, and an addition"
_STATIC = "give it a static configuration"
_OUT_OF_PLACE = "write the operator out of place: add, not add_"

# ------------------------------------------------------------------ what the user said

SET_TO_NONE = Reason("set-to-none", "{statement} is set to None")
GLOBAL_IS_NONE = Reason("global-is-none", "the global configuration is None")
NOT_COVERED = Reason(
    "not-covered",
    "no configuration covers it",
    "cover it by set_global, or by its module or operator",
)
FILTERED_OUT = Reason("filtered-out", "the filter function leaves it out")
ANNOTATED_BEFORE = Reason("annotated-before", "another quantizer annotated it")

# ------------------------------------------------------------------ what int8 would gain

NO_QUANTIZED_READER = Reason("no-quantized-reader", "its result is read in float only", _BY_NAME)
NO_QUANTIZED_SOURCE = Reason("no-quantized-source", "its inputs are computed in float", _BY_NAME)

# ------------------------------------------------------------------ types, weights and writes

OTHER_TYPE = Reason(
    "other-type",
    "it computes in {dtype}, which is not quantized: only float32, bfloat16 and float16 are",
    "export the model in float32: model.float()",
)
MIXED_TYPES = Reason(
    "mixed-types",
    "it computes with {dtypes} at once",
    "give its operands one type before export",
)
VALUES_NOT_FLOAT = Reason(
    "values-not-float", "its values are not float32, bfloat16 or float16 numbers"
)
READS_NO_TENSOR = Reason("reads-no-tensor", "it reads no tensor")
WEIGHT_COMPUTED = Reason(
    "weight-computed",
    "its weight is computed in the graph, not a constant",
    "compute it once before export, such as by remove_parametrizations",
)
WEIGHT_NOT_FLOAT = Reason("weight-not-float", "its weight is not a floating point tensor")
BIAS_COMPUTED = Reason(
    "bias-computed",
    "its bias is computed in the graph, not a constant",
    "compute it once before export",
)
NO_WEIGHT = Reason("no-weight", "it has no weight")
GROUPS_DO_NOT_FIT = Reason(
    "groups-do-not-fit",
    "its {columns} inputs do not divide by {size}",
    "choose a group size that divides the inputs of every layer",
)
WRITES_INTO_BUFFER = Reason(
    "writes-into-buffer", "it writes in place into a buffer or an input", _OUT_OF_PLACE
)
WRITES_INTO_SHARED = Reason(
    "writes-into-shared", "it writes in place into a tensor that others read too", _OUT_OF_PLACE
)
DROPOUT_ACTIVE = Reason(
    "dropout-active", "dropout is active", "call model.eval() before torch.export.export"
)

# ------------------------------------------------------------------ operands and shapes

SCALAR_OPERAND = Reason("scalar-operand", "one operand is a scalar")
OPERAND_NOT_FLOAT = Reason("operand-not-float", "one operand is not a floating point tensor")
OPERAND_WITHOUT_DIMENSIONS = Reason("operand-without-dimensions", "one operand has no dimensions")
OPERAND_SHAPES_DIFFER = Reason("operand-shapes-differ", "its operands differ in shape")
JOINS_TOO_FEW = Reason("joins-too-few", "it joins fewer than two different tensors")
ATTENTION_MASK = Reason(
    "attention-mask",
    "an operand is an attention mask: its huge values would take up the whole range",
)
ALPHA = Reason("alpha", "alpha is {alpha}, not 1", "multiply the operand first")
SCALED_PRODUCT = Reason(
    "scaled-product",
    "it scales its product or its bias (alpha, beta)",
    "multiply weights and biases by them before export",
)
NO_BATCH = Reason(
    "no-batch-dimension",
    "its input has no batch dimension",
    "export the model with a batch of inputs",
)
TOO_MANY_DIMENSIONS = Reason(
    "too-many-dimensions", "a tensor has {found} dimensions, more than {most}"
)
COMPUTED_FACTORS = Reason(
    "computed-factors",
    "both factors are computed: {runtime} multiplies in float",
)
CONSTANT_FACTOR = Reason(
    "constant-factor",
    "it multiplies by a constant, which {runtime} takes from linear layers only",
    _AS_LINEAR,
)
STACK_AS_IT_IS = Reason(
    "stack-as-it-is",
    "the stack of its matrices is trained, written, or multiplied along two axes",
)
PICKED_MATRICES = Reason(
    "picked-matrices",
    "it multiplies by matrices that are picked from a constant at run time, such as experts: "
    "{runtime} does so in float",
    "store them in 8 or 4 bits: ComposableQuantizer([..., WeightQuantizer()])",
)
NO_GROUPED_PRODUCT = Reason(
    "no-grouped-product",
    "{runtime} has no kernel, not in float either, that multiplies groups of rows by a matrix each",
    "have the matrices picked for each row: experts_implementation='batched_mm' in transformers",
)
PRODUCT_WITH_ADDITION = Reason(
    "product-with-addition",
    "{runtime} has no int8 kernel for a product and an addition in one",
    "write it as matmul and an addition",
)
MEAN_NOT_OVER_IMAGE = Reason(
    "mean-not-over-image", "the int8 kernel averages the last two of four dimensions"
)
MEAN_DROPS_DIMENSIONS = Reason(
    "mean-drops-dimensions", "the int8 kernel keeps the averaged dimensions (keepdim=True)"
)
MEAN_CHANGES_TYPE = Reason("mean-changes-type", "it changes the dtype")
POOLS_TO_MANY = Reason("pools-to-many", "the int8 kernel pools a batch of images to size 1")
STRIDE_BEYOND_WINDOW = Reason("stride-beyond-window", "its stride is larger than its window")
PADS_OTHERWISE = Reason("pads-otherwise", "it pads with other numbers than zeros, or cuts off")
TENSOR_BOUNDS = Reason("tensor-bounds", "its bounds are tensors")

# ------------------------------------------------------------------ residual additions

ADDS_CONSTANT = Reason("adds-constant", "it adds a constant to the result of {producer}")
ADDS_OWN_INPUT = Reason(
    "adds-own-input",
    "it adds the input of {producer} to its result: in the kernel that gains nothing",
)
RESULT_READ_TWICE = Reason(
    "result-read-twice", "the result of {producer} has other readers too: it is added in float"
)
NO_PRODUCER = Reason(
    "no-producer", "no operand comes straight from {producer}: it is added in float"
)

# ------------------------------------------------------------------ what kernels take

KERNEL_NEEDS = Reason(
    "kernel-needs",
    "its kernel takes quantized {role}, and the configuration has none",
    "give a configuration that says how they are quantized",
)
KERNEL_TAKES = Reason(
    "kernel-takes",
    "its kernel takes {role} in {takes}; found {found}",
    "give this operator or module a configuration that its kernel takes",
)

# ------------------------------------------------------------------ no kernel for it

NO_INT8_KERNEL = Reason("no-int8-kernel", "{runtime} has no int8 kernel for it")
NO_CONVOLUTION_KERNEL = Reason(
    "no-convolution-kernel", "{runtime} has no int8 kernel for {kind} convolutions"
)
PRODUCT_IN_FLOAT = Reason("product-in-float", "{runtime} multiplies two activations in float")
FUSED_ATTENTION = Reason(
    "fused-attention", "attention as one operator has no form in integers in ONNX"
)
BATCH_NORM_ALONE = Reason(
    "batch-norm-alone", "a batch norm that is not folded into a convolution runs in float"
)
DYNAMIC_LINEAR_ONLY = Reason(
    "dynamic-linear-only", "dynamic quantization covers linear layers only"
)
DYNAMIC_PRODUCTS_ONLY = Reason(
    "dynamic-products-only",
    "dynamic quantization covers linear layers and convolutions over images only",
)
DEPTHWISE = Reason(
    "depthwise",
    "{runtime} does not measure the input of depthwise convolutions, or of those with one input "
    "channel, at run time",
    _STATIC,
)
DYNAMIC_IMAGES_ONLY = Reason(
    "dynamic-images-only",
    "{runtime} measures the input of convolutions at run time only over images, and of transposed "
    "ones only without groups",
    _STATIC,
)
NOTHING_TO_MEASURE = Reason(
    "nothing-to-measure",
    "it depends on no input of the model: there is no range to measure at run time",
    "compute it once before export, or give it a static configuration",
)
GROUPS_LINEAR_ONLY = Reason(
    "groups-linear-only", "groups and dynamic activations are for linear layers"
)
EMBEDDINGS_ONLY = Reason("embeddings-only", "the embedding quantizer quantizes embeddings only")
NOT_TAKEN_APART = Reason("not-taken-apart", "not taken apart: {why}")
NEEDS_LINEAR_LAYER = Reason(
    "needs-linear-layer",
    "{runtime}'s int8 patterns start at linear layers",
    _AS_LINEAR,
)

# ------------------------------------------------------------------ activations that are not fused

BEHIND_BATCH_NORM = Reason("behind-batch-norm", "a batch norm stands before it: {node}")
BEHIND_OTHERS = Reason("behind-others", "it does not directly follow a convolution or linear layer")
BEHIND_SHARED_RESULT = Reason("behind-shared-result", "others read the result of {node} too")
BEHIND_FLOAT = Reason("behind-float", "{node} before it stays in float")
BEHIND_EXTREME = Reason(
    "behind-extreme",
    "{runtime} rounds what {node} takes the maximum or minimum of with other steps, and is wrong",
)
BEHIND_JOINED_ROWS = Reason(
    "behind-joined-rows",
    "{runtime} does not compile a product behind {node}, which joins along another dimension than "
    "the last",
)
NOT_FUSED = Reason("not-fused", "{runtime}'s {kind} take in {fused} only")

REASONS = {value.code: value for value in list(globals().values()) if isinstance(value, Reason)}
"""The whole table, by code."""
