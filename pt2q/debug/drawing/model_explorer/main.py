"""An extension for Model Explorer that opens any ``.pt2`` file, converted and dynamic ones too.

    model-explorer model.pt2 --extensions=pt2q.debug.drawing.model_explorer

Its own reader fails where a value is a symbolic size or none at all. Nodes have the same names, so
that `overlay` fits both. This module needs the package ``ai-edge-model-explorer``.
"""

from __future__ import annotations

from typing import Any

import torch
from model_explorer import Adapter, AdapterMetadata, ModelExplorerGraphs
from model_explorer.graph_builder import Graph, GraphNode, IncomingEdge, KeyValue, MetadataItem

from pt2q.debug.drawing.explorer_nodes import ExplorerNode, explorer_nodes


class ProgramAdapter(Adapter):  # type: ignore[misc]
    """Opens what ``torch.export.save`` wrote."""

    metadata = AdapterMetadata(
        id="pt2q",
        name="pt2q exported programs",
        description="Exported programs: float, quantized, with sizes that vary, with control flow",
        source_repo="",
        fileExts=["pt2"],
    )

    def convert(self, model_path: str, settings: dict[str, Any]) -> ModelExplorerGraphs:
        """The graphs of a file: the outermost, and one for each body of control flow.

        Args:
            model_path: the file.
            settings: of the page; none is looked at.
        """
        graphs = explorer_nodes(torch.export.load(model_path))
        return {
            "graphs": [
                Graph(id=name, nodes=[_node(node) for node in nodes])
                for name, nodes in graphs.items()
            ]
        }


def _node(node: ExplorerNode) -> GraphNode:
    return GraphNode(
        id=node.id,
        label=node.label,
        namespace=node.namespace,
        subgraphIds=list(node.bodies),
        attrs=[KeyValue(key=key, value=value) for key, value in node.attributes],
        incomingEdges=[
            IncomingEdge(sourceNodeId=source, targetNodeInputId=str(index))
            for index, source in enumerate(node.reads)
        ],
        outputsMetadata=[
            MetadataItem(id=str(index), attrs=[KeyValue(key="tensor_shape", value=text)])
            for index, text in enumerate(node.outputs)
        ],
    )
