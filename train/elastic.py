"""In the training function of a run that follows its lease (`scaling_config(follow=True)`): when to save, and then
what.

    done = train_steps(..., leaves=told)
    if done.left:
        hand_over(done.steps)       # does not return when the run goes on at another size

Without it a run is restarted at its next reported checkpoint, or shortly before its grace is over from its last one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from moorage.cluster import following
from moorage.errors import MoorageError
from moorage.runtime import preemption

if TYPE_CHECKING:
    from moorage.runtime.preemption import Notice

_STOPPED_WITHIN_S = 600.0


def told() -> Notice | following.Now | None:
    """What the pool wants of this run: that it leaves, or that it goes on at another size. None until it wants
    something.

    Costs nothing after its first call. Of the ranks the first one asks, whatever the others do: let them agree.
    """
    notice = preemption.preemption()
    if notice is not None:
        return notice
    import ray.train

    context = ray.train.get_context()
    feed = following.feed() if context.get_world_rank() == 0 else None
    now = feed.now if feed is not None else None
    return now if now is not None and now.follows and now.workers != context.get_world_size() else None


def hand_over(step: int) -> None:
    """Call it on all ranks once the checkpoint of `step` is written, after `told`. Returns when the whole job is to
    leave; else the run is restarted at another size, and this process ends within."""
    import ray.train
    from ray.train import collective

    leaves = collective.broadcast_from_rank_zero(preemption.preemption() is not None)
    if leaves:
        return
    from moorage.cluster.raytrain import HANDED_OVER

    ray.train.report({HANDED_OVER: step})
    threading.Event().wait(_STOPPED_WITHIN_S)
    raise MoorageError(
        "the run was not restarted at another size",
        why=f"nothing stopped this worker within {_STOPPED_WITHIN_S:g} s",
        code="resize-not-done",
    )
