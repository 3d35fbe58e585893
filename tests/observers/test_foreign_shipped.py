"""The quantizers that ship with ExecuTorch, unchanged."""

from __future__ import annotations

import pytest
import torch
from support.foreign_quantizer import Conv, counts
from support.half_precision import sentence, word_model
from support.nodes import nodes_of
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e as peer_convert
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e as peer_prepare

import pt2q
from pt2q.ir import ops
from pt2q.ir.graph import is_float_tensor

pytestmark = pytest.mark.usefixtures("patterns_known")


def _xnnpack():
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as module

    config = module.get_symmetric_quantization_config(is_per_channel=True)
    return module.XNNPACKQuantizer().set_global(config)


def _xnnpack_dynamic():
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as module

    config = module.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    return module.XNNPACKQuantizer().set_global(config)


def _x86():
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as module

    config = module.get_default_x86_inductor_quantization_config()
    return module.X86InductorQuantizer().set_global(config)


def _x86_dynamic():
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as module

    config = module.get_default_x86_inductor_quantization_config(is_dynamic=True)
    return module.X86InductorQuantizer().set_global(config)


def _vulkan():
    from executorch.backends.vulkan.quantizer import vulkan_quantizer as module

    config = module.get_symmetric_quantization_config()
    return module.VulkanQuantizer().set_global(config)


def _samsung():
    from executorch.backends.samsung.quantizer.quantizer import EnnQuantizer

    return EnnQuantizer()


def _cortex_m():
    from executorch.backends.cortex_m.quantizer.quantizer import CortexMQuantizer

    return CortexMQuantizer()


@pytest.mark.parametrize("make", [_xnnpack, _vulkan, _samsung, _cortex_m])
def test_quantizers_of_executorch(make) -> None:
    torch.manual_seed(0)
    net = Conv().eval()
    batches = [(torch.randn(8, 4, 8, 8).to(memory_format=torch.channels_last),) for _ in range(3)]
    outputs, dequantizes = [], []
    for prepare, convert in (
        (pt2q.prepare_pt2e, pt2q.convert_pt2e),
        (peer_prepare, peer_convert),
    ):
        exported = torch.export.export(net, batches[0]).module(check_guards=False)
        prepared = prepare(exported, make())
        for batch in batches:
            prepared(*batch)
        converted = convert(prepared)
        outputs.append(torch.cat([converted(*batch) for batch in batches]))
        dequantizes.append(counts(converted)[1])
    float_output = torch.cat([net(*batch) for batch in batches])
    assert dequantizes[0] > 0
    assert dequantizes[0] == dequantizes[1]
    ours, theirs = (float(pt2q.sqnr(float_output, o)) for o in outputs)
    assert ours > 20
    assert ours > theirs - 3
    assert is_float_tensor(next(n for n in converted.graph.nodes if n.op == "placeholder"))


# In half precision the XNNPACK quantizer leaves additions in float: they take float32 alone there.
HALF = {"xnnpack": _xnnpack, "xnnpack dynamic": _xnnpack_dynamic}
HALF |= {"x86": _x86, "x86 dynamic": _x86_dynamic}


@pytest.mark.parametrize("name", HALF)
def test_quantizers_of_others_take_bfloat16(name: str) -> None:
    """The layers that they quantize in float32; what a dequantize gives is in the model's type."""
    layers = []
    for dtype in (torch.float32, torch.bfloat16):
        program, words, expected = word_model(dtype)
        prepared = pt2q.prepare_pt2e(program, HALF[name]())
        for seed in range(4):
            prepared(sentence(seed))
        converted = pt2q.convert_pt2e(prepared)
        linears = nodes_of(converted, ops.LINEAR)
        sources = [source for node in linears for source in node.args[:2]]
        layers.append([ops.is_op(source, ops.DEQUANTIZE) for source in sources])
        assert all(n.meta["val"].dtype is dtype for n in nodes_of(converted, ops.DEQUANTIZE))
        found = converted(words)
        assert found.dtype is dtype
        assert pt2q.sqnr(expected.float(), found.float()) > 27
    assert layers[0] == layers[1] == [True] * 6
