"""Networks for tests and benchmarks, defined here so that no model library is needed.

`NETS[name].build(seed)` gives a network in eval mode with settled batch-norm statistics and
`NETS[name].inputs(batch, seed)` inputs that fit it; equal seeds give equal tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Inputs = tuple[Tensor, ...]


# ---------------------------------------------------------------------------------- convolution


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = c_in * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [conv_bn(c_in, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [
            conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(inplace=True),
            conv_bn(hidden, c_out, 1),
        ]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018, table 2; `stages` holds (expansion, channels, repeats, stride)."""

    STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(
        self,
        num_classes: int = 1000,
        stages: tuple[tuple[int, int, int, int], ...] = STAGES,
        stem: int = 32,
        head: int = 1280,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, stem, 3, 2), nn.ReLU6(inplace=True)]
        width = stem
        for expand, channels, repeats, stride in stages:
            for i in range(repeats):
                layers.append(InvertedResidual(width, channels, stride if i == 0 else 1, expand))
                width = channels
        layers += [conv_bn(width, head, 1), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(c_in, width, 3, stride), nn.ReLU(inplace=True), conv_bn(width, width, 3)
        )
        self.shortcut = shortcut(c_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = width * self.expansion
        self.body = nn.Sequential(
            conv_bn(c_in, width, 1),
            nn.ReLU(inplace=True),
            conv_bn(width, width, 3, stride),
            nn.ReLU(inplace=True),
            conv_bn(width, c_out, 1),
        )
        self.shortcut = shortcut(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 and c_in == c_out else conv_bn(c_in, c_out, 1, stride)


class ResNet(nn.Module):
    """He et al. 2015, with the stride on the 3x3 convolution of a bottleneck."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        num_classes: int = 1000,
        width: int = 64,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            conv_bn(3, width, 7, 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        ]
        channels = width
        for stage, depth in enumerate(depths):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(block(channels, width << stage, stride))
                channels = (width << stage) * block.expansion
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.fc(torch.flatten(x, 1))


# --------------------------------------------------------------------------------- transformers


class Attention(nn.Module):
    """Multi-head attention with its matmuls and softmax in sight; `mask` is added to the scores."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (self.split(project(x)) for project in (self.query, self.key, self.value))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.out(mixed.reshape(x.shape))

    def split(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        return x.reshape(batch, length, self.heads, dim // self.heads).transpose(1, 2)


class FeedForward(nn.Sequential):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class PreNormBlock(nn.Module):
    def __init__(self, dim: int, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attention = Attention(dim, heads)
        self.mlp = FeedForward(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNormBlock(nn.Module):
    def __init__(self, dim: int, heads: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attention = Attention(dim, heads)
        self.mlp = FeedForward(dim, 4 * dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.mlp(x))


@dataclass(frozen=True)
class ViTConfig:
    image: int = 224
    patch: int = 16
    dim: int = 384
    depth: int = 12
    heads: int = 6
    num_classes: int = 1000


class ViT(nn.Module):
    """Dosovitskiy et al. 2020; the defaults are ViT-S/16, dim=768 and heads=12 make it ViT-B/16."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, config.dim, config.patch, config.patch)
        count = (config.image // config.patch) ** 2
        self.token = nn.Parameter(torch.randn(1, 1, config.dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, count + 1, config.dim) * 0.02)
        blocks = (PreNormBlock(config.dim, config.heads) for _ in range(config.depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(config.dim, 1e-6)
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


@dataclass(frozen=True)
class BertConfig:
    vocabulary: int = 1000
    length: int = 64
    dim: int = 128
    depth: int = 4
    heads: int = 4
    num_classes: int = 2


class Bert(nn.Module):
    """Devlin et al. 2018: an integer attention mask, and a class read from the first token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.dim)
        self.positions = nn.Embedding(config.length, config.dim)
        self.norm = nn.LayerNorm(config.dim, 1e-12)
        blocks = (PostNormBlock(config.dim, config.heads) for _ in range(config.depth))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.tokens(tokens) + self.positions(places))
        hidden = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for block in self.blocks:
            x = block(x, hidden)
        return self.head(x[:, 0])


class ResidualMLP(nn.Module):
    """`layers` residual steps of one linear each: as deep as a test of scaling wants it."""

    def __init__(self, layers: int, dim: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + F.relu(layer(x)) / len(self.layers)
        return x


# -------------------------------------------------------------------------------- seeds and data


def images(batch: int, size: int, seed: int = 0) -> Inputs:
    """Image-like noise, (batch, 3, size, size): smooth areas with grain on top."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, max(size // 16, 2), max(size // 16, 2), generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return (smooth + 0.2 * torch.randn(batch, 3, size, size, generator=generator),)


def sentences(batch: int, config: BertConfig, seed: int = 0) -> Inputs:
    """Token ids and a mask that hides the padding of all but the first sentence."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.length)
    tokens = torch.randint(config.vocabulary, shape, generator=generator)
    lengths = torch.randint(config.length // 2, config.length, (batch, 1), generator=generator)
    lengths[0] = config.length
    return tokens, (torch.arange(config.length) < lengths).long()


def vectors(batch: int, dim: int, seed: int = 0) -> Inputs:
    return (torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed)),)


def settle(model: nn.Module, *batches: Inputs) -> nn.Module:
    """Give batch norms uneven affines and the mean statistics of `batches`; then eval mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    dropouts = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # None averages over all batches alike
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0.0, 0.2)
        model.train()
        for dropout in dropouts:
            dropout.eval()
        for batch in batches if norms else ():
            model(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


@dataclass(frozen=True)
class Net:
    """A named network: `make()` builds it, `sample(batch, seed)` feeds it."""

    make: Callable[[], nn.Module]
    sample: Callable[[int, int], Inputs]

    def inputs(self, batch: int = 1, seed: int = 0) -> Inputs:
        return self.sample(batch, seed)

    def build(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return settle(self.make(), *(self.sample(4, 1000 + seed + i) for i in range(2)))


def image_net(make: Callable[[], nn.Module], size: int) -> Net:
    return Net(make, lambda batch, seed: images(batch, size, seed))


def vit(config: ViTConfig) -> Net:
    return image_net(lambda: ViT(config), config.image)


def bert(config: BertConfig) -> Net:
    return Net(lambda: Bert(config), lambda batch, seed: sentences(batch, config, seed))


def residual_mlp(layers: int, dim: int = 32) -> Net:
    return Net(lambda: ResidualMLP(layers, dim), lambda batch, seed: vectors(batch, dim, seed))


SMALL_STAGES = ((1, 8, 1, 1), (4, 16, 2, 2), (4, 24, 2, 2))

NETS: dict[str, Net] = {
    "mobilenet_v2": image_net(MobileNetV2, 224),
    "resnet18": image_net(lambda: ResNet(BasicBlock, (2, 2, 2, 2)), 224),
    "resnet50": image_net(lambda: ResNet(Bottleneck, (3, 4, 6, 3)), 224),
    "vit_s16": vit(ViTConfig()),
    "vit_b16": vit(ViTConfig(dim=768, heads=12)),
    "bert": bert(BertConfig()),
    "residual_mlp": residual_mlp(8),
    # The same topologies at a size for unit tests.
    "small_mobilenet": image_net(
        lambda: MobileNetV2(10, SMALL_STAGES, stem=8, head=64, dropout=0.1), 32
    ),
    "small_resnet": image_net(lambda: ResNet(BasicBlock, (1, 1), 10, width=8), 32),
    "small_vit": vit(ViTConfig(image=32, patch=8, dim=48, depth=2, heads=4, num_classes=10)),
    "small_bert": bert(BertConfig(vocabulary=100, length=16, dim=32, depth=2)),
}
