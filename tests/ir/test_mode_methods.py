"""train() and eval() of exported modules, bodies and wrapped modules."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from support.switching import assert_same_state, exported, run_seeded
from torch import nn
from torch.nn import functional as F

import pt2q
from pt2q.errors import NotExportedError
from pt2q.ir.graph import dump
from pt2q.ir.modes import switch_mode

IMAGE = (4, 4, 6, 6)


def test_nothing_to_switch_is_not_recompiled() -> None:
    model = exported(nn.BatchNorm2d(4), torch.randn(IMAGE), train=True)
    code = model.forward.__code__
    assert switch_mode(model, True) is False
    assert model.forward.__code__ is code
    assert switch_mode(model, False) is True
    assert switch_mode(model, False) is False


def test_branches_of_control_flow() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                y = F.dropout(self.bn(x), 0.5, self.training)
            return y * 2

    x = torch.randn(IMAGE)
    eager = Model()
    model = exported(copy.deepcopy(eager), x, train=True)
    for mode in (False, True, False):
        eager.train(mode)
        switch_mode(model, mode)
        torch.testing.assert_close(run_seeded(model, x), run_seeded(eager, x))
    assert_same_state(model, eager)


def test_train_and_eval_methods_when_allowed() -> None:
    x = torch.randn(IMAGE)
    inner = exported(nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5)), x)
    outer = nn.Sequential(inner, nn.Dropout(0.5))
    with pytest.raises(NotImplementedError):
        outer.train()
    assert pt2q.allow_exported_model_train_eval(outer) is outer
    outer.train()
    assert inner.training and "True" in dump(inner)
    assert not torch.equal(outer(x), outer(x))
    outer.eval()
    assert torch.equal(outer(x), outer(x))


def test_allowing_does_not_keep_a_module_alive() -> None:
    model = pt2q.allow_exported_model_train_eval(exported(nn.Dropout(0.5), torch.randn(2)))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_inside_distributed_data_parallel(tmp_path) -> None:
    inner = exported(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), torch.randn(2, 4))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(inner)
        pt2q.move_exported_model_to_train(parallel)
        assert "True" in dump(inner) and parallel.training
        pt2q.move_exported_model_to_eval(parallel)
        assert "True" not in dump(inner) and not parallel.training
    finally:
        torch.distributed.destroy_process_group()


def test_a_module_without_graph_is_refused() -> None:
    with pytest.raises(NotExportedError, match="no exported graph"):
        pt2q.move_exported_model_to_eval(nn.Linear(2, 2))
