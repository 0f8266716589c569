"""Where a job's lease goes: Ray Train's `ScalingConfig`, Ray Tune's resources and concurrency.

Outside Moorage (no lease in the environment) each function gives a small CPU default, so a script runs unchanged
on a laptop without a pool. What each of Ray's interfaces obeys was measured; see docs/training.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from moorage.cluster.binding import LeaseView, WorkerView, node_selector
from moorage.cluster.following import ELASTIC_VARIABLE, context, feed
from moorage.errors import InvalidRequest

if TYPE_CHECKING:
    from ray.train import ScalingConfig
    from ray.tune import PlacementGroupFactory, TuneConfig

SLOT = "moorage_slot"
"""The key of a trial's config that names its worker in the lease."""


def _workers(lease: LeaseView | None) -> tuple[WorkerView, ...]:
    """The lease's workers, or () outside Moorage. Raises InvalidRequest when the lease has none."""
    lease = lease or context()
    if lease is None:
        return ()
    if not lease.workers:
        raise InvalidRequest(
            "this job's lease has no workers",
            why="only an entrypoint was asked for",
            todo='submit with metadata {"workers": "2", "gpus_per_worker": "1"}',
            code="lease-without-workers",
        )
    return lease.workers


def _equal_resources(workers: tuple[WorkerView, ...]) -> dict[str, float]:
    """What every worker holds. Ray Train knows one size for all of a run's workers."""
    sizes = [worker.resources() for worker in workers]
    if any(size != sizes[0] for size in sizes):
        raise InvalidRequest(
            "the workers of this lease differ in size",
            why=f"Ray Train gives all workers of a run the same resources, and the lease has {sizes}",
            todo="ask for equal workers, or place the odd ones by hand with moorage.context()",
            code="lease-uneven",
        )
    return sizes[0]


def scaling_config(
    num_workers: int | None = None,
    *,
    lease: LeaseView | None = None,
    follow: bool = False,
    cpus_outside: float = 1,
    **more: Any,
) -> ScalingConfig:
    """A `ScalingConfig` that puts one training worker on each worker of the lease.

    `num_workers` uses fewer than the lease holds (more is refused); `more` goes to `ScalingConfig` unchanged.
    `follow`: the run has as many workers as the lease at any time; it is restarted at another size from its last
    checkpoint (docs/elastic.md). Outside Moorage: `num_workers` (default 1) workers of `cpus_outside` CPUs anywhere.
    """
    from ray.train import ScalingConfig

    workers = _workers(lease)
    if not workers:
        return ScalingConfig(num_workers=num_workers or 1, resources_per_worker={"CPU": cpus_outside}, **more)
    count = len(workers) if num_workers is None else num_workers
    if not 0 < count <= len(workers):
        raise InvalidRequest(
            f"{count} training workers do not fit this lease",
            why=f"it holds {len(workers)}",
            todo="grow it with moorage.lease(...), or submit with more workers",
            code="lease-too-small",
        )
    resources = _equal_resources(workers[:count])
    if follow and num_workers is None and os.environ.get(ELASTIC_VARIABLE):
        from moorage.cluster.raytrain import LeaseScaling, announce

        announce()
        return LeaseScaling(use_gpu=resources.get("GPU", 0) > 0, resources_per_worker=resources, **more)
    selectors = [node_selector(worker.ray_node_id) for worker in workers[:count]]
    return ScalingConfig(
        num_workers=count,
        use_gpu=resources.get("GPU", 0) > 0,
        resources_per_worker=resources,
        label_selector=selectors,
        **more,
    )


def tune_slots(lease: LeaseView | None = None, *, outside: int = 2) -> int:
    """How many trials may run at a time: one per worker of the lease, `outside` without one."""
    return len(_workers(lease)) or outside


def tune_resources(
    lease: LeaseView | None = None, *, cpus_outside: float = 1
) -> Callable[[Mapping[str, Any]], PlacementGroupFactory]:
    """Resources for `tune.with_resources(trainable, tune_resources())`: a trial runs where its slot of the lease is.

    Together with `tune_config()`, whose search gives each running trial a slot of its own, placement follows the
    lease exactly: never two trials on one slot, never work on a device the lease does not name.
    """
    workers = _workers(lease)

    def request(config: Mapping[str, Any]) -> PlacementGroupFactory:
        from ray.tune import PlacementGroupFactory

        if not workers:
            return PlacementGroupFactory([{"CPU": cpus_outside}])
        slot = config.get(SLOT)
        if slot is None:
            raise InvalidRequest(
                "a trial has no slot of the lease",
                why="the search algorithm is not the one of moorage.train.tune_config()",
                todo="build the TuneConfig with moorage.train.tune_config(configs, ...)",
                code="trial-without-slot",
            )
        now = _workers(lease)  # an elastic job's lease may be another one by now
        worker = now[min(int(slot), len(now) - 1)]
        selectors = [node_selector(worker.ray_node_id)]
        return PlacementGroupFactory([worker.resources()], bundle_label_selector=selectors)

    return request


def tune_config(
    configs: list[dict[str, Any]],
    *,
    metric: str,
    mode: str = "min",
    lease: LeaseView | None = None,
    follow: bool = False,
    **more: Any,
) -> TuneConfig:
    """A `TuneConfig` that runs `configs` in order, as many at a time as the lease has workers.

    `follow`: of an elastic job, as many as it has at any time. Trials that are too many are paused at their next
    report, with its checkpoint, and go on later.
    """
    from ray.tune import TuneConfig

    from moorage.train.search import LeasedSearch, ParkTrials

    if follow and lease is None and os.environ.get(ELASTIC_VARIABLE) and (heard := feed()) is not None:
        heard.follow()
        search = LeasedSearch(configs, tune_slots)
        more["scheduler"] = ParkTrials(search, tune_resources(), more.get("scheduler"))
        more["reuse_actors"] = False  # an actor that is kept for the next trial keeps its device
        return TuneConfig(
            metric=metric,
            mode=mode,
            search_alg=search,
            num_samples=len(configs),
            max_concurrent_trials=None,
            **more,
        )
    slots = tune_slots(lease)
    return TuneConfig(
        metric=metric,
        mode=mode,
        search_alg=LeasedSearch(configs, slots),
        num_samples=len(configs),
        max_concurrent_trials=None,  # the search hands out slots: a second limiter would only hide its reason
        **more,
    )


__all__ = ["SLOT", "scaling_config", "tune_config", "tune_resources", "tune_slots"]
