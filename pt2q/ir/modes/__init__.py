"""Train and eval of exported graphs: what export wrote into them as literals is switched."""

from pt2q.ir.modes.batch_counter import count_batches, counter_name
from pt2q.ir.modes.exported import (
    allow_exported_model_train_eval,
    move_exported_model_to_eval,
    move_exported_model_to_train,
)
from pt2q.ir.modes.switch import (
    ModeRecord,
    mode_record,
    set_mode_record,
    switch_dropouts_off,
    switch_mode,
)

__all__ = [
    "ModeRecord",
    "allow_exported_model_train_eval",
    "count_batches",
    "counter_name",
    "mode_record",
    "move_exported_model_to_eval",
    "move_exported_model_to_train",
    "set_mode_record",
    "switch_dropouts_off",
    "switch_mode",
]
