"""Twenty small models in each of which one thing is wrong, and the same without the fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan
from torch.nn import functional as F

from pt2q.observers import HistogramObserver, MinMaxObserver
from pt2q.quantizers import (
    QuantizationConfig,
    TableQuantizer,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)

WIDTH = 16


@dataclass(frozen=True)
class Planted:
    """A model with data, and where its fault is.

    Args:
        model: the network.
        quantizer: makes its quantizer.
        calibration, held_out: batches.
        right: nodes or modules, one of which has to be named.
        qat: it is prepared for training.
    """

    model: nn.Module
    quantizer: Callable[[], TableQuantizer]
    calibration: list[Any]
    held_out: list[Any]
    right: frozenset[str]
    qat: bool = False


def config(**options: Any) -> QuantizationConfig:
    return get_symmetric_quantization_config(**{"is_per_channel": True, **options})


def everywhere(chosen: QuantizationConfig | None = None) -> Callable[[], TableQuantizer]:
    return lambda: XNNPACKQuantizer().set_global(chosen or config())


def observed_by(observer: Any) -> QuantizationConfig:
    """Activations are observed so; a scale is at least 2**-12."""
    chosen = config()
    constructor = observer.with_args(eps=2**-12)
    spec = replace(chosen.input_activation, observer_or_fake_quant_ctr=constructor)
    return replace(chosen, input_activation=spec, output_activation=spec)


def rows(count: int, *shape: int, seed: int = 1) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(*(shape or (32, WIDTH)), generator=generator),) for _ in range(count)]


class Mlp(nn.Module):
    """Three layers; what comes out of the first two can be changed and changed back."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("factor", torch.ones(WIDTH))
        self.register_buffer("back", torch.ones(WIDTH))

    factor: Tensor
    back: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        x = self.two(x)
        return self.three(F.relu(x))


def scaled(model: Mlp, name: str, after: str, factor: Tensor) -> None:
    """Multiply the outputs of a layer, and divide them out of the next, through a relu."""
    one, other = model.get_submodule(name), model.get_submodule(after)
    assert isinstance(one, nn.Linear) and isinstance(other, nn.Linear)
    with torch.no_grad():
        one.weight.mul_(factor[:, None])
        one.bias.mul_(factor)
        other.weight.div_(factor)


def case(model: nn.Module, right: set[str], **options: Any) -> Planted:
    return Planted(
        model,
        options.get("quantizer", everywhere()),
        options.get("calibration", rows(8)),
        options.get("held_out", rows(6, seed=2)),
        frozenset(right),
        options.get("qat", False),
    )


# ------------------------------------------------------------------ channels


def activation_channel(fault: bool) -> Planted:
    model = Mlp()
    if fault:
        scaled(model, "one", "two", torch.tensor([300.0, *[1.0] * (WIDTH - 1)]))
    return case(model, {"relu", "linear", "one"})


def weight_column(fault: bool) -> Planted:
    """One large number in a weight, of an input that is nearly always small."""
    model = Mlp()
    with torch.no_grad():
        model.one.weight[3] = model.one.weight[3] * 1e-3
        model.one.bias[3] = 0.0
        if fault:
            model.two.weight[5, 3] = 200.0
    return case(model, {"two_weight", "two"}, quantizer=everywhere(config(is_per_channel=False)))


class Convs(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 4, 3, padding=1),
        )  # fmt: skip


def unequal_channels(fault: bool) -> Planted:
    model = Convs()
    if fault:
        factor = 400 ** torch.linspace(-0.5, 0.5, 8)
        with torch.no_grad():
            model[0].weight.mul_(factor[:, None, None, None])
            model[0].bias.mul_(factor)
            model[2].weight.div_(factor[:, None, None])
    images = {"calibration": rows(6, 2, 3, 8, 8), "held_out": rows(4, 2, 3, 8, 8, seed=2)}
    quantizer = everywhere(config(is_per_channel=False))
    return case(model, {"_0_weight", "_2_weight", "relu", "0", "2"}, quantizer=quantizer, **images)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.branch(x)))


def residual_outlier(fault: bool) -> Planted:
    model = Residual()
    with torch.no_grad():
        model.head.weight[:, 2] = model.head.weight[:, 2] * 1e-3
        if fault:
            model.branch.bias[2] += 500.0
    return case(model, {"add", "relu_1", "linear_1", "branch"})


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 4
        return self.out(scores.softmax(-1) @ self.value(x))


def sequences(model: nn.Module, right: set[str], **options: Any) -> Planted:
    data = {"calibration": rows(6, 2, 6, WIDTH), "held_out": rows(4, 2, 6, WIDTH, seed=2)}
    return case(model, right, **data, **options)


def key_channel(fault: bool) -> Planted:
    model = Attention()
    with torch.no_grad():
        if fault:
            model.key.weight[3] *= 500
            model.key.bias[3] *= 500
            model.query.weight[3] /= 500
            model.query.bias[3] /= 500
            model.query.weight *= 3
    right = {"linear_1", "transpose", "key", "query", "linear", "matmul"}
    return sequences(model, right)


# ------------------------------------------------------------------ ranges


def floor_of_an_activation(fault: bool) -> Planted:
    model = Mlp()
    if fault:
        scaled(model, "one", "two", torch.full((WIDTH,), 1e-4))
    quantizer = everywhere(observed_by(HistogramObserver))
    return case(model, {"relu", "linear", "one"}, quantizer=quantizer)


def floor_of_a_weight(fault: bool) -> Planted:
    model = Mlp()
    if fault:
        with torch.no_grad():
            model.one.weight.mul_(1e-5)
            model.one.bias.mul_(1e-5)
            model.two.weight.mul_(1e5)
    quantizer = everywhere(observed_by(HistogramObserver))
    return case(model, {"one_weight", "relu", "linear", "one"}, quantizer=quantizer)


def narrow_calibration(fault: bool) -> Planted:
    """Calibrated on darker pictures than those that come."""
    data = [(x * (0.1 if fault else 1.0),) for (x,) in rows(8)]
    return case(Mlp(), {"x", "linear", "relu", "linear_1", "linear_2"}, calibration=data)


def wide_calibration(fault: bool) -> Planted:
    """Calibrated on data in 0 to 255 that comes in 0 to 1."""
    data = [(x * (60.0 if fault else 1.0),) for (x,) in rows(8)]
    return case(Mlp(), {"x", "linear", "relu", "linear_1", "linear_2"}, calibration=data)


def repeated_sample(fault: bool) -> Planted:
    some = (torch.cat([rows(1)[0][0][:1] * 0.3] * 32),)
    data = [some] * 8 if fault else rows(8)
    return case(Mlp(), {"x", "linear", "relu", "linear_1", "linear_2"}, calibration=data)


def spike_in_calibration(fault: bool) -> Planted:
    """One sample of calibration is broken, and the observer takes the extremes."""
    data = rows(8)
    if fault:
        data[3] = (data[3][0].clone(),)
        data[3][0][0, 0] = 3000.0
    quantizer = everywhere(observed_by(MinMaxObserver))
    right = {"x", "linear", "relu", "linear_1", "linear_2"}
    return case(Mlp(), right, calibration=data, quantizer=quantizer)


class Together(nn.Module):
    """Values of different size, put side by side under one scale."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(2 * WIDTH, 4)
        with torch.no_grad():
            self.two.weight.mul_(factor)
            self.two.bias.mul_(factor)
            self.head.weight[:, WIDTH:] /= factor

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(x), self.two(x)], 1))


def concatenation(fault: bool) -> Planted:
    return case(Together(300.0 if fault else 1.0), {"cat", "linear", "linear_1", "one", "two"})


# ------------------------------------------------------------------ bits


def few_bits_of_activations(fault: bool) -> Planted:
    few = config(act_qmin=-4, act_qmax=3)

    def quantizer() -> TableQuantizer:
        made = XNNPACKQuantizer().set_global(config())
        return made.set_module_name("two", few) if fault else made

    return case(Mlp(), {"linear_1", "relu", "relu_1", "two"}, quantizer=quantizer)


def few_bits_of_a_weight(fault: bool) -> Planted:
    few = config(weight_qmin=-2, weight_qmax=1)

    def quantizer() -> TableQuantizer:
        made = XNNPACKQuantizer().set_global(config())
        return made.set_module_name("two", few) if fault else made

    return case(Mlp(), {"two_weight", "two"}, quantizer=quantizer)


# ------------------------------------------------------------------ masks


def mask(fault: bool) -> Planted:
    """A mask that is added where the quantizer does not take it for one, and shares a range."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.register_buffer("hidden", torch.zeros(WIDTH))
            self.hidden[::4] = -5e3 if fault else -5.0

        hidden: Tensor

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.relu(self.one(x) + self.two(x * 0.1) + self.hidden))

    model = Masked()
    with torch.no_grad():
        model.one.bias[::4] = -5e3 if fault else -5.0
    return case(model, {"add", "add_1", "linear", "one", "linear_1"})


# ------------------------------------------------------------------ control flow, dynamic, training


def body_of_cond(fault: bool) -> Planted:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.other = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(
                x.sum() > 0,
                lambda x: self.two(F.relu(self.one(x))),
                lambda x: self.other(x),
                (x,),
            )

    model = Branch()
    if fault:
        scaled(model, "one", "two", torch.tensor([1000.0, *[1.0] * (WIDTH - 1)]))  # type: ignore[arg-type]
    data = [(x + (-1) ** i,) for i, (x,) in enumerate(rows(8))]
    held_out = [(x + (-1) ** (i // 2),) for i, (x,) in enumerate(rows(8, seed=2))]
    right = {"true_graph_0.relu", "true_graph_0.linear", "one"}
    return case(model, right, calibration=data, held_out=held_out)


def body_of_scan(fault: bool) -> Planted:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.head = nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            def step(carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
                y = self.two(F.relu(self.one(x))) * 0.5 + carry * 0.5
                return y, y.clone()

            _, found = scan(step, torch.zeros(WIDTH), x, dim=0)
            return self.head(found)

    model = Recurrent()
    if fault:
        scaled(model, "one", "two", torch.tensor([1000.0, *[1.0] * (WIDTH - 1)]))  # type: ignore[arg-type]
    data = {"calibration": rows(6, 6, WIDTH), "held_out": rows(4, 6, WIDTH, seed=2)}
    return case(model, {"scan_combine_graph_0.relu", "scan_combine_graph_0.linear", "one"}, **data)


def dynamic_weight(fault: bool) -> Planted:
    """A weight of four bits with a large number in each channel, under dynamic activations."""
    model = Mlp()
    with torch.no_grad():
        model.one.weight[3] *= 1e-3
        model.one.bias[3] = 0.0
        if fault:
            model.two.weight[:, 3] = 5.0

    def quantizer() -> TableQuantizer:
        made = XNNPACKQuantizer().set_global(config(is_dynamic=True))
        few = config(is_dynamic=True, weight_qmin=-8, weight_qmax=7)
        return made.set_module_name("two", few) if fault else made

    return case(model, {"two_weight", "two"}, quantizer=quantizer)


def dynamic_channel(fault: bool) -> Planted:
    model = Mlp()
    if fault:
        scaled(model, "one", "two", torch.tensor([3000.0, *[1.0] * (WIDTH - 1)]))
    quantizer = everywhere(config(is_dynamic=True))
    return case(model, {"relu", "linear", "one"}, quantizer=quantizer)


def training(fault: bool) -> Planted:
    """Before quantization-aware training: unequal channels under one scale."""
    model = Mlp()
    if fault:
        scaled(model, "one", "two", 1000 ** torch.linspace(-0.5, 0.5, WIDTH))
    quantizer = everywhere(config(is_qat=True, is_per_channel=False))
    right = {"one_weight", "two_weight", "relu", "one", "two"}
    return case(model, right, quantizer=quantizer, qat=True)


FAULTS: dict[str, Callable[[bool], Planted]] = {
    made.__name__: made
    for made in (
        activation_channel, weight_column, unequal_channels, residual_outlier, key_channel,
        floor_of_an_activation, floor_of_a_weight, narrow_calibration, wide_calibration,
        repeated_sample, spike_in_calibration, concatenation, few_bits_of_activations,
        few_bits_of_a_weight, mask, body_of_cond, body_of_scan, dynamic_weight, dynamic_channel,
        training,
    )
}  # fmt: skip
