"""Arm's own quantizer, taken to the end: lowered to TOSA, run by TOSA's reference model.

The reference model computes in integers as the hardware does, so the quantize / dequantize graph
that pt2q gives has to agree with it to the last bit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.nets import NETS
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter

import pt2q
from pt2q.deploy.executorch import lowering
from pt2q.ir import ops

reference = pytest.importorskip("tosa_reference_model", reason="needs the extra 'arm'")
arm = pytest.importorskip("executorch.backends.arm.quantizer")

pytestmark = pytest.mark.filterwarnings("ignore")

SPECIFICATION = "TOSA-1.0+INT"


def quantizer(*, composable: bool = True, **config: Any) -> Any:
    from executorch.backends.arm.tosa.specification import TosaSpecification

    made = arm.TOSAQuantizer(
        TosaSpecification.create_from_string(SPECIFICATION), use_composable_quantizer=composable
    )
    return made.set_global(arm.get_symmetric_quantization_config(**config))


def quantized(net: nn.Module, batches: list[tuple[Tensor, ...]], **config: Any) -> GraphModule:
    exported = torch.export.export(net, batches[0]).module()
    prepared = pt2q.prepare_pt2e(exported, quantizer(**config))
    with torch.no_grad():
        for batch in batches:
            prepared(*batch)
    return pt2q.convert_pt2e(prepared)


class OnReferenceModel(Interpreter):
    """Runs a lowered program: what was delegated by the reference model, in integers."""

    def __init__(self, program: Any) -> None:
        super().__init__(program.exported_program().module())
        self.delegates = 0
        self.others: list[Any] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        from executorch.exir.delegate import executorch_call_delegate

        if target is not executorch_call_delegate:
            self.others.append(target)
            return super().call_function(target, args, kwargs)
        self.delegates += 1
        lowered, *inputs = args
        outputs, status = reference.run(
            lowered.processed_bytes,
            [tensor.contiguous().numpy() for tensor in inputs],
            verbosity="LOW",
            initialize_variable_tensor_from_numpy=True,
        )
        assert status == reference.GraphStatus.TOSA_VALID
        return tuple(torch.from_numpy(output) for output in outputs)


def lower(model: GraphModule, inputs: tuple[Tensor, ...]) -> OnReferenceModel:
    from executorch.backends.arm.tosa.compile_spec import TosaCompileSpec
    from executorch.backends.arm.tosa.partitioner import TOSAPartitioner
    from executorch.exir import to_edge_transform_and_lower

    partitioner = TOSAPartitioner(TosaCompileSpec(SPECIFICATION))
    program = torch.export.export(model, inputs)
    with lowering._cheaper():
        edge = to_edge_transform_and_lower(program, partitioner=[partitioner])
    return OnReferenceModel(edge)


def steps_apart(model: GraphModule, inputs: tuple[Tensor, ...]) -> int:
    """How many steps of the output's scale TOSA and the q/dq graph are apart, at most."""
    runner = lower(model, inputs)
    (found,) = runner.run(*inputs)
    assert runner.delegates == 1
    # All that is left outside quantizes the input and dequantizes the output.
    assert len([t for t in runner.others if "quantize" in str(t)]) == 2
    assert len(runner.others) <= 3, runner.others
    (last,) = next(iter(reversed(model.graph.nodes))).args[0]
    assert ops.is_op(last, ops.DEQUANTIZE)
    return int(((found - model(*inputs)) / last.args[1]).round().abs().max())


class Conv(nn.Module):
    """Batch norms, a depthwise convolution, clamps, a residual addition, a pool, a head."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=bias), nn.BatchNorm2d(8))
        self.clamp = nn.ReLU6()  # a hardtanh; Arm's quantizer leaves aten.relu6 out
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8))
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.clamp(self.stem(x))
        x = x + self.point(torch.relu(self.depth(x)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Products of two activations, a softmax, a table of the quantized gelu."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(1, 2) * 8**-0.5, dim=-1)
        return self.out(nn.functional.gelu(weights @ v)) + x


@pytest.mark.parametrize("per_channel", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_conv_net_is_bit_exact(per_channel) -> None:
    torch.manual_seed(0)
    net = Conv().eval()
    batches = [(torch.randn(1, 3, 16, 16),) for _ in range(4)]
    model = quantized(net, batches, is_per_channel=per_channel)
    assert pt2q.sqnr(net(*batches[0]), model(*batches[0])) > 20
    assert steps_apart(model, batches[0]) == 0


def test_attention_is_bit_exact() -> None:
    torch.manual_seed(0)
    net = Attention().eval()
    batches = [(torch.randn(1, 6, 8),) for _ in range(4)]
    model = quantized(net, batches)
    assert pt2q.sqnr(net(*batches[0]), model(*batches[0])) > 20
    assert steps_apart(model, batches[0]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name, apart", [("small_mobilenet", 1), ("small_vit", 0)])
def test_whole_nets(name, apart) -> None:
    # Fifteen layers of rounding in 32-bit fixed point against float32: the last bit may differ.
    net = NETS[name].build(0)
    model = quantized(net, [NETS[name].inputs(1, seed) for seed in range(4)])
    assert steps_apart(model, NETS[name].inputs(1, 9)) <= apart


@pytest.mark.slow
def test_trained_with_fake_quantizers() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(1, 3, 16, 16),) for _ in range(4)]
    # A bias that comes of folding has no annotation, and Arm wants it in int32: give one.
    exported = torch.export.export(Conv(bias=True).train(), batches[0]).module()
    # The composable form quantizes between a layer and its batch norm: nothing can fold them.
    prepared = pt2q.prepare_qat_pt2e(exported, quantizer(composable=False, is_qat=True))
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for batch in batches:
        prepared(*batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    pt2q.move_exported_model_to_eval(prepared)
    assert steps_apart(pt2q.convert_pt2e(prepared), batches[0]) == 0
