"""scikit-learn's handwritten digits: 1,797 images of 8x8, split once and for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pt2q.demo.net import IMAGE
from pt2q.optional import optional_modules

_TRAIN = 1000


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 32, 32) in [-1, 1] with labels (n,); nothing held out was trained on."""

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def load_digits() -> Digits:
    """The data with its fixed split.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    (datasets,) = optional_modules("sklearn.datasets", extra="demo")
    data = datasets.load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 8.0 - 1.0
    labels = torch.from_numpy(data.target).long()
    images = warp(small, torch.eye(2, 3).expand(len(small), 2, 3))
    # In the order of the data set: the last ones are held out.
    return Digits(images[:_TRAIN], labels[:_TRAIN], images[_TRAIN:], labels[_TRAIN:])


def warp(images: Tensor, theta: Tensor) -> Tensor:
    """Sample images at 32x32 under affine maps; the background continues outside.

    Args:
        images: (n, 1, h, w).
        theta: (n, 2, 3), as for `torch.nn.functional.affine_grid`.
    """
    grid = F.affine_grid(theta, [len(images), 1, IMAGE, IMAGE], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
