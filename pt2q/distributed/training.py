"""One model of what several processes have trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor, nn

from pt2q.distributed.ranks import Ranks
from pt2q.observers.synchronize import synchronize_observers


def whole_state(model: nn.Module, group: dist.ProcessGroup | None = None) -> dict[str, Tensor]:
    """Return the state of the model that several processes train, the same in each of them.

    What each has observed is united, as `synchronize_observers` does; parameters that
    ``fully_shard`` has parted are put together; what each keeps for itself, as batch norms do their
    running statistics, is that of the first process. Load it into a newly prepared module to
    convert it.

    Args:
        model: a prepared module in ``DistributedDataParallel``, or one that ``fully_shard`` was
            given; its observers are changed.
        group: the processes that train it; None for all. Each has to call this.

    Raises:
        DistributedError: another process failed.
    """
    ranks = Ranks.of(group)
    if ranks.size > 1:
        synchronize_observers(model, group)
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    found = dict(_whole(inner))
    buffers = {name for name, _ in inner.named_buffers()}
    own = {name: value for name, value in found.items() if name in buffers}
    return {**found, **ranks.gather(own if ranks.rank == 0 else None)[0]}


def _whole(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            parted = getattr(value, "full_tensor", None)
            yield name, value.detach().clone() if parted is None else parted()
