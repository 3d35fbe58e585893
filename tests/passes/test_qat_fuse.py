"""Batch norms in training: fused layers train like float ones and fold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.qat_layers import CONFIGS, KINDS, batch, build, check_fold, close, train_together
from support.qat_quantizer import QATQuantizer, prepare

import pt2q
from pt2q.passes.batch_norm.qat_record import fused_pairs


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_like_float_and_folds(kind: str, config: str, fast: bool) -> None:
    model = build(kind, *CONFIGS[config])
    prepared = prepare(model, batch(kind), fast=fast)
    assert len(fused_pairs(prepared.record)) == 1
    prepared.apply(pt2q.disable_fake_quant)
    train_together(model.train(), prepared, kind, 3)
    close(prepared.eval()(x := batch(kind)), model.eval()(x), "evaluation")
    train_together(model, prepared, kind, 1)
    prepared.apply(pt2q.enable_fake_quant)
    check_fold(prepared, kind)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    bias=st.booleans(),
    affine=st.booleans(),
    relu=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3, 0.3]),
    momentum=st.sampled_from([0.1, 0.9, None]),
    groups=st.sampled_from([1, 2, 4]),
    same=st.booleans(),
    fast=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_any_configuration(kind, bias, affine, relu, eps, momentum, groups, same, fast) -> None:
    model = build(kind, bias, affine, relu, eps, momentum, groups, same)
    prepared = prepare(model, batch(kind), quantizer=QATQuantizer(bias=bias), fast=fast)
    prepared.apply(pt2q.disable_fake_quant)
    train_together(model.train(), prepared, kind, 2)
    prepared.apply(pt2q.enable_fake_quant)
    check_fold(prepared, kind)
