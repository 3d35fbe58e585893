"""What a quantizer may do beside annotating: rewrite the model, replace observers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from support.flow import exported, targets
from support.nodes import nodes_of
from support.small_quantizers import (
    SmallQuantizer,
)
from torch import nn

from pt2q import (
    HistogramObserver,
    convert_pt2e,
    prepare_pt2e,
    sqnr,
)
from pt2q.ir import ops
from pt2q.ir.graph import dump

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed


STATIC = torch.per_tensor_affine


def test_transform_for_annotation_may_give_another_module() -> None:
    class Rewriting(SmallQuantizer):
        def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            result = copy.deepcopy(model)
            for node in nodes_of(result, frozenset({aten.silu.default})):
                with result.graph.inserting_before(node):
                    gate = result.graph.call_function(aten.sigmoid.default, node.args)
                    new = result.graph.call_function(aten.mul.Tensor, (node.args[0], gate))
                for made in (gate, new):
                    made.meta.update(node.meta)
                node.replace_all_uses_with(new)
                result.graph.erase_node(node)
            result.recompile()
            return result

    model, x = nn.Sequential(nn.Linear(4, 4), nn.SiLU()), torch.randn(3, 4)
    module = exported(model, x)
    before = dump(module)
    ready = prepare_pt2e(module, Rewriting())
    assert dump(module) == before
    assert aten.silu.default not in targets(ready)
    ready(x)
    assert sqnr(model(x), convert_pt2e(ready)(x)) > 30


def test_the_callback_sees_and_replaces_observers() -> None:
    seen: dict[Any, Any] = {}

    class Watching(SmallQuantizer):
        def prepare_obs_or_fq_callback(self, model: Any, edge_or_node_to_obs_or_fq: Any) -> None:
            seen.update(edge_or_node_to_obs_or_fq)
            for key, observer in edge_or_node_to_obs_or_fq.items():
                if observer.qscheme == STATIC:
                    edge_or_node_to_obs_or_fq[key] = HistogramObserver(dtype=torch.uint8)

    model, x = nn.Linear(4, 4), torch.randn(3, 4)
    ready = prepare_pt2e(exported(model, x), Watching())
    assert len(seen) == 3
    kinds = [type(m).__name__ for n, m in ready.named_children() if "post_process" in n]
    assert sorted(kinds) == ["HistogramObserver", "HistogramObserver", "PerChannelMinMaxObserver"]
    ready(x)
    assert {n.args[-1] for n in nodes_of(convert_pt2e(ready), ops.QUANTIZE)} == {torch.uint8}


def test_an_exported_program_is_taken_as_well() -> None:
    x = torch.randn(1, 4)
    program = torch.export.export(nn.Linear(4, 4), (x,))
    one, other = (prepare_pt2e(m, SmallQuantizer()) for m in (program, program.module()))
    assert dump(one) == dump(other)
