"""Ray Data follows a job's lease: its limits, and its actor pools, which on their own do not give up busy actors.

Read in Ray 2.60 (`ray/data/_internal`), why a pool stays as large as it is when its limits shrink:

- it removes idle actors only, and keeps handing tasks to all of them: a busy pool never has an idle one;
- never below its `min_size`, which for `concurrency=n` is its size;
- for ten seconds after it grew it removes none.

So here, whenever Ray Data looks after its pools, those that hold more GPUs than the lease has stop handing tasks to as
many actors (the least busy first), let what these have finish, and let go of them then: nothing is done twice. And no
pool grows beyond the lease, whatever its `min_size`. How many GPUs a run may use at all it asks the autoscaling
coordinator, an actor that Ray Train asks too: a job whose lease may change has one of its own, Ray's own class over the
lease's GPUs. CPUs and memory stay those of the cluster, which no lease governs.

Names of what is patched are those of `PATCHED`; nothing here imports Ray Data.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from types import ModuleType
from typing import Any

from moorage.cluster import following

log = logging.getLogger("moorage.lease")
_POOL = "ray.data._internal.execution.operators.actor_pool_map_operator"
_AUTOSCALER = "ray.data._internal.actor_autoscaler.default_actor_autoscaler"
_COORDINATOR = "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator"
PATCHED = (_POOL, _AUTOSCALER, _COORDINATOR)
TICK_S = 1.0
_LITTLE = 1e-6


def patch(module: ModuleType) -> None:
    match module.__name__:
        case name if name == _POOL:
            _leave_drained_alone(module._ActorPool)
        case name if name == _AUTOSCALER:
            _fit_pools(module.DefaultActorAutoscaler)
        case name if name == _COORDINATOR:
            _own_coordinator(module)


# -- actor pools


def _leave_drained_alone(pool_class: Any) -> None:
    """What is being drained is handed no task: for the pool's choice it counts as an actor that has died. And whoever
    makes a pool of actors with GPUs follows the lease from then on, before the first of them is started."""
    original, begin = pool_class._update_rank, pool_class.__init__

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        feed = following.feed() if _gpus(self) else None
        if feed is not None:
            feed.follow()

    def _update_rank(self: Any, actor: Any, state: Any, died: bool) -> None:
        original(self, actor=actor, state=state, died=died or actor in _drained(self))

    pool_class.__init__, pool_class._update_rank = __init__, _update_rank


def _drained(pool: Any) -> set[Any]:
    found: set[Any] = pool.__dict__.setdefault("_moorage_drained", set())
    return found


def _fit_pools(autoscaler: Any) -> None:
    scaling, derive = autoscaler.try_trigger_scaling, autoscaler._derive_target_scaling_config

    def try_trigger_scaling(self: Any) -> None:
        scaling(self)
        allowed = _allowed()
        if allowed is not None:
            fit(_pools(self._topology), allowed)

    def _derive_target_scaling_config(self: Any, actor_pool: Any, op: Any, op_state: Any) -> Any:
        wanted, gpus = derive(self, actor_pool, op, op_state), _gpus(actor_pool)
        allowed = _allowed() if wanted.delta > 0 and gpus else None
        if allowed is None:
            return wanted
        room = int((allowed - held(_pools(self._topology)) + _LITTLE) // gpus)
        if room <= 0:
            return wanted.no_op(reason="the job's lease has no room for more")
        return replace(wanted, delta=min(wanted.delta, room))

    autoscaler.try_trigger_scaling = try_trigger_scaling
    autoscaler._derive_target_scaling_config = _derive_target_scaling_config


def _pools(topology: Any) -> list[Any]:
    """The pools whose actors hold GPUs."""
    return [pool for op in topology for pool in op.get_autoscaling_actor_pools() if _gpus(pool)]


def _gpus(pool: Any) -> float:
    """Of one actor."""
    return float(pool.per_actor_resource_usage().gpu or 0)


def held(pools: Iterable[Any]) -> float:
    """GPUs of all their actors, those that are being drained included."""
    return float(sum(pool.current_size() * _gpus(pool) for pool in pools))


def _allowed() -> float | None:
    """GPUs that the job may use now. None: nothing was heard yet."""
    feed = following.feed()
    if feed is None:
        return None
    return None if feed.now is None else feed.now.usable.gpus


def fit(pools: list[Any], allowed: float) -> None:
    """Drain as many actors as are too many for so many GPUs, the largest pool first; let go of those that are done. One
    actor stays in each pool: without it nothing would ever end."""
    for pool in pools:
        drained = _drained(pool)
        drained &= set(pool._running_actors)
        for actor in [actor for actor in drained if not pool._running_actors[actor].num_tasks_in_flight]:
            drained.discard(actor)
            pool._release_running_actor(actor)
    over = held(pools) - sum(len(_drained(pool)) * _gpus(pool) for pool in pools) - allowed
    while over > _LITTLE:
        pool = max(pools, key=lambda pool: pool.current_size() - len(_drained(pool)), default=None)
        if pool is None or pool.current_size() - len(_drained(pool)) <= 1:
            return
        if not pool._try_remove_pending_actor():
            _drain_one(pool)
        over -= _gpus(pool)
    for pool in pools:  # the lease has grown again meanwhile
        while _drained(pool) and over + _gpus(pool) <= _LITTLE:
            _drained(pool).pop()
            over += _gpus(pool)


def _drain_one(pool: Any) -> None:
    drained = _drained(pool)
    states = {actor: state for actor, state in pool._running_actors.items() if actor not in drained}
    actor = min(states, key=lambda actor: states[actor].num_tasks_in_flight)
    drained.add(actor)
    pool._update_rank(actor=actor, state=states[actor], died=True)
    log.info("an actor of %s is let go: the job's lease has become smaller", pool.map_worker_cls_name)


# -- the coordinator


def lease_nodes() -> list[dict[str, Any]]:
    """Ray's nodes, with no more GPUs than the job may use there."""
    import ray

    lease = following.context()
    nodes: list[dict[str, Any]] = ray.nodes()
    if lease is None:
        return nodes
    gpus: dict[str, float] = {}
    for worker in lease.workers:
        gpus[worker.ray_node_id] = gpus.get(worker.ray_node_id, 0.0) + worker.gpus
    for node in nodes:
        resources = {name: amount for name, amount in (node.get("Resources") or {}).items() if name != "GPU"}
        here = gpus.get(node.get("NodeID", ""), 0.0)
        node["Resources"] = {**resources, "GPU": here} if here else resources
    return nodes


def _own_coordinator(module: Any) -> None:
    original = module.get_or_create_autoscaling_coordinator

    def get_or_create_autoscaling_coordinator() -> Any:
        job, attempt = os.environ.get("MOORAGE_JOB_ID"), os.environ.get("MOORAGE_ATTEMPT", "1")
        if following.feed() is None or not job:
            return original()
        import ray

        base = module._AutoscalingCoordinatorActor
        kind = type("LeaseCoordinator", (base,), {"TICK_INTERVAL_S": TICK_S, "__init__": _begin(base)})
        actor = ray.remote(num_cpus=0)(kind).options(
            name=f"{job}-{attempt}", namespace="moorage-coordinator", get_if_exists=True
        )
        with module._get_or_create_lock:
            return actor.remote()

    module.get_or_create_autoscaling_coordinator = get_or_create_autoscaling_coordinator


def _begin(base: Any) -> Any:
    def __init__(self: Any) -> None:
        # What a job lacks is the pool's to ask for, not Ray's autoscaler's.
        base.__init__(self, send_resources_request=lambda *_, **__: None, get_cluster_nodes=lease_nodes)

    return __init__
