"""Train the demo's checkpoints: `python -m pt2q.demo.train` (a few minutes each on one core)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q.demo.digits import Digits, load_digits, warp
from pt2q.demo.net import CHECKPOINT, DigitNet, Net, load_checkpoint, save_checkpoint
from pt2q.demo.vision import MOBILENET_V3, VIT, DigitMobileNetV3, DigitViT

_BATCH = 32
NETS: dict[str, tuple[Callable[[], nn.Module], Path, int]] = {
    "digits": (DigitNet, CHECKPOINT, 30),
    "vit": (DigitViT, VIT, 70),
    "mobilenet_v3": (DigitMobileNetV3, MOBILENET_V3, 60),
}
"""By name: what makes a network, where its checkpoint is, for how many epochs it is trained."""


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images classified right, in percent."""
    net.eval()
    with torch.no_grad():
        guesses = torch.cat([net(batch).argmax(1) for batch in images.split(64)])
    return 100.0 * float((guesses == labels).float().mean())


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images turned by up to 12 degrees, scaled by up to 12%, moved by up to 8%."""
    n = len(images)
    uniform = torch.rand(4, n, generator=generator) * 2.0 - 1.0
    angle, scale = uniform[0] * math.radians(12.0), 1.0 + 0.12 * uniform[1]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    move = 0.16 * uniform[2:]  # the grid spans [-1, 1]
    rows = torch.stack([cos, -sin, move[0], sin, cos, move[1]], dim=1)
    return warp(images, rows.reshape(n, 2, 3))


def train(data: Digits, epochs: int, make: Callable[[], Net], seed: int = 0) -> Net:
    """Train a network on the training part of `data`; the seed fixes every random choice."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = make()
    steps = epochs * (len(data.train) // _BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}")) as progress:
        task = progress.add_task("training", total=steps, loss=math.nan)
        for _ in range(epochs):
            net.train()
            order = torch.randperm(len(data.train), generator=generator)
            for index in order[: steps // epochs * _BATCH].split(_BATCH):
                logits = net(jitter(data.train[index], generator))
                loss = F.cross_entropy(logits, data.train_labels[index], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(task, advance=1, loss=loss.item())
    return net.eval()


def main(net: str = "digits", epochs: int | None = None, out: Path | None = None) -> None:
    """Train a network, save the checkpoint, and say what the saved weights reach."""
    torch.set_num_threads(1)
    make, checkpoint, usual = NETS[net]
    data, path = load_digits(), out or checkpoint
    save_checkpoint(train(data, epochs or usual, make), path)
    saved = load_checkpoint(path, make)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    print(f"train    {accuracy(saved, data.train, data.train_labels):6.2f} %")
    print(f"held out {accuracy(saved, data.held_out, data.held_out_labels):6.2f} %")


if __name__ == "__main__":
    typer.run(main)
