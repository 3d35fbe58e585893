"""The architectures of the scoreboard: small, with random weights, or trained and shipped.

Those of `transformers` are made from their configurations, so nothing is fetched. Their weights are
drawn anew with the variance that keeps activations of one size, and norms get uneven weights; with
outliers, two channels of every norm are eight times as large, as those of trained transformers are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import first
from support import minilm
from torch import Tensor, nn

from pt2q.demo.decoder import CONTEXT, DECODER, ByteDecoder
from pt2q.demo.digits import load_digits
from pt2q.demo.net import CHECKPOINT, DigitNet, load_checkpoint
from pt2q.demo.text import load_text, windows
from pt2q.demo.vision import MOBILENET_V3, VIT, DigitMobileNetV3, DigitViT

CALIBRATION, HELD_OUT = 8, 12
OUTLIER = 8.0
WIDTH, TOKENS, IMAGE = 64, 24, 64
SIZES: Mapping[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 2 * WIDTH,
    "head_dim": WIDTH // 4,
    "rotary_dim": WIDTH // 4,
    "vocab_size": 200,
    "max_position_embeddings": 64,
    "use_cache": False,
    "image_size": IMAGE,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": WIDTH,
    "d_model": WIDTH,
    "d_kv": 16,
    "d_ff": 2 * WIDTH,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
}
"""What of it a configuration has is set; the rest is left as it is."""
_WINDOWS = {"depths": [2, 2], "num_heads": [2, 4], "embed_dim": 24, "window_size": 4}
_STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [24, 48, 96, 192]}
OF_ONE: Mapping[str, Mapping[str, Any]] = {
    "squeezebert": {"embedding_size": WIDTH},
    "bit": {**_STAGES, "embedding_size": 24, "num_groups": 8},
    "convnext": _STAGES,
    "convnextv2": _STAGES,
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "regnet": {**_STAGES, "groups_width": 8, "embedding_size": 24},
    "resnet": {**_STAGES, "embedding_size": 24},
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
}
"""What only one architecture asks for; convolution nets are large as they come."""
BY_STAGE = frozenset({"hidden_size", "num_hidden_layers", "num_attention_heads", "num_heads"})
"""Of convolution nets these are lists, one for each stage."""

FAMILIES = {
    "text": """albert bert biogpt bloom camembert ctrl deberta deberta-v2 distilbert electra falcon
        flaubert fnet gemma gpt2 gpt_neo gpt_neox gptj granite llama mistral mixtral modernbert
        mpnet mpt olmo2 openai-gpt opt phi phi3 qwen2 qwen3 qwen3_moe rembert roberta roformer
        squeezebert stablelm xglm xlm xlnet""",
    "pairs": "bart t5 blenderbot-small pegasus m2m_100",
    "images": """beit bit convnext convnextv2 deit dinov2 efficientnet levit mobilenet_v1
        mobilenet_v2 mobilevit poolformer pvt_v2 regnet resnet segformer swiftformer swin swinv2
        vit""",
    "audio": "wav2vec2 hubert",
}
KIND_OF = {name: kind for kind, names in FAMILIES.items() for name in names.split()}


@dataclass
class Subject:
    """A float model and its batches: to calibrate on, and held out."""

    model: nn.Module
    calibration: list[tuple[Tensor, ...]]
    held_out: list[tuple[Tensor, ...]] = field(default_factory=list)


class OneOutput(nn.Module):
    """A model of `transformers`, called by position, of which the first tensor is kept.

    Args:
        model: the model.
        names: of its inputs, in the order in which they are given.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return first(self.model(**dict(zip(self.names, inputs, strict=True))))


def _tokens(length: int) -> Tensor:
    return torch.randint(3, 199, (1, length))


def _images() -> Tensor:
    return torch.randn(1, 3, IMAGE, IMAGE)


SAMPLES: dict[str, tuple[tuple[str, ...], Callable[[], tuple[Tensor, ...]]]] = {
    "text": (("input_ids",), lambda: (_tokens(TOKENS),)),
    "pairs": (("input_ids", "decoder_input_ids"), lambda: (_tokens(TOKENS), _tokens(TOKENS // 2))),
    "images": (("pixel_values",), lambda: (_images(),)),
    "audio": (("input_values",), lambda: (torch.randn(1, 4000),)),
}


def _configured(name: str) -> Any:
    """A configuration of a small model."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(name, **OF_ONE.get(name, {}))
    for key, value in SIZES.items():
        there = getattr(config, key, None)
        staged = key in BY_STAGE and (
            isinstance(there, (list, tuple)) or config.attribute_map.get(key) == "num_stages"
        )
        if there is not None and not staged:
            with suppress(AttributeError, NotImplementedError):  # worked out from others, or none
                setattr(config, key, value)
    padding = getattr(config, "pad_token_id", None)
    if padding is not None and padding >= SIZES["vocab_size"]:
        config.pad_token_id = 0
    return config


def _redraw(model: nn.Module, outliers: bool) -> None:
    """Weights that keep the size of activations, and uneven norms."""
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if not isinstance(weight, Tensor):
                continue
            if weight.dim() > 1 and not isinstance(module, nn.Embedding):
                weight.normal_(0.0, (weight[0].numel()) ** -0.5)
            elif weight.dim() == 1:
                weight.uniform_(0.5, 1.5)
                weight[:2] *= OUTLIER if outliers else 1.0


def _from_transformers(name: str, outliers: bool, draw: int) -> Subject:
    from transformers import AutoModel

    torch.manual_seed(draw)
    names, sample = SAMPLES[KIND_OF[name]]
    model = AutoModel.from_config(_configured(name)).float().eval()
    _redraw(model, outliers)
    return _subject(OneOutput(model, names), [sample() for _ in range(CALIBRATION + HELD_OUT)])


def _subject(model: nn.Module, batches: list[tuple[Tensor, ...]]) -> Subject:
    return Subject(model, batches[:CALIBRATION], batches[CALIBRATION:][:HELD_OUT])


def _digits(path: Path, make: Callable[[], nn.Module], draw: int) -> Subject:
    data = load_digits()
    images = [
        *data.train[draw * CALIBRATION :][:CALIBRATION].split(1),
        *data.held_out[draw * HELD_OUT :][:HELD_OUT].split(1),
    ]
    return _subject(load_checkpoint(path, make), [(image,) for image in images])


def _decoder(draw: int) -> Subject:
    parts = windows(load_text().held_out, CONTEXT, CALIBRATION + HELD_OUT, seed=1 + draw).split(1)
    return _subject(load_checkpoint(DECODER, ByteDecoder), [(part,) for part in parts])


def _minilm(draw: int) -> Subject:
    names = ("input_ids", "attention_mask")
    sentences = minilm.sentences()[draw * (CALIBRATION + HELD_OUT) :]
    found = [tuple(b[n] for n in names) for b in minilm.encode(sentences)]
    return _subject(OneOutput(minilm.load(), names), found)


TRAINED: dict[str, Callable[[int], Subject]] = {
    "digits": partial(_digits, CHECKPOINT, DigitNet),
    "digits_vit": partial(_digits, VIT, DigitViT),
    "digits_mobilenet_v3": partial(_digits, MOBILENET_V3, DigitMobileNetV3),
    "byte_decoder": _decoder,
    "minilm": _minilm,
}
NAMES = (*TRAINED, *KIND_OF)


def subject(name: str, outliers: bool = False, draw: int = 0) -> Subject:
    """An architecture of the zoo.

    Args:
        name: one of `NAMES`.
        outliers: with outlier channels; what is trained has its own.
        draw: which of many draws of weights and inputs; trained weights stay.
    """
    return TRAINED[name](draw) if name in TRAINED else _from_transformers(name, outliers, draw)
