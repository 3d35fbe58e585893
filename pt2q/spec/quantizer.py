"""What a backend implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch.fx import GraphModule

from pt2q.ir.control_flow import graph_modules
from pt2q.ir.graph import EdgeOrNode


class Quantizer(ABC):
    """What a backend implements to say how it wants a model quantized."""

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Rewrite the float model before annotation (a decomposition, say).

        Args:
            model: the exported model, already copied: it may be changed in place.

        Returns:
            The model to annotate; it must compute the same function.
        """
        return model

    @abstractmethod
    def annotate(self, model: GraphModule) -> GraphModule:
        """Put a `QuantizationAnnotation` at ``node.meta["quantization_annotation"]``.

        Args:
            model: the model after `transform_for_annotation`.

        Returns:
            The same model.
        """

    @abstractmethod
    def validate(self, model: GraphModule) -> None:
        """Raise if the annotated model cannot run on the backend.

        Args:
            model: the annotated model.
        """

    def prepare_obs_or_fq_callback(
        self,
        model: GraphModule,
        edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any],
    ) -> None:
        """Look at, or change, the observers before they are inserted.

        Args:
            model: the annotated model.
            edge_or_node_to_obs_or_fq: the observer of every quantized tensor. Putting another
                observer in replaces it for that tensor.
        """
        return None


def annotated_apart(quantizer: Any, model: GraphModule) -> list[GraphModule]:
    """The modules to call ``quantizer.annotate`` with.

    Quantizers that go into control flow themselves (``annotates_bodies`` is true) are given the
    outermost module; others, which know one graph only, each module in turn.
    """
    if getattr(quantizer, "annotates_bodies", False):
        return [model]
    return list(graph_modules(model))
