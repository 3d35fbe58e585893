"""`XNNPACKQuantizer`: quantize for ExecuTorch's XNNPACK backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch.fx import GraphModule, Node

from pt2q.passes import OwnBiases
from pt2q.quantizers.toolkit.config import QuantizationConfig
from pt2q.quantizers.toolkit.engine.decompositions import Decompositions
from pt2q.quantizers.toolkit.engine.table_quantizer import TableQuantizer
from pt2q.quantizers.toolkit.table.checks import varies
from pt2q.quantizers.toolkit.table.rule import Match
from pt2q.quantizers.xnnpack.configs import dynamic_form
from pt2q.quantizers.xnnpack.residual_projections import is_residual_projection
from pt2q.quantizers.xnnpack.table import DYNAMIC_LINEAR, XNNPACK


class XNNPACKQuantizer(TableQuantizer):
    """Quantizes for ExecuTorch's XNNPACK backend.

    ``XNNPACKQuantizer()`` is ready to use: static int8 activations, int8 weights with a scale per
    channel, in the whole model. Any ``set_`` method given a configuration replaces that; with
    None it makes an exception to it. The order of precedence is module name, module type,
    operator type, global::

        quantizer = XNNPACKQuantizer().set_module_name("head", None)
        prepared = prepare_pt2e(exported.module(), quantizer)
        print(quantizer.report())

    Args:
        default: taken in place of that configuration.
        residual_projections: which kernel a linear layer takes, under a static configuration,
            whose result is added to a residual stream that is read in float only; "dynamic" gives
            results in float. See `pt2q.quantizers.xnnpack.residual_projections`.
    """

    table = XNNPACK
    # The runtime multiplies two activations in float, and has no recurrent operator.
    decompositions = Decompositions(recurrent=True)

    def __init__(
        self,
        default: QuantizationConfig | None = None,
        *,
        residual_projections: Literal["dynamic", "static"] = "dynamic",
    ) -> None:
        super().__init__(default)
        self.residual_projections = residual_projections

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Take operators apart, and give calls that share a bias copies of it.

        The runtime stores a bias in one scale. In training it stays one tensor.
        """
        model = super().transform_for_annotation(model)
        is_qat = any(config.is_qat for config in self.selection.configs())
        if not is_qat and OwnBiases()(model):
            model.recompile()
        return model

    def refine(self, match: Match, kept: dict[Node, Match]) -> Match:
        """Quantize at run time what a static output would spoil; see `residual_projections`."""
        if self.residual_projections == "static" or not is_residual_projection(match, kept):
            return match
        choice = replace(match.choice, config=dynamic_form(match.config))
        dynamic = replace(match, rule=DYNAMIC_LINEAR, choice=choice)
        return match if varies(dynamic) is not None else dynamic
