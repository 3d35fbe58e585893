from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchao.quantization.pt2e import observer as peers

from pt2q.errors import NoDataError, NonFiniteActivationError
from pt2q.observers.standard import (
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    NoopObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    batched_qparams,
    disable_observer,
    enable_observer,
)

PER_TENSOR = [MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver]
PER_CHANNEL = [PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver]
COLLECTING = PER_TENSOR + PER_CHANNEL
INF = float("inf")


def seen(observer: ObserverBase, *batches: Tensor) -> tuple[Tensor, Tensor]:
    for batch in batches:
        assert observer(batch) is batch
    return observer.calculate_qparams()


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


# ---------------------------------------------------------------------------- construction


@pytest.mark.parametrize("cls", [*COLLECTING, PlaceholderObserver, NoopObserver])
def test_constructor_is_a_value(cls) -> None:
    made = cls.with_args(dtype=torch.uint8, eps=2**-12)
    assert made == cls.with_args(eps=2**-12).with_args(dtype=torch.uint8)
    assert made != cls.with_args(dtype=torch.uint8)
    assert hash(made) == hash(copy.deepcopy(made)) and pickle.loads(pickle.dumps(made)) == made
    observer = made(quant_min=1)
    assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.uint8, 1, 255)
    assert observer.eps == 2**-12 and "uint8" in repr(observer) and "uint8" in repr(made)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"reduce_range": True}, TypeError),
        ({"dtype": torch.int64}, TypeError),
        ({"dtype": torch.float16}, TypeError),
        ({"quant_min": 5, "quant_max": 5}, ValueError),
        ({"quant_max": 200}, ValueError),
        ({"qscheme": torch.per_channel_affine}, ValueError),
    ],
)
def test_wrong_arguments_are_errors(arguments, error) -> None:
    with pytest.raises(error):
        MinMaxObserver(**arguments)


def test_more_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="per-channel"):
        PerChannelMinMaxObserver(qscheme=torch.per_tensor_affine)
    with pytest.raises(ValueError, match="averaging_constant"):
        MovingAverageMinMaxObserver(averaging_constant=0.0)
    with pytest.raises(ValueError, match="power of two"):
        HistogramObserver(bins=100)
    with pytest.raises(ValueError, match="zero point"):
        FixedQParamsObserver(scale=1.0, zero_point=300)


def test_observers_that_need_no_data() -> None:
    fixed = FixedQParamsObserver(dtype=torch.uint8, scale=1 / 256, zero_point=3)
    assert fixed.has_data
    assert same(fixed.calculate_qparams(), (torch.tensor([1 / 256]), torch.tensor([3])))
    half = PlaceholderObserver(dtype=torch.float16)
    assert half.quant_min is None and half.quant_max is None and half.has_data
    dynamic = PlaceholderObserver(dtype=torch.int8, is_dynamic=True, per_token=True)
    assert (dynamic.per_token, dynamic.quant_min) == (True, -128)
    x = torch.arange(3)
    assert dynamic(x) is x  # whatever passes: nothing is observed
    with pytest.raises(NoDataError, match="run time"):
        dynamic.calculate_qparams()


# ---------------------------------------------------------------------------- what is observed


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["MinMaxObserver", "MovingAverageMinMaxObserver"])
def test_per_tensor_agrees_with_the_peer(name, dtype, symmetric) -> None:
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    ours = globals()[name](dtype=dtype, qscheme=scheme)
    peer = getattr(peers, name)(dtype=dtype, qscheme=scheme)
    for index in range(5):
        x = torch.randn(4, 5) * (index + 1)
        ours(x), peer(x)
    expected = peer.calculate_qparams()
    assert same(ours.calculate_qparams(), (expected[0], expected[1].long()))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("name", [cls.__name__ for cls in PER_CHANNEL])
def test_per_channel_agrees_with_the_peer(name, axis) -> None:
    for scheme in (torch.per_channel_symmetric, torch.per_channel_affine):
        arguments = {"qscheme": scheme, "quant_min": -127, "quant_max": 127, "dtype": torch.int8}
        ours = globals()[name](**arguments, ch_axis=axis)
        peer = getattr(peers, name)(**arguments, ch_axis=axis % 3)
        for _ in range(3):
            x = torch.randn(3, 4, 5)
            ours(x), peer(x)
        expected = peer.calculate_qparams()
        assert same(ours.calculate_qparams(), (expected[0], expected[1].long()))


@pytest.mark.parametrize("cls", COLLECTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_do_not_enter_the_range(cls, dtype) -> None:
    x = torch.randn(4, 6).to(dtype)
    masked = torch.cat([x, torch.full((4, 2), -INF).to(dtype)], 1)
    lowest = torch.full((4, 2), torch.finfo(dtype).min).to(dtype)
    masked = torch.cat([masked, lowest, lowest + torch.ones(4, 2).to(dtype), -lowest], 1)
    assert same(seen(cls(), masked), seen(cls(), x))


@pytest.mark.parametrize("cls", COLLECTING)
def test_nothing_but_masks_is_no_data(cls) -> None:
    observer = cls()
    observer(torch.full((3, 3), -INF))
    observer(torch.empty(0, 3))
    assert not observer.has_data
    observer.node_name = "softmax_3"
    with pytest.raises(NoDataError, match="softmax_3"):
        observer.calculate_qparams()


@pytest.mark.parametrize("cls", COLLECTING)
def test_nan_is_an_error_that_names_the_node(cls) -> None:
    observer = cls()
    observer.node_name = "layer_norm_7"
    observer(torch.randn(2, 3))
    with pytest.raises(NonFiniteActivationError, match="layer_norm_7"):
        observer(torch.tensor([[1.0, float("nan")], [INF, 2.0]]))


@pytest.mark.parametrize("cls", COLLECTING)
@pytest.mark.parametrize("x", [torch.arange(4), torch.ones(2, dtype=torch.bool)])
def test_whole_numbers_are_an_error(cls, x) -> None:
    with pytest.raises(TypeError, match=str(x.dtype)):
        cls()(x)


@pytest.mark.parametrize("cls", PER_TENSOR)
@pytest.mark.parametrize(
    "x", [torch.tensor(2.5), torch.tensor([[-3.0]]), torch.full((9,), 0.1), torch.zeros(5)]
)
def test_single_and_constant_values_are_kept(cls, x) -> None:
    scale, zero_point = seen(cls(), x)
    value = (torch.round(x / scale) + zero_point).clamp(-128, 127).sub(zero_point).mul(scale)
    assert scale.shape == (1,) and torch.allclose(value, x, rtol=1e-2)


@pytest.mark.parametrize("cls", COLLECTING)
@pytest.mark.parametrize("factor", [1e-38, 1e-30, 1e30, 1e37])
def test_tiny_and_huge_values(cls, factor) -> None:
    scale, zero_point = seen(cls(eps=1e-37), torch.randn(4, 50) * factor, torch.zeros(4, 50))
    assert torch.isfinite(scale).all() and torch.isfinite(1 / scale).all()
    assert bool(((zero_point >= -128) & (zero_point <= 127)).all())


def test_eps_bounds_the_scale() -> None:
    for cls in COLLECTING:
        scale, _ = seen(cls(eps=2**-12), torch.randn(3, 40) * 1e-6)
        assert torch.equal(scale, torch.full_like(scale, 2**-12))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("cls", COLLECTING)
def test_float8(cls, dtype) -> None:
    scale, zero_point = seen(cls(dtype=dtype), torch.full((1, 4), -7.0))
    assert torch.allclose(scale, torch.tensor(7.0) / torch.finfo(dtype).max)
    assert not zero_point.any()


def test_int32_covers_the_range() -> None:
    scale, _ = seen(HistogramObserver(dtype=torch.int32, eps=0.0), torch.tensor([-1.0, 3.0]))
    assert float(scale) == pytest.approx(4 / (2**32 - 1))


@pytest.mark.parametrize("cls", COLLECTING)
def test_observer_leaves_gradients_and_inference_mode_alone(cls) -> None:
    observer = cls()
    x = torch.randn(3, 4, requires_grad=True)
    observer(x).sum().backward()
    assert x.grad is not None
    with torch.inference_mode():
        observer(torch.randn(3, 4) * 5)
    observer(torch.randn(3, 4) * 9)
    scale, _ = observer.calculate_qparams()
    assert not scale.requires_grad and not scale.is_inference()
    assert not any(buffer.is_inference() for buffer in observer.buffers())


# ---------------------------------------------------------------------------- state


def batches() -> list[Tensor]:
    sizes = ((4, 20), (4, 9000), (4, 70), (4, 9001), (4, 9000))
    return [torch.randn(shape) * (1 + i) for i, shape in enumerate(sizes)]


@pytest.mark.parametrize("cls", COLLECTING)
def test_calibration_goes_on_from_saved_state_bit_for_bit(cls) -> None:
    data = batches()
    through = cls()
    for done, batch in enumerate(data):
        through(batch)
        buffer = io.BytesIO()
        torch.save(through.state_dict(), buffer)
        buffer.seek(0)
        loaded = cls()
        loaded.load_state_dict(torch.load(buffer))
        others = [loaded, copy.deepcopy(through), pickle.loads(pickle.dumps(through))]
        for other in others:
            for rest in data[done + 1 :]:
                other(rest)
        through_rest = copy.deepcopy(through)
        for rest in data[done + 1 :]:
            through_rest(rest)
        assert all(
            same(other.calculate_qparams(), through_rest.calculate_qparams()) for other in others
        )


@pytest.mark.parametrize("cls", COLLECTING)
def test_saved_state_is_a_snapshot_and_reset_forgets(cls) -> None:
    first, *rest = batches()
    observer = cls()
    expected = seen(observer, first)
    state = observer.state_dict()
    seen(observer, *rest)
    fresh = cls()
    fresh.load_state_dict(state)
    assert same(fresh.calculate_qparams(), expected)
    observer.reset()
    assert not observer.has_data
    assert same(seen(observer, first), expected)


def test_switches() -> None:
    model = nn.Sequential(MinMaxObserver(), nn.ReLU(), HistogramObserver())
    model.apply(disable_observer)
    model(torch.randn(5))
    assert not model[0].has_data and not model[2].has_data
    model.apply(enable_observer)
    model(torch.randn(5))
    assert model[0].has_data and model[2].has_data


def test_constant_input_is_observed_once_and_again_when_it_changes() -> None:
    observer = PerChannelMinMaxObserver(qscheme=torch.per_channel_symmetric)
    observer.constant_input = True
    looks = []
    observe = observer._observe
    observer._observe = lambda x: (looks.append(1), observe(x))[1]
    weight = nn.Parameter(torch.randn(3, 4))
    for _ in range(3):
        observer(weight)
    assert len(looks) == 1
    with torch.no_grad():
        weight.mul_(0.1)
    changed = seen(observer, weight)
    assert len(looks) == 2
    fresh = PerChannelMinMaxObserver(qscheme=torch.per_channel_symmetric)
    assert same(changed, seen(fresh, weight))


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    observers: list[ObserverBase] = [
        HistogramObserver(dtype=dtype, qscheme=scheme, quant_min=low, quant_max=high)
        for dtype, low, high in ((torch.int8, -128, 127), (torch.uint8, 0, 15))
        for scheme in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        for _ in range(3)
    ]
    observers += [MinMaxObserver(), HistogramObserver(dtype=torch.int32)]
    for index, observer in enumerate(observers):
        observer(torch.randn(50 if index % 2 else 20_000) * (1 + index))
    together = batched_qparams(observers)
    assert all(
        same(found, observer.calculate_qparams())
        for found, observer in zip(together, observers, strict=True)
    )
    with pytest.raises(NoDataError):
        batched_qparams([*observers, HistogramObserver()])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), min_size=1, max_size=5
    ),
    st.permutations(range(5)),
)
def test_the_order_of_batches_makes_no_difference(data, order) -> None:
    for cls in (MinMaxObserver, HistogramObserver):
        forward, mixed = cls(), cls()
        for values in data:
            forward(torch.tensor(values))
        for index in order:
            if index < len(data):
                mixed(torch.tensor(data[index]))
        assert same(forward.calculate_qparams(), mixed.calculate_qparams())


class NoQuestions(TorchDispatchMode):
    """Fails on what would make the host wait for an accelerator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asking = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount")
        assert func.overloadpacket.__name__ not in asking, func
        return func(*args, **(kwargs or {}))


def test_the_way_for_accelerators_asks_nothing_and_finds_the_same(monkeypatch) -> None:
    host, device = HistogramObserver(), HistogramObserver()
    data = batches()
    expected = seen(host, *data)

    def counted_on_device(values, ends, inverse_width, bins):
        index = (values * inverse_width).to(torch.int32).add_(bins // 2).clamp_(0, bins - 1)
        for end in ends[:-1]:
            index[end:].add_(bins)
        counts = torch.zeros(bins * len(ends), dtype=torch.int64)
        return counts.index_add_(0, index, torch.ones_like(index).long()).view(-1, bins)

    monkeypatch.setattr("pt2q.observers.streaming.counted", counted_on_device)
    with NoQuestions():
        for x in data:
            masked = torch.cat([x.flatten(), torch.tensor([-INF])])
            device._observe_on_device(masked if x.numel() < 1000 else x.flatten())
        device.histogram.flush()
    assert same(device.calculate_qparams(), expected)
    device._observe_on_device(torch.tensor([1.0, float("nan")]))
    with pytest.raises(NonFiniteActivationError):
        device.calculate_qparams()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("cls", COLLECTING)
def test_on_an_accelerator_without_synchronisation(cls) -> None:
    host, device = cls(), cls()
    data = batches()
    moved = [x.cuda() for x in data]
    for x in moved:  # caches are filled once
        device(x)
    device.reset()
    torch.cuda.set_sync_debug_mode("error")
    for x in moved:
        device(x)
    torch.cuda.set_sync_debug_mode("default")
    found = device.calculate_qparams()
    assert found[0].is_cuda
    expected = seen(host, *data)
    assert same((found[0].cpu(), found[1].cpu()), expected)
    device(torch.tensor([[float("nan")]] * 4).cuda())
    with pytest.raises(NonFiniteActivationError):
        device.calculate_qparams()
