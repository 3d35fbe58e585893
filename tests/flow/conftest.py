"""Every pass is verified while the tests of the flow run, and nothing records gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pt2q.passes import verified_passes


@pytest.fixture(autouse=True)
def every_pass_is_verified() -> Iterator[None]:
    with verified_passes(), torch.no_grad():
        yield
