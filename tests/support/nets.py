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

from support.attention_nets import Bert, BertConfig, ViT, ViTConfig
from support.convnets import BasicBlock, Bottleneck, MobileNetV2, ResNet
from support.samples import Inputs, images, sentences, vectors
from support.seeds import seeded


class ResidualMLP(nn.Module):
    """`layers` residual steps of one linear each: as deep as a test of scaling wants it."""

    def __init__(self, layers: int, dim: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + F.relu(layer(x)) / len(self.layers)
        return x


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
        with seeded(seed):
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
