"""The networks that take every road, with inputs and what their task asks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from support import minilm
from support.nets import NETS
from torch import Tensor

from pt2q.demo.digits import load_digits
from pt2q.demo.net import load_checkpoint


@dataclass
class Subject:
    """A float model with inputs: (args, kwargs) to calibrate with, and held out."""

    model: torch.nn.Module
    calibration: list[Any]
    held_out: list[Any]
    quality: Callable[[list[Tensor], list[Tensor]], dict[str, float]]


def random_net(name: str) -> Subject:
    net = NETS[name]
    batches = [((net.inputs(1, seed=i)), {}) for i in range(12)]
    return Subject(net.build(0), batches[:8], batches[8:], lambda f, q: {})


def digits() -> Subject:
    data = load_digits()
    labels = data.held_out_labels

    def quality(floats: list[Tensor], results: list[Tensor]) -> dict[str, float]:
        def right(outputs: list[Tensor]) -> float:
            guesses = torch.stack([o.argmax() for o in outputs])
            return 100 * float((guesses == labels).float().mean())

        return {"accuracy": right(results), "float_accuracy": right(floats)}

    held_out = [((x,), {}) for x in data.held_out.split(1)]
    return Subject(
        load_checkpoint(), [((x,), {}) for x in data.train[:64].split(1)], held_out, quality
    )


def sentence_encoder() -> Subject:
    batches = [((), inputs) for inputs in minilm.encode(minilm.sentences())]
    masks = [inputs["attention_mask"] for _, inputs in batches[minilm.CALIBRATION :]]

    def quality(floats: list[Tensor], results: list[Tensor]) -> dict[str, float]:
        pairs = zip(floats, results, masks, strict=True)
        cosines = [(minilm.embedding(f, m) * minilm.embedding(q, m)).sum() for f, q, m in pairs]
        return {"cosine": float(torch.stack(cosines).mean())}

    count = minilm.CALIBRATION
    return Subject(minilm.load(), batches[:count], batches[count:], quality)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "digits": digits,
    "mobilenet_v2": lambda: random_net("mobilenet_v2"),
    "resnet50": lambda: random_net("resnet50"),
    "minilm": sentence_encoder,
}
