"""What every road asks of a model before anything else."""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.fx import GraphModule

from pt2q.errors import FlowError, NotExportedError
from pt2q.ir.module import EXPORT_HINT, QuantGraphModule, Stage


def refuse_prepared(model: object) -> None:
    """Refuse a model whose observers are still in it.

    Args:
        model: what the user wants to deploy.

    Raises:
        FlowError: it is prepared and not converted.
    """
    stage = model.record.stage if isinstance(model, QuantGraphModule) else None
    if stage in (Stage.PREPARED, Stage.PREPARED_QAT):
        raise FlowError(
            "this model is prepared, not converted: calibrate or train it, and deploy what "
            "convert_pt2e(model) gives"
        )


def require_graph(model: object) -> None:
    """Refuse what has no graph, and what `refuse_prepared` refuses.

    Args:
        model: what the user wants to deploy.

    Raises:
        NotExportedError: it was never captured with ``torch.export``.
        FlowError: it is prepared and not converted.
    """
    if not isinstance(model, GraphModule | ExportedProgram):
        raise NotExportedError(
            f"{type(model).__name__} was never captured with torch.export; {EXPORT_HINT}"
        )
    refuse_prepared(model)
