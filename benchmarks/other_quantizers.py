"""Every quantizer that ExecuTorch ships, through pt2q and through the stack it was written for.

For a small convolution net and a small transformer: prepare, calibrate, convert, and how close the
result is to the float model. A quantizer whose own packages are missing is listed with the reason.
`--markdown` prints the table of docs/other_quantizers.md from the results.

    python benchmarks/other_quantizers.py -o benchmarks/results/other_quantizers.json
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pt2q
from pt2q.ir import ops

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.nets import NETS

BACKENDS = "executorch.backends."
MODELS = ("small_mobilenet", "small_vit")
CALIBRATION, HELD_OUT, BATCH = 4, 4, 4


def _export(net: torch.nn.Module, inputs: tuple[Tensor, ...], quantizer: Any) -> Any:
    # The guard call that .module() adds by default stops the transformations of some quantizers.
    return torch.export.export(net, inputs).module(check_guards=False)


def _decomposed(net: torch.nn.Module, inputs: tuple[Tensor, ...], quantizer: Any) -> Any:
    """Cadence's patterns are written in core operators, but for those it asks to keep."""
    from executorch.backends.cadence.aot.compiler_funcs import trace

    kept = quantizer.get_ops_to_preserve_from_decomposition()
    program = trace(net, inputs, is_qat=net.training, strict=True, ops_to_keep=kept)
    return program.module(check_guards=False)


@dataclass(frozen=True)
class Case:
    """A quantizer in one setting.

    Args:
        name: for the table.
        module: where it lives under ``executorch.backends``.
        make: builds it from that module.
        is_qat: its specs make fake quantizers.
        export: captures a model as this quantizer wants it.
    """

    name: str
    module: str
    make: Callable[[Any], Any]
    is_qat: bool = False
    export: Callable[..., Any] = _export


@dataclass(frozen=True)
class Result:
    """One quantizer, one model, one stack.

    Args:
        quantizer, model, stack: which.
        sqnr: decibels against the float model on held-out inputs; None where it failed.
        dequantizes: number of dequantize operators of the converted graph.
        error: what was raised, in one line.
        agreement: decibels between this stack's output and the other's.
    """

    quantizer: str
    model: str
    stack: str
    sqnr: float | None = None
    dequantizes: int | None = None
    error: str | None = None
    agreement: float | None = None


def _tosa(**settings: Any) -> Callable[[Any], Any]:
    def make(arm: Any) -> Any:
        from executorch.backends.arm.tosa.specification import TosaSpecification

        spec = TosaSpecification.create_from_string("TOSA-1.0+INT")
        return arm.TOSAQuantizer(spec, **settings.get("init", {})).set_global(
            arm.get_symmetric_quantization_config(**settings.get("config", {}))
        )

    return make


def _ethos(arm: Any) -> Any:
    from executorch.backends.arm.ethosu import EthosUCompileSpec

    quantizer = arm.EthosUQuantizer(EthosUCompileSpec("ethos-u55-128"))
    return quantizer.set_global(arm.get_symmetric_quantization_config())


def _tosa_16x8(arm: Any) -> Any:
    from executorch.backends.arm.tosa.specification import TosaSpecification

    spec = TosaSpecification.create_from_string("TOSA-1.0+INT+int16")
    return arm.TOSAQuantizer(spec).set_global(arm.get_symmetric_a16w8_quantization_config())


def _coreml(**settings: Any) -> Callable[[Any], Any]:
    def make(coreml: Any) -> Any:
        from coremltools.optimize.torch.quantization.quantization_config import (
            LinearQuantizerConfig,
        )

        given = {
            "quantization_scheme": "symmetric",
            "activation_dtype": torch.quint8,
            "weight_dtype": torch.qint8,
            "weight_per_channel": True,
            **settings,
        }
        return coreml.CoreMLQuantizer(LinearQuantizerConfig.from_dict({"global_config": given}))

    return make


def _openvino(mode: str) -> Callable[[Any], Any]:
    return lambda m: m.OpenVINOQuantizer(mode=getattr(m.QuantizationMode, mode))


def _vulkan(**settings: Any) -> Callable[[Any], Any]:
    return lambda m: m.VulkanQuantizer().set_global(m.get_symmetric_quantization_config(**settings))


def _qualcomm(dtype: str | None = None, **settings: Any) -> Callable[[Any], Any]:
    def make(m: Any) -> Any:
        quantizer = m.QnnQuantizer()
        if dtype is not None:
            quantizer.set_default_quant_config(getattr(m.QuantDtype, dtype), **settings)
        return quantizer

    return make


def _qualcomm_blocks(m: Any) -> Any:
    quantizer = _qualcomm("use_16a4w_block", is_conv_per_channel=True, is_linear_per_channel=True)(
        m
    )
    quantizer.set_block_size_map({})
    return quantizer


def _xnnpack(**settings: Any) -> Callable[[Any], Any]:
    return lambda m: m.XNNPACKQuantizer().set_global(
        m.get_symmetric_quantization_config(**settings)
    )


def _samsung(precision: str) -> Callable[[Any], Any]:
    def make(m: Any) -> Any:
        quantizer = m.EnnQuantizer()
        quantizer.setup_quant_params(getattr(m.Precision, precision))
        return quantizer

    return make


ARM = "arm.quantizer.arm_quantizer"
CADENCE = "cadence.aot.quantizer.quantizer"
VULKAN = "vulkan.quantizer.vulkan_quantizer"
QUALCOMM = "qualcomm.quantizer.quantizer"
OPENVINO = "openvino.quantizer.quantizer"
COREML = "apple.coreml.quantizer"
XNNPACK = "xnnpack.quantizer.xnnpack_quantizer"
SAMSUNG = "samsung.quantizer.quantizer"

CASES = (
    Case("Arm TOSA int8", ARM, _tosa()),
    Case("Arm TOSA int8, composable", ARM, _tosa(init={"use_composable_quantizer": True})),
    Case("Arm TOSA int8, per tensor", ARM, _tosa(config={"is_per_channel": False})),
    Case("Arm TOSA int16 x 8", ARM, _tosa_16x8),
    Case("Arm Ethos-U int8", ARM, _ethos),
    Case("Arm TOSA int8, QAT", ARM, _tosa(config={"is_qat": True}), is_qat=True),
    Case("Cadence default", CADENCE, lambda m: m.CadenceDefaultQuantizer(), export=_decomposed),
    Case(
        "Cadence fused conv-relu",
        CADENCE,
        lambda m: m.CadenceFusedConvReluQuantizer(),
        export=_decomposed,
    ),
    Case(
        "Cadence with layer norm",
        CADENCE,
        lambda m: m.CadenceWithLayerNormQuantizer(),
        export=_decomposed,
    ),
    Case(
        "Cadence with softmax",
        CADENCE,
        lambda m: m.CadenceWithSoftmaxQuantizer(),
        export=_decomposed,
    ),
    Case(
        "Cadence 16-bit linear inputs",
        CADENCE,
        lambda m: m.CadenceWith16BitLinearActivationsQuantizer(),
        export=_decomposed,
    ),
    Case(
        "Cadence weights 8, float inputs",
        CADENCE,
        lambda m: m.CadenceW8A32MixedQuantizer(),
        export=_decomposed,
    ),
    Case(
        "Cadence default, QAT",
        CADENCE,
        lambda m: m.CadenceDefaultQuantizer(is_qat=True),
        True,
        _decomposed,
    ),
    Case("Core ML int8", COREML, _coreml()),
    Case("Core ML weights only", COREML, _coreml(activation_dtype=torch.float32)),
    Case("Core ML int8, QAT", COREML, _coreml(milestones=[0, 100, 100, 100]), True),
    Case("Cortex-M", "cortex_m.quantizer.quantizer", lambda m: m.CortexMQuantizer()),
    Case("Example", "example.example_quantizer", lambda m: m.ExampleQuantizer()),
    Case("MediaTek", "mediatek.quantizer", lambda m: m.NeuropilotQuantizer()),
    Case("NXP Neutron", "nxp.quantizer.neutron_quantizer", lambda m: m.NeutronQuantizer(None)),
    Case("OpenVINO int8", OPENVINO, _openvino("INT8_SYM")),
    Case("OpenVINO int8 mixed", OPENVINO, _openvino("INT8_MIXED")),
    Case("OpenVINO int8 transformer", OPENVINO, _openvino("INT8_TRANSFORMER")),
    Case("OpenVINO int8 weights only", OPENVINO, _openvino("INT8WO_SYM")),
    Case("OpenVINO int4 weights only", OPENVINO, _openvino("INT4WO_SYM")),
    Case("Qualcomm 8a8w", QUALCOMM, _qualcomm()),
    Case("Qualcomm 8a8w per channel", QUALCOMM, _qualcomm("use_8a8w", is_conv_per_channel=True)),
    Case("Qualcomm 16a8w", QUALCOMM, _qualcomm("use_16a8w")),
    Case("Qualcomm 16a4w", QUALCOMM, _qualcomm("use_16a4w")),
    Case("Qualcomm 8a8w, QAT", QUALCOMM, _qualcomm("use_8a8w", is_qat=True), True),
    Case("Samsung A8W8", SAMSUNG, _samsung("A8W8")),
    Case("Vulkan int8 weights", VULKAN, _vulkan()),
    Case("Vulkan dynamic", VULKAN, _vulkan(is_dynamic=True)),
    Case("Vulkan int4 weights", VULKAN, _vulkan(weight_bits=4)),
    Case("XNNPACK static", XNNPACK, _xnnpack(is_per_channel=True)),
    Case("XNNPACK dynamic", XNNPACK, _xnnpack(is_per_channel=True, is_dynamic=True)),
    Case("XNNPACK QAT", XNNPACK, _xnnpack(is_per_channel=True, is_qat=True), True),
)


def _flow(stack: str, is_qat: bool) -> tuple[Callable[..., Any], ...]:
    """prepare, convert, and the switch to evaluation."""
    if stack == "pt2q":
        prepare = pt2q.prepare_qat_pt2e if is_qat else pt2q.prepare_pt2e
        return prepare, pt2q.convert_pt2e, pt2q.move_exported_model_to_eval
    import torchao.quantization.pt2e as package
    from torchao.quantization.pt2e import quantize_pt2e as peer

    prepare = peer.prepare_qat_pt2e if is_qat else peer.prepare_pt2e
    return prepare, peer.convert_pt2e, package.move_exported_model_to_eval


def quantized_output(
    case: Case, model: str, stack: str, module: Any
) -> tuple[list[Tensor], list[Tensor], int]:
    """Float outputs, quantized outputs, and the number of dequantize operators."""
    net = NETS[model].build(0)
    inputs = [NETS[model].inputs(BATCH, seed) for seed in range(CALIBRATION + HELD_OUT)]
    quantizer = case.make(module)
    exported = case.export(net.train(case.is_qat), inputs[0], quantizer)
    net.eval()
    prepare, convert, to_eval = _flow(stack, case.is_qat)
    torch.manual_seed(0)
    prepared = prepare(exported, quantizer)
    if case.is_qat:
        to_eval(prepared)
    with torch.no_grad():
        for batch in inputs[:CALIBRATION]:
            prepared(*batch)
        converted = convert(prepared)
        found = [converted(*batch) for batch in inputs[CALIBRATION:]]
        reference = [net(*batch) for batch in inputs[CALIBRATION:]]
    count = sum(ops.is_op(n, ops.DEQUANTIZE) for n in converted.graph.nodes)
    return reference, found, count


def measure(case: Case, model: str) -> list[Result]:
    """Both stacks on one model."""
    try:
        module = import_module(BACKENDS + case.module)
    except (ImportError, RuntimeError) as error:
        return [Result(case.name, model, s, error=f"not installed: {_line(error)}") for s in STACKS]
    outputs: dict[str, Tensor] = {}
    results = []
    for stack in STACKS:
        try:
            reference, found, count = quantized_output(case, model, stack, module)
        except Exception as error:  # whatever a third party raises is the result
            results.append(Result(case.name, model, stack, error=_line(error)))
            continue
        outputs[stack] = torch.cat([t.flatten() for t in found])
        decibels = float(pt2q.sqnr(torch.cat([t.flatten() for t in reference]), outputs[stack]))
        results.append(Result(case.name, model, stack, decibels, count))
    if len(outputs) == len(STACKS):
        same = float(pt2q.sqnr(outputs["torchao"], outputs["pt2q"]))
        results = [Result(**{**asdict(r), "agreement": same}) for r in results]
    return results


STACKS = ("pt2q", "torchao")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


def markdown(results: list[dict[str, Any]]) -> str:
    """The table of the page."""
    by_key = {(r["quantizer"], r["model"], r["stack"]): r for r in results}
    names = list(dict.fromkeys(r["quantizer"] for r in results))
    lines = [
        "| quantizer | conv net: pt2q | its own stack | transformer: pt2q | its own stack |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        cells = [_cell(by_key[name, model, stack]) for model in MODELS for stack in STACKS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: dict[str, Any]) -> str:
    if result["error"] is not None:
        return "not installed" if "not installed" in result["error"] else "error"
    sqnr = result["sqnr"]
    shown = "exact" if sqnr == float("inf") else f"{sqnr:.1f} dB"
    return f"{shown} ({result['dequantizes']})"


def fetch_nothing() -> None:
    """Qualcomm's quantizer fetches an SDK when it is made, and does without where it cannot."""
    setup = import_module(BACKENDS + "qualcomm.utils.qnn_sdk_setup")
    setup._install_qnn_sdk = lambda: False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument(
        "--only", default="", help="cases whose name holds this text; others are kept"
    )
    parser.add_argument("--markdown", type=Path, help="print the table of a result file")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text())["results"]))
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    fetch_nothing()
    results = []
    for case in CASES:
        if arguments.only.lower() not in case.name.lower():
            continue
        for model in MODELS:
            for result in measure(case, model):
                results.append(asdict(result))
                print(json.dumps(results[-1]), flush=True)
    if arguments.out:
        ran = {result["quantizer"] for result in results}
        known = json.loads(arguments.out.read_text())["results"] if arguments.out.exists() else []
        results += [result for result in known if result["quantizer"] not in ran]
        order = [case.name for case in CASES]
        results.sort(key=lambda result: order.index(result["quantizer"]))
        versions = {name: _version(name) for name in ("torch", "torchao", "executorch")}
        arguments.out.write_text(
            json.dumps({"versions": versions, "results": results}, indent=1) + "\n"
        )


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


if __name__ == "__main__":
    main()
