"""Every quantizer that ExecuTorch ships, through pt2q and through the stack it was written for.

For a small convolution net and a small transformer: prepare, calibrate, convert, and how close the
result is to the float model. A quantizer whose own packages are missing is listed with the reason.
`--markdown` prints the table of docs/other_quantizers.md from the results.

    python benchmarks/other_quantizers.py -o benchmarks/results/other_quantizers.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import measuring
import torch
from shipped_quantizers import CASES, Case
from support.nets import NETS
from torch import Tensor

import pt2q
from pt2q.ir import ops

BACKENDS = "executorch.backends."
STACKS = ("pt2q", "torchao")
MODELS = ("small_mobilenet", "small_vit")
CALIBRATION, HELD_OUT, BATCH = 4, 4, 4


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


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


def markdown(results: list[dict[str, Any]]) -> str:
    """The table of the page."""
    by_key = {(r["quantizer"], r["model"], r["stack"]): r for r in results}
    names = list(dict.fromkeys(r["quantizer"] for r in results))
    head = ["quantizer", "conv net: pt2q", "its own stack", "transformer: pt2q", "its own stack"]
    rows = [
        [name, *(_cell(by_key[name, model, stack]) for model in MODELS for stack in STACKS)]
        for name in names
    ]
    return measuring.markdown_table(head, rows, figures=4)


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


def merged(results: list[dict[str, Any]], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """New results in the place of those known, in the order of the cases."""
    ran = {result["quantizer"] for result in results}
    order = [case.name for case in CASES]
    kept = [result for result in known if result["quantizer"] not in ran]
    return sorted(results + kept, key=lambda result: order.index(result["quantizer"]))


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument(
        "--only", default="", help="cases whose name holds this text; others are kept"
    )
    parser.add_argument("--markdown", type=Path, help="print the table of a result file")
    return parser.parse_args()


def main() -> None:
    options = options_of()
    if options.markdown:
        print(markdown(json.loads(options.markdown.read_text())["results"]))
        return
    measuring.set_up()
    fetch_nothing()
    results = []
    for case in CASES:
        for model in MODELS if options.only.lower() in case.name.lower() else ():
            for result in measure(case, model):
                results.append(asdict(result))
                print(json.dumps(results[-1]), flush=True)
    if options.out:
        results = merged(results, measuring.read_json(options.out).get("results", []))
        versions = measuring.versions("torch", "torchao", "executorch")
        measuring.write_json(options.out, {"versions": versions, "results": results})


if __name__ == "__main__":
    main()
