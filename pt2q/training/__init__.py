"""What training needs beside fake quantizers: schedules, statistics, the fast batch norm."""

from pt2q.training.batch_statistics import (
    freeze_batch_norm_statistics,
    reestimate_batch_norm_statistics,
    unfreeze_batch_norm_statistics,
)
from pt2q.training.schedule import QATSchedule

__all__ = [
    "QATSchedule",
    "freeze_batch_norm_statistics",
    "reestimate_batch_norm_statistics",
    "unfreeze_batch_norm_statistics",
]
