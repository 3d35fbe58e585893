"""The scoreboard: the zoo of architectures, quantizer by quantizer, beside the other stack.

    python benchmarks/scoreboard.py                    what is not measured yet; an hour from none
    python benchmarks/scoreboard.py --only bert vit    these, anew
    python benchmarks/scoreboard.py --jobs 2           two architectures at a time
    python benchmarks/scoreboard.py --page             write the page again

Each architecture has a process of its own. It is exported once with plain and once with outlier
weights; each quantizer calibrates on eight inputs and is judged on twelve others, in decibels
against the float model, all outputs together. pt2q's static programs for XNNPACK run in the
ExecuTorch runtime, too. The other stack is ``torchao.quantization.pt2e`` with the quantizer of the
same name; where pt2q is behind, other draws of weights and inputs tell whether by chance. Results
go to ``benchmarks/results/scoreboard.json``, the page to ``docs/scoreboard.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import measuring
import torch
from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as executorchs
from measuring import cpu_seconds, markdown_table
from torch import Tensor
from torchao.quantization.pt2e import quantize_pt2e as peer_flow
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as torchaos
from zoo import NAMES, TRAINED, Subject, subject

import pt2q
from pt2q.deploy import executorch
from pt2q.errors import LoweringError
from pt2q.ir import ops
from pt2q.quantizers import (
    OnnxQDQQuantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_default_x86_inductor_quantization_config,
    get_symmetric_quantization_config,
)

RESULT = measuring.RESULTS / "scoreboard.json"
PAGE = measuring.ROOT / "docs" / "scoreboard.md"
PRODUCTS = ops.LINEAR | ops.CONV | ops.CONV_GENERIC | ops.ADDMM | ops.MM | ops.BMM | ops.MATMUL
LIMIT = 1800
"""Seconds for one architecture."""
BEHIND = 1.0
"""Decibels behind the other stack that the page points out."""
DRAWS = range(1, 5)
"""Other draws of weights and inputs, where pt2q is behind in the first."""


@dataclass(frozen=True)
class Setting:
    """A quantizer in both stacks.

    Args:
        ours: makes pt2q's quantizer.
        peers: makes that of the other stack; None where it has none.
        improves: also measured with ``effort="balanced"``.
        runs: lowered to a program of ExecuTorch and run there.
    """

    ours: Callable[[], Any]
    peers: Callable[[], Any] | None = None
    improves: bool = False
    runs: bool = False


def _xnnpack_in_both(**options: Any) -> dict[str, Callable[[], Any]]:
    return {
        "ours": lambda: XNNPACKQuantizer().set_global(
            get_symmetric_quantization_config(is_per_channel=True, **options)
        ),
        "peers": lambda: executorchs.XNNPACKQuantizer().set_global(
            executorchs.get_symmetric_quantization_config(is_per_channel=True, **options)
        ),
    }


SETTINGS: dict[str, Setting] = {
    "XNNPACK static": Setting(**_xnnpack_in_both(), improves=True, runs=True),
    "XNNPACK dynamic": Setting(**_xnnpack_in_both(is_dynamic=True)),
    "x86 static": Setting(
        lambda: X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config()),
        lambda: torchaos.X86InductorQuantizer().set_global(
            torchaos.get_default_x86_inductor_quantization_config()
        ),
    ),
    "ONNX QDQ": Setting(OnnxQDQQuantizer),
}


# ------------------------------------------------------------------ one architecture


def measured(name: str) -> dict[str, Any]:
    """All settings of one architecture, with plain weights and with outliers."""
    found = {"plain": _with_weights(name, outliers=False)}
    if name not in TRAINED:
        found["outliers"] = _with_weights(name, outliers=True)
    return found


def _with_weights(name: str, *, outliers: bool) -> dict[str, Any]:
    work, program = _drawn(name, outliers, 0)
    found = {
        label: dict(_columns(work, program, setting, lowered=not outliers))
        for label, setting in SETTINGS.items()
    }
    for label, columns in found.items():
        if _both(columns) and _is_behind(columns["pt2q"], columns["peer"]):
            columns["redrawn"] = [_pair(name, outliers, draw, SETTINGS[label]) for draw in DRAWS]
    return found


def _drawn(name: str, outliers: bool, draw: int) -> tuple[Subject, Any]:
    work = subject(name, outliers, draw)
    with torch.no_grad():
        return work, torch.export.export(work.model, work.calibration[0])


def _pair(name: str, outliers: bool, draw: int, setting: Setting) -> list[float]:
    """Decibels in both stacks of another draw."""
    assert setting.peers is not None
    work, program = _drawn(name, outliers, draw)
    ours = _flow(work, program, pt2q, setting.ours)
    peers = _flow(work, program, peer_flow, setting.peers)
    return [_decibels(work, converted) for converted in (ours, peers)]


def _is_behind(ours: dict[str, Any], peers: dict[str, Any]) -> bool:
    """More than the page points out, with no more products quantized."""
    return ours["db"] < peers["db"] - BEHIND and ours["quantized"] <= peers["quantized"]


def _columns(work: Subject, program: Any, setting: Setting, lowered: bool) -> Iterator[Any]:
    lowered = lowered and setting.runs
    yield "pt2q", _tried(lambda: _flow(work, program, pt2q, setting.ours), work, lowered)
    if setting.peers is not None:
        make = setting.peers
        yield "peer", _tried(lambda: _flow(work, program, peer_flow, make), work, False)
    if setting.improves:
        yield "balanced", _tried(lambda: _improved(work, program, setting.ours), work, False)


def _flow(work: Subject, program: Any, stack: Any, make: Callable[[], Any]) -> Any:
    prepared = stack.prepare_pt2e(program.module(check_guards=False), make())
    with torch.no_grad():
        for batch in work.calibration:
            prepared(*batch)
    return stack.convert_pt2e(prepared)


def _improved(work: Subject, program: Any, make: Callable[[], Any]) -> Any:
    return pt2q.quantize_pt2e(program, make(), work.calibration, effort="balanced")


def _tried(make: Callable[[], Any], work: Subject, lowered: bool) -> dict[str, Any]:
    """What a way of quantizing gives, or the error that it ends in."""
    found: dict[str, Any] = {}
    try:
        found["seconds"], converted = cpu_seconds(make)
        found["db"] = _decibels(work, converted)
        found["quantized"] = _products(converted)
        if lowered:
            found |= _in_the_runtime(work, converted)
    except Exception as error:  # whatever a stack raises is the result
        found["error"] = _words(error)
    return found


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _products(converted: Any) -> list[int]:
    """How many of a model's products (convolutions included) read something quantized, and all."""
    found = [node for node in converted.graph.nodes if ops.is_op(node, PRODUCTS)]
    return [sum(any(map(_is_rounded, n.all_input_nodes)) for n in found), len(found)]


def _is_rounded(node: Any) -> bool:
    return "dequantize" in str(node.target)


def _decibels(work: Subject, run: Callable[..., Any]) -> float:
    with torch.no_grad():
        exact = [work.model(*batch) for batch in work.held_out]
        close = [measuring.first(run(*batch)) for batch in work.held_out]
    return float(pt2q.sqnr(_together(exact), _together(close)))


def _together(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _in_the_runtime(work: Subject, converted: Any) -> dict[str, Any]:
    try:
        lowered = executorch.lower(converted, work.held_out[0])
    except LoweringError as error:
        return {"runtime_error": _words(error), "float_lowers": _lowers(work)}
    found = lowered.delegation
    total = found.delegated + found.left
    return {
        "runtime_db": _decibels(work, lowered.load()),
        "delegated": found.delegated,
        "operators": total,
    }


def _lowers(work: Subject) -> bool:
    """Whether the float model runs in ExecuTorch."""
    try:
        executorch.lower(work.model, work.held_out[0])
    except LoweringError:
        return False
    return True


# ------------------------------------------------------------------ all of them


def in_a_process(name: str) -> dict[str, Any]:
    """One architecture in a process of its own, whose death is a result."""
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {LIMIT} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


INTRODUCTION = """# Scoreboard

Made by `python benchmarks/scoreboard.py`: small networks of each architecture of `transformers`
with random weights (*outliers*: two channels of every norm are eight times as large), and networks
with trained weights. Decibels against the float model on held-out inputs; *other* is
`torchao.quantization.pt2e` with the quantizer of the same name, *balanced* is
`quantize_pt2e(..., effort="balanced")`. Where not every product (matrix products and convolutions)
is quantized, it says how many are. *In ExecuTorch* is what pt2q's program gives in the runtime
and how many of its operators XNNPACK runs. Seconds are CPU seconds of quantizing, one thread.

"""


def page(results: dict[str, Any]) -> str:
    """The page."""
    return INTRODUCTION + "\n".join(_sections(results)) + "\n"


def _sections(results: dict[str, Any]) -> Iterator[str]:
    whole = {name: found for name, found in results.items() if "error" not in found}
    yield from _summary(results, whole)
    for label, setting in SETTINGS.items():
        yield f"\n## {label}\n"
        head, rows = _head(setting), [_row(n, w, s[label], setting) for n, w, s in _cases(whole)]
        yield markdown_table(head, rows, figures=len(head) - 1)
    if len(whole) < len(results):
        yield "\n## Not measured\n"
        rest = [[n, found["error"]] for n, found in results.items() if "error" in found]
        yield markdown_table(["architecture", "why"], rest)


def _cases(whole: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, weights in whole.items():
        for kind, settings in weights.items():
            yield name, kind, settings


def _summary(results: dict[str, Any], whole: dict[str, Any]) -> Iterator[str]:
    cells = [
        (f"{name}, {kind}: {label}", columns)
        for name, kind, settings in _cases(whole)
        for label, columns in settings.items()
    ]
    failures = [where for where, c in cells if _fails(c["pt2q"])]
    theirs = [where for where, c in cells if _fails(c.get("peer", {}))]
    both = [(where, c) for where, c in cells if _both(c)]
    behind = [cell for cell in both if _lead(cell[1]) < -BEHIND]
    alike = [cell for cell in behind if _is_behind(cell[1]["pt2q"], cell[1]["peer"])]
    ahead = sum(_lead(columns) > BEHIND for _, columns in both)
    yield f"{len(whole)} of {len(NAMES)} architectures so far, {len(cells)} cases.\n"
    yield f"- pt2q fails in {len(failures)}{_listed(failures)};"
    yield f"  the other stack in {len(theirs)}."
    yield f"- Of {len(both)} cases in both, pt2q is more than {BEHIND:g} dB ahead in {ahead} and"
    yield f"  behind in {len(behind)}; in {len(behind) - len(alike)} of these it quantizes more"
    yield f"  products. The others are {len(alike)}."
    if alike:
        yield "\nAs many products, more than 1 dB behind; then the mean over four other draws of"
        yield "weights and inputs, and how many of these are ahead:\n"
        yield markdown_table(
            ["case", "pt2q", "other", "redrawn", "other", "ahead"], map(_told, alike)
        )


def _fails(found: dict[str, Any]) -> bool:
    return "error" in found or found.get("float_lowers", False)


def _lead(columns: dict[str, Any]) -> float:
    return columns["pt2q"]["db"] - columns["peer"]["db"]


def _told(cell: tuple[str, dict[str, Any]]) -> list[str]:
    where, columns = cell
    first = [f"{columns[stack]['db']:.1f}" for stack in ("pt2q", "peer")]
    drawn = columns.get("redrawn", [])
    if not drawn:
        return [where, *first, "", "", ""]
    means = [f"{statistics.fmean(stack):.1f}" for stack in zip(*drawn, strict=True)]
    ahead = sum(ours >= peers for ours, peers in drawn)
    return [where, *first, *means, f"{ahead} of {len(drawn)}"]


def _both(columns: dict[str, Any]) -> bool:
    return "db" in columns["pt2q"] and "db" in columns.get("peer", {})


def _listed(names: list[str]) -> str:
    return f": {'; '.join(names)}" if names else ""


def _head(setting: Setting) -> list[str]:
    head = ["architecture", "pt2q"]
    head += ["other"] * (setting.peers is not None) + ["balanced"] * setting.improves
    head += ["in ExecuTorch"] * setting.runs
    return [*head, "s", *["other, s"] * (setting.peers is not None)]


def _row(name: str, kind: str, columns: dict[str, Any], setting: Setting) -> list[str]:
    ours, peers = columns["pt2q"], columns.get("peer", {})
    cells = [f"{name}, outliers" if kind == "outliers" else name, _decibel_cell(ours)]
    cells += [_decibel_cell(peers)] * (setting.peers is not None)
    cells += [_decibel_cell(columns["balanced"])] if setting.improves else []
    cells += [_runtime_cell(ours)] if setting.runs else []
    cells.append(_seconds_cell(ours))
    return [*cells, *[_seconds_cell(peers)] * (setting.peers is not None)]


def _decibel_cell(found: dict[str, Any]) -> str:
    if "db" not in found:
        return "error"
    done, of = found["quantized"]
    return f"{found['db']:.1f} ({done} of {of})" if done < of else f"{found['db']:.1f}"


def _runtime_cell(found: dict[str, Any]) -> str:
    if "runtime_error" in found:
        return "does not lower" if found["float_lowers"] else "nor does float"
    if "runtime_db" not in found:
        return ""
    return f"{found['runtime_db']:.1f} ({found['delegated']} of {found['operators']})"


def _seconds_cell(found: dict[str, Any]) -> str:
    return f"{found['seconds']:.1f}" if "seconds" in found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, help="measure these, anew")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--page", action="store_true", help="write the page again, measure nothing")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    measuring.set_up()
    if options.one:
        print(json.dumps(measured(options.one)))
        return
    results = measuring.read_json(RESULT).get("results", {})
    missing = [] if options.page else [name for name in NAMES if name not in results]
    names = options.only or missing
    with ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(in_a_process, name): name for name in names}
        for done in as_completed(running):
            results[running[done]] = done.result()
            print(running[done], json.dumps(done.result()), flush=True)
            results = {key: results[key] for key in NAMES if key in results}
            versions = measuring.versions("torch", "torchao", "executorch", "transformers")
            measuring.write_json(RESULT, {"versions": versions, "results": results})
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
