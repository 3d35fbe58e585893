"""A decoder with a key-value cache, quantized in three ways: SQNR of every step against float.

The model is the one of the tests: random weights, rotary positions, grouped-query attention. It is
run in float, as the quantize / dequantize graph, and as a `.pte` in the ExecuTorch runtime; every
run feeds its own cache.

    python benchmarks/decoder.py -o benchmarks/results/decoder.json
    python benchmarks/decoder.py --markdown benchmarks/results/decoder.json
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import measuring
import torch
from support.decoder import decode, decoder, prompt
from torch import Tensor

from pt2q import Quantizer, convert_pt2e, prepare_pt2e, sqnr
from pt2q.deploy.executorch import lower
from pt2q.quantizers import (
    WeightQuantizer,
    XNNPACKQuantizer,
    get_dynamic_activation_4bit_weight_config,
    get_symmetric_quantization_config,
)

STEPS, CALIBRATION, TEST_PROMPT = 64, (1, 2), 9
SHOWN = (1, 2, 4, 8, 16, 32, 48, 64)


def _dynamic() -> XNNPACKQuantizer:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    return XNNPACKQuantizer().set_global(config)


def _four_bits() -> WeightQuantizer:
    return WeightQuantizer(get_dynamic_activation_4bit_weight_config(group_size=32))


QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "static": XNNPACKQuantizer,
    "dynamic": _dynamic,
    "8da4w": _four_bits,
}


def per_step(expected: list[Tensor], found: Iterable[Tensor]) -> list[float]:
    """SQNR in dB of each step's logits."""
    return [round(float(sqnr(a, b)), 2) for a, b in zip(expected, found, strict=True)]


def measure(name: str) -> dict[str, Any]:
    """One way of quantizing: as a graph and in the runtime."""
    model = decoder()
    program = torch.export.export(model, prompt(0)[0])
    expected = list(decode(copy.deepcopy(model), TEST_PROMPT, STEPS))
    prepared = prepare_pt2e(program, QUANTIZERS[name]())
    for seed in CALIBRATION:
        for _ in decode(prepared, seed):
            pass
    converted = convert_pt2e(prepared)
    lowered = lower(copy.deepcopy(converted), prompt(0)[0])
    method = lowered.load()
    return {
        "quantization": name,
        "graph": per_step(expected, decode(copy.deepcopy(converted), TEST_PROMPT, STEPS)),
        "runtime": per_step(expected, decode(lambda t, at: method(t, at)[0], TEST_PROMPT, STEPS)),
        "pte_bytes": len(lowered.buffer),
        "float_bytes": sum(p.numel() * 4 for p in model.parameters()),
    }


def markdown(results: list[dict[str, Any]]) -> str:
    """The table of the page: some steps, and the worst of all."""
    head = ["quantization", "run by", *(f"step {s}" for s in SHOWN), "worst", "mean"]
    rows = []
    for result in results:
        for where in ("graph", "runtime"):
            steps = result[where]
            figures = [*(steps[s - 1] for s in SHOWN), min(steps), sum(steps) / len(steps)]
            rows.append([result["quantization"], where, *(f"{f:.1f}" for f in figures)])
    return measuring.markdown_table(head, rows, figures=len(head) - 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("decoder.json"))
    parser.add_argument("--markdown", type=Path, help="print the table of a result file")
    options = parser.parse_args()
    if options.markdown is not None:
        print(markdown(json.loads(options.markdown.read_text())["results"]))
        return
    measuring.set_up()
    with torch.no_grad():
        results = [measure(name) for name in QUANTIZERS]
    measuring.write_json(options.out, {"torch": torch.__version__, "results": results})
    print(markdown(results))


if __name__ == "__main__":
    main()
