"""What migrating.md says of names that pt2q does not offer, and of tests that end differently."""

from __future__ import annotations

PEER = "torchao.quantization.pt2e"
XNNPACK = "executorch.backends.xnnpack.quantizer"

_AFFINE = (
    "stays torchao's: it is made for torchao's affine operators, and runs here as it is, beside "
    "imports that were changed"
)
_INSIDE = "a step inside `prepare_pt2e` and `convert_pt2e`; the steps here are `pt2q.passes`"
_XNNPACK_PARTS = (
    "a part of that quantizer; here a row of the table in `pt2q.quantizers.xnnpack.table`, and "
    "`TableQuantizer.add_rule` puts others in front"
)

INSTEAD = {
    "TorchAODType": "none: torch has these types itself, `torch.int1` to `torch.int7`",
    "AffineFakeQuantize": _AFFINE,
    "default_affine_fake_quant": _AFFINE,
    "default_affine_per_axis_fake_quant": _AFFINE,
    "default_affine_fixed_qparams_fake_quant": "`default_fixed_qparams_range_0to1_fake_quant`",
    "default_affine_fixed_qparams_observer": "`default_fixed_qparams_range_0to1_observer`",
    "default_symmetric_fixed_qparams_fake_quant": (
        "`default_fixed_qparams_range_neg1to1_fake_quant`"
    ),
    "default_symmetric_fixed_qparams_observer": "`default_fixed_qparams_range_neg1to1_observer`",
    "default_embedding_fake_quant_4bit": "none: it is for eager modules with packed 4-bit tables",
    "default_float_qparams_observer_4bit": "none: it is for eager modules with packed 4-bit tables",
    "default_groupwise_fake_quant": "`pt2q.GroupFakeQuantize`, with the group size as an argument",
    "get_observer_state_dict": "`model.state_dict()`: observers are modules of the prepared model",
    "load_observer_state_dict": "`model.load_state_dict(state)`",
    "collect_producer_nodes": "none: it serves the eager flow; `Node.all_input_nodes` gives them",
    "model_is_exported": "none: every call checks, and raises `pt2q.errors.NotExportedError`",
    "lower_pt2e_quantized_to_x86": "`pt2q.deploy.inductor.compile`",
    "reference_representation_rewrite": (
        "`convert_pt2e(model, use_reference_representation=True)`"
    ),
}
"""What stands in for a name, or why nothing does."""

INSTEAD_OF_MODULES = {
    f"{PEER}.constant_fold": _INSIDE,
    f"{PEER}.convert": _INSIDE,
    f"{PEER}.prepare": _INSIDE,
    f"{PEER}.utils": _INSIDE,
    f"{PEER}.inductor_passes": "inside `pt2q.deploy.inductor`",
    f"{PEER}.quantizer.arm_inductor_quantizer": "none for that target; it runs here as it is",
    f"{PEER}.quantizer.xpu_inductor_quantizer": "none for that target; it runs here as it is",
    XNNPACK: _XNNPACK_PARTS,
}
"""The same for all names of a module that are not offered."""

_MODES = "`train()` and `eval()` of an exported model work here, and raise there"
_NO_DATA = "converted without a call: an error here, a scale of 1 there"
_ORIGINS = (
    "here what quantizes an operator's inputs and weights goes back to that operator, too; there "
    "it goes back to no node of the program"
)
_ADDITION = "an addition is written with `add` on int32 here, with `out_dtype` there"
RANGES = (
    "the results are compared with FX to the last bit, and `HistogramObserver` chooses ranges here "
    "by an exact search: they pass where the quantizer keeps torchao's observer"
)
_WEIGHT_SCALE = "a weight has one scale here, in training and after; FX converts with another"
_PER_ROW = (
    "XNNPACK quantizes inputs at run time per row, with weights per channel: the graph says so; "
    "one scale per weight is an error with the way out"
)
_RESIDUAL = "a linear layer whose result is only added in float is quantized at run time"
_RECURRENT = "a recurrent layer is taken apart and computed in int8, where there its border is"
_IN_FLOAT = (
    "XNNPACK has no int8 kernel for it, or two conversions would cost more than it saves: the "
    "report says which"
)

DIFFERENCES: dict[str, dict[str, tuple[str, ...]]] = {
    "theirs": {
        _MODES: ("test_allow_exported_model_train_eval", "test_disallow_eval_train"),
        _NO_DATA: ("test_reentrant",),
        _ORIGINS: ("test_quantize_pt2e_preserve_handle",),
        _ADDITION: ("test_add_relu",),
        RANGES: (
            "test_conv_linear",
            "test_conv_linear_no_permute",
            "test_embedding_conv_linear_quantization",
            "test_gru",
            "test_linear",
            "test_linear_gru",
            "test_linear_with_dynamic_shape",
        ),
        _WEIGHT_SCALE: ("test_qat_dynamic_linear",),
    },
    "ours": {
        _MODES: ("test_allow_exported_model_train_eval", "test_disallow_eval_train"),
        _NO_DATA: ("test_reentrant",),
        _ORIGINS: ("test_quantize_pt2e_preserve_handle",),
        _ADDITION: ("test_add_relu",),
        RANGES: (
            "test_conv_linear",
            "test_conv_linear_no_permute",
            "test_linear",
            "test_linear_with_dynamic_shape",
        ),
        _PER_ROW: (
            "test_composable_quantizer_linear_conv",
            "test_dynamic_linear",
            "test_dynamic_linear_int4_weight",
            "test_dynamic_linear_with_conv",
            "test_embedding_conv_linear_quantization",
            "test_qat_dynamic_linear",
        ),
        _RESIDUAL: ("test_dont_fold_other_constant",),
        _RECURRENT: ("test_gru", "test_linear_gru"),
        _IN_FLOAT: ("test_add_mul_scalar", "test_cat_same_node", "test_obs_sharing_ops"),
    },
}
"""Tests that ExecuTorch installs beside its XNNPACK quantizer and that end differently here, by the
reason: under its quantizer with changed imports, and under ours."""
