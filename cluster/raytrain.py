"""Ray Train follows a job's lease: a callback in the run's controller, and a scaling config that is the lease of now.

Ray Train restarts a run's workers at another size from its last checkpoint; what it knows is the loss of nodes. So the
callback tells the workers of a preemption (`ray.train.get_preemption_info()` answers) when the job's lease is to have
another size, and ends the wait for it as soon as all workers have reported a checkpoint after that. Then the controller
asks its scaling config how many workers there are: those of the lease now.

What is not public API of Ray here (2.60; `rayapi.check_version`): the callback's base classes,
`RayTrainWorker.mark_preempt`, and that the controller asks `_label_selector_per_worker` at each start.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from ray.train import PreemptionInfo, ScalingConfig
from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback, WorkerGroupCallback

from moorage.cluster import following, rayapi
from moorage.cluster.binding import WorkerView, node_selector

log = logging.getLogger("moorage.lease")
CALLBACKS_VARIABLE = "RAY_TRAIN_CALLBACKS"
HANDED_OVER = "moorage_handed_over"
"""The key of a report by which all workers say that what they have done is saved: they can be stopped."""
MARGIN_S = 15.0
"""So long before the end of its grace a run that has not saved anything is restarted from its last checkpoint."""
GROWS_WITHIN_S = 300.0
"""So long a run that was given more workers may take to its next checkpoint."""
SOONER_S = 1.0
"""Workers that were told are told again when it is so much sooner."""


class LeaseScaling(ScalingConfig):
    """As many workers as the job's lease has now, each where the lease has it: read anew whenever it is asked."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)

    @property
    def num_workers(self) -> int:
        return len(_workers())

    @num_workers.setter
    def num_workers(self, value: int) -> None:
        """The lease's is the number."""

    @property
    def label_selector(self) -> list[dict[str, str]]:
        return [node_selector(worker.ray_node_id) for worker in _workers()]

    @label_selector.setter
    def label_selector(self, value: Any) -> None:
        """The lease's nodes it is."""

    def _label_selector_per_worker(self, num_workers: int) -> list[dict[str, str]]:
        """As many as are asked for, though the lease has become smaller in between."""
        found = self.label_selector
        return [found[min(i, len(found) - 1)] for i in range(num_workers)]


def _workers() -> tuple[WorkerView, ...]:
    lease = following.context()
    return () if lease is None else lease.workers


def announce() -> None:
    """Let the trainers of this process use the callback below."""
    rayapi.check_version()
    path = f"{FollowLease.__module__}.{FollowLease.__qualname__}"
    known = [one for one in os.environ.get(CALLBACKS_VARIABLE, "").split(",") if one]
    if path not in known:
        os.environ[CALLBACKS_VARIABLE] = ",".join([*known, path])


class FollowLease(WorkerGroupCallback, ControllerCallback, ReportCallback):
    """Lives in the controller's process; made in the trainer's, and sent there."""

    def __init__(self) -> None:
        self._active = False
        self._actors: list[Any] = []
        self._nodes: dict[str, list[int]] = {}
        self._workers: tuple[WorkerView, ...] = ()
        """Of the lease, that the run has now."""
        self._told = self._saved = False
        self._until = 0.0
        """When they will be restarted at the latest, as they were told."""

    # -- the controller's hooks

    def after_controller_start(self, train_run_context: Any) -> None:
        if not isinstance(train_run_context.scaling_config, LeaseScaling):
            return  # this run has a size of its own
        feed = following.feed()
        if feed is None:
            return
        self._active, self._lock = True, threading.Lock()
        threading.Thread(target=self._watch, args=(feed,), name="moorage-train", daemon=True).start()
        feed.follow()

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """The workers of before are gone, those of now not there yet: what was wanted back is free."""
        feed = following.feed() if self._active else None
        if feed is None:
            return
        lease = following.context()
        workers = () if lease is None else lease.workers[: worker_group_context.num_workers]
        now, fits = feed.now, len(workers) == worker_group_context.num_workers
        with self._lock:
            self._workers = (
                workers if fits else ()
            )  # with more than it may have by now it is told again at once
        if fits and now is not None and now.asked is not None:
            threading.Thread(target=feed.say, kwargs={"workers": len(workers)}, daemon=True).start()

    def after_worker_group_start(self, worker_group: Any) -> None:
        if not self._active:
            return
        actors, nodes = [], dict[str, list[int]]()
        for worker in worker_group.get_workers():
            actors.append(worker.actor)
            nodes.setdefault(worker.metadata.node_id, []).append(worker.distributed_context.world_rank)
        with self._lock:
            self._actors, self._nodes, self._told, self._saved = actors, nodes, False, False

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        if self._active:
            with self._lock:
                self._actors = []

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        """All workers have reported: what they have done is saved, if there is a checkpoint or they say so."""
        if not self._active:
            return
        over = bool(metrics) and bool(metrics[0].get(HANDED_OVER))
        with self._lock:
            if (self._told and training_report.checkpoint is not None) or over:
                self._saved = True
                self._mark(time.time())

    # -- a thread of its own

    def _watch(self, feed: following.Feed) -> None:
        version = ""
        while not feed.over:
            now = feed.wait(version, timeout=1.0)
            if now is None:
                continue
            version = now.version
            try:
                with self._lock:
                    self._tell(now)
            except Exception:
                log.exception("the workers could not be told of another size; again in a moment")
                version = ""
                time.sleep(1.0)

    def _tell(self, now: following.Now) -> None:
        """Tell the workers that there will be others: once, and again when it has to be sooner. A run that may take its
        time with more workers may be asked for some of those it has meanwhile, within a grace."""
        if not self._actors or now.usable.workers == self._workers:
            return
        until = time.time() + GROWS_WITHIN_S
        if now.asked is not None:
            until = min(now.asked.deadline - MARGIN_S, until)
        until = max(until, time.time())
        if self._told and until > self._until - SOONER_S:
            return
        log.info("the run goes on with %d workers of %d", now.workers, len(self._workers))
        self._mark(until)
        self._told = True

    def _mark(self, until: float) -> None:
        """They will be restarted at that time (Unix)."""
        self._until = until
        info = PreemptionInfo(deadline_ms=int(until * 1000), preempted_node_to_ranks=self._nodes)
        for actor in self._actors:
            actor.mark_preempt.remote(info)
