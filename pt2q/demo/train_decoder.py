"""Train the decoder's checkpoint: `python -m pt2q.demo.train_decoder` (five minutes, one core)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import typer
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from pt2q.demo.decoder import CONTEXT, DECODER, ByteDecoder
from pt2q.demo.net import load_checkpoint, save_checkpoint
from pt2q.demo.text import load_text, windows

_BATCH = 12


def bits_per_byte(net: nn.Module, tokens: Tensor) -> float:
    """How many bits a byte costs.

    Args:
        net: gives logits.
        tokens: (count, length + 1); the last of each piece is only predicted.
    """
    with torch.no_grad():
        losses = [
            F.cross_entropy(net(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
            for part in tokens.split(16)
        ]
    return float(torch.stack(losses).mean()) / math.log(2)


def train(text: Tensor, steps: int, seed: int = 0) -> ByteDecoder:
    """Train a decoder; the seed fixes every random choice."""
    torch.manual_seed(seed)
    net = ByteDecoder()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=steps, pct_start=0.1
    )
    with Progress() as progress:
        task = progress.add_task("training", total=steps)
        for step in range(steps):
            tokens = windows(text, CONTEXT + 1, _BATCH, seed=seed * steps + step)
            logits = net(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, description=f"loss {loss.item():.3f}")
    return net.eval()


def main(steps: int = 1100, out: Path = DECODER) -> None:
    """Train, save the checkpoint, and say what the saved weights reach."""
    torch.set_num_threads(1)
    text = load_text()
    save_checkpoint(train(text.train, steps), out)
    saved = load_checkpoint(out, ByteDecoder)
    for name, part in (("train", text.train), ("held out", text.held_out)):
        print(f"{name:<9} {bits_per_byte(saved, windows(part, CONTEXT + 1, 64)):.3f} bits per byte")


if __name__ == "__main__":
    typer.run(main)
