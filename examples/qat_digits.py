"""Handwritten digits with few bits: what training wins back over calibration alone.

    python examples/qat_digits.py                    a few minutes on one core
    python examples/qat_digits.py --picture docs/qat_digits.svg

The demo's depthwise-separable network loses nothing with 4-bit weights, so it gets fewer here, and
8-bit activations, four ways: calibrated; trained with ranges that follow the weights, in the
default and in the plain form; trained with learned step sizes (LSQ). Accuracy is that of the
converted model, in percent, on digits by hands that were not trained on.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pt2q
from pt2q.demo.digits import Digits, load_digits
from pt2q.demo.net import load_checkpoint
from pt2q.demo.train import jitter
from pt2q.observers import PerChannelMinMaxObserver
from pt2q.quantizers import XNNPACKQuantizer, get_symmetric_quantization_config
from pt2q.training import QATSchedule


def quantizer(bits: int, *, is_qat: bool, learned: bool = False) -> XNNPACKQuantizer:
    """Weights of a few bits with a scale per channel, 8-bit activations."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    config = get_symmetric_quantization_config(
        is_per_channel=True, is_qat=is_qat, weight_qmin=low, weight_qmax=high
    )
    if learned:
        step = pt2q.LearnableFakeQuantize.with_args(observer=PerChannelMinMaxObserver, eps=2**-12)
        config = replace(config, weight=replace(config.weight, observer_or_fake_quant_ctr=step))
    return XNNPACKQuantizer().set_global(config)


def export(net: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The network with a batch of any size."""
    return torch.export.export(net, (images[:4],), dynamic_shapes=({0: torch.export.Dim.AUTO},))


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Percent of the held-out digits classified right."""
    guesses = torch.cat([model(batch).argmax(1) for batch in data.held_out.split(64)])
    return 100.0 * float((guesses == data.held_out_labels).float().mean())


def calibrated(net: nn.Module, data: Digits, bits: int) -> float:
    """Accuracy after calibration alone."""
    prepared = pt2q.prepare_pt2e(export(net, data.train), quantizer(bits, is_qat=False))
    with torch.no_grad():
        for batch in data.train[:256].split(64):
            prepared(batch)
    return accuracy(pt2q.convert_pt2e(prepared), data)


@dataclass
class Run:
    """One training: the accuracy of the fake-quantized model after each epoch."""

    name: str
    learned: bool = False
    fast: bool = True
    curve: list[float] = field(default_factory=list)
    converted: float = 0.0
    seconds: float = 0.0


def optimizer_for(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Weights decay; learned steps, batch norms and biases do not."""
    decaying = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decaying}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, weight_decay=0.01)


def prepared(run: Run, net: nn.Module, data: Digits, bits: int) -> pt2q.QuantGraphModule:
    """A copy of the float network, ready to be trained."""
    exported = export(copy.deepcopy(net).train(), data.train)
    chosen = quantizer(bits, is_qat=True, learned=run.learned)
    return pt2q.prepare_qat_pt2e(exported, chosen, fast=run.fast).train()


def train(run: Run, net: nn.Module, data: Digits, bits: int, epochs: int) -> None:
    """Fine-tune a copy of the float network and convert it."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = prepared(run, net, data, bits)
    start = time.process_time()
    epoch = Epoch.of(run, model, data, steps=epochs * (len(data.train) // 32))
    for _ in range(epochs):
        epoch.run(generator)
        run.curve.append(accuracy(copy.deepcopy(model).eval().apply(pt2q.disable_observer), data))
        print(f"{run.name}: epoch {len(run.curve)}: {run.curve[-1]:.2f}", flush=True)
    run.seconds = time.process_time() - start
    run.converted = accuracy(pt2q.convert_pt2e(model.eval()), data)


@dataclass(frozen=True)
class Epoch:
    """All digits once, in batches of 32 and a random order."""

    model: pt2q.QuantGraphModule
    data: Digits
    learned: bool
    optimizer: torch.optim.Optimizer
    rates: torch.optim.lr_scheduler.LRScheduler
    schedule: QATSchedule

    @classmethod
    def of(cls, run: Run, model: pt2q.QuantGraphModule, data: Digits, steps: int) -> Epoch:
        """What a training of some steps needs."""
        optimizer = optimizer_for(model, 1e-3)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        schedule = QATSchedule(
            model,
            freeze_observers_after=None if run.learned else steps * 3 // 4,
            freeze_statistics_after=steps * 3 // 4,
        )
        return cls(model, data, run.learned, optimizer, rates, schedule)

    def run(self, generator: torch.Generator) -> None:
        """Train on every batch."""
        self.model.train()
        order = torch.randperm(len(self.data.train), generator=generator)
        for index in order[: len(order) // 32 * 32].split(32):
            self.schedule.step()
            self._step(jitter(self.data.train[index], generator), self.data.train_labels[index])
            if self.learned and self.schedule.steps == 4:
                self.model.apply(pt2q.enable_range_learning)  # the first batches set the steps

    def _step(self, images: Tensor, labels: Tensor) -> None:
        logits = self.model(images)
        self.optimizer.zero_grad()
        F.cross_entropy(logits, labels, label_smoothing=0.05).backward()
        self.optimizer.step()
        self.rates.step()


def draw(path: Path, runs: list[Run], bits: int, float_accuracy: float, low: float) -> None:
    """The training curves as a picture; needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pt2q"  # the same picture for the same numbers
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.axhline(float_accuracy, color="black", lw=1, label=f"float {float_accuracy:.1f}")
    axes.axhline(low, color="tab:red", lw=1, ls="--", label=f"calibrated {low:.1f}")
    for run in runs:
        epochs = range(1, len(run.curve) + 1)
        axes.plot(epochs, run.curve, ".-", label=f"{run.name} {run.converted:.1f}")
    axes.set(xlabel="epoch", ylabel="accuracy on held-out digits, %")
    axes.set_title(f"{bits}-bit weights, 8-bit activations", fontsize=10)
    axes.legend(title="converted model", fontsize=8, title_fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--numbers", type=Path, help="where to write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, net = load_digits(), load_checkpoint()
    float_accuracy, low = accuracy(net, data), calibrated(net, data, options.bits)
    print(f"float: {float_accuracy:.2f}, calibrated: {low:.2f}")
    runs = [Run("QAT"), Run("QAT, plain", fast=False), Run("QAT, learned steps", learned=True)]
    for run in runs:
        train(run, net, data, options.bits, options.epochs)
        print(f"{run.name}: converted {run.converted:.2f} in {run.seconds:.0f} s")
    if options.numbers is not None:
        found = {
            "bits": options.bits,
            "float": float_accuracy,
            "calibrated": low,
            "runs": [vars(run) for run in runs],
        }
        options.numbers.write_text(json.dumps(found, indent=1) + "\n")
    if options.picture is not None:
        draw(options.picture, runs, options.bits, float_accuracy, low)


if __name__ == "__main__":
    main()
