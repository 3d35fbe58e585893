"""From a saved model to a `.pte` by the command line, beside the same script on the other stack.

    python benchmarks/command.py                    MobileNetV2 at 224 pixels, 32 images; 5 minutes
    python benchmarks/command.py --repeats 3

``pt2q quantize`` and `benchmarks/command_peer.py` take turns, each a fresh process of one thread:
CPU seconds and peak of memory, of the whole process. ``pt2q quantize`` also holds a tenth of the
images out, and compares float and the written file on them in the runtime. Last, one run of
``pt2q quantize`` says how many of its seconds are spent in ExecuTorch's own lowering, and in
importing. Results go to ``benchmarks/results/command.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from support.nets import NETS

HERE = Path(__file__).parent
RESULT = measuring.RESULTS / "command.json"
IMAGES, PIXELS = 32, 224
QUANTIZE = ["quantize", "model.pt2", "--calibration", "images.npz", "-o"]
COMMANDS = {
    "pt2q": ["-m", "pt2q", *QUANTIZE, "pt2q.pte"],
    "peer": [str(HERE / "command_peer.py"), "model.pt2", "images.npz", "peer.pte"],
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TERM": "dumb"}


def write_inputs(folder: Path) -> None:
    """The model as a user saves it, and its images."""
    torch.manual_seed(0)
    net = NETS["mobilenet_v2"].make().eval()
    images = torch.randn(IMAGES, 3, PIXELS, PIXELS)
    torch.export.save(torch.export.export(net, (images[:1],)), folder / "model.pt2")
    np.savez(folder / "images.npz", x=images.numpy())


def run(command: list[str], folder: Path) -> dict[str, float]:
    """CPU seconds and peak of memory, in megabytes, of a Python process."""
    said = folder / "said"
    with said.open("w") as out:
        environment = os.environ | ONE_THREAD
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=out, stderr=out
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = status
    if status:
        raise RuntimeError(f"{command}: {said.read_text()}")
    return {"seconds": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss / 1024}


def within() -> dict[str, float]:
    """CPU seconds of this process, and of it those of the command's parts."""
    from executorch import exir

    from pt2q.app import cli

    found = {"lowering": 0.0}
    _timed(exir, "to_edge_transform_and_lower", found)
    _timed(exir.EdgeProgramManager, "to_executorch", found)
    imported = time.process_time()
    cli.app([*QUANTIZE, "timed.pte"], standalone_mode=False)
    whole = time.process_time()
    return found | {"import": imported, "rest": whole - imported - found["lowering"]}


def _timed(owner: Any, name: str, found: dict[str, float]) -> None:
    call = getattr(owner, name)

    def timed(*args: Any, **options: Any) -> Any:
        seconds, result = measuring.cpu_seconds(lambda: call(*args, **options))
        found["lowering"] += seconds
        return result

    setattr(owner, name, timed)


def measured(repeats: int) -> dict[str, Any]:
    """Samples of both, in turn, and the parts of ours."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        for _ in range(repeats):
            for stack, command in COMMANDS.items():
                samples[stack].append(run(command, folder))
                print(stack, samples[stack][-1], flush=True)
        run([str(HERE / "command.py"), "--within"], folder)
        parts = json.loads((folder / "parts.json").read_text())
        sizes = {stack: (folder / f"{stack}.pte").stat().st_size for stack in COMMANDS}
    return {"samples": samples, "parts": parts, "bytes": sizes}


def summary(found: dict[str, Any]) -> str:
    """A line for each figure."""
    middle = {
        stack: {key: statistics.median(one[key] for one in runs) for key in ("seconds", "mb")}
        for stack, runs in found["samples"].items()
    }
    ours, peers = middle["pt2q"], middle["peer"]
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found["parts"].items())
    return (
        f"pt2q {ours['seconds']:.1f} s, peer {peers['seconds']:.1f} s: "
        f"{ours['seconds'] / peers['seconds']:.2f} of it; "
        f"peak {ours['mb']:.0f} MB, peer {peers['mb']:.0f} MB; of one run of pt2q {parts}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within:
        Path("parts.json").write_text(json.dumps(within()))
        return
    found = measured(options.repeats)
    measuring.write_json(RESULT, found | {"versions": measuring.versions("torch", "torchao")})
    print(summary(found))


if __name__ == "__main__":
    main()
