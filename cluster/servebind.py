"""The Serve applications that a job's own code deploys stay within the job's lease. Part of `autobind`.

`serve.run(app)` says how many replicas there are to be (`num_replicas`, or between `min_replicas` and `max_replicas` of
an `autoscaling_config`) and what each needs. Those it starts with must fit into the lease's workers, or the deployment
is refused before anything starts, and no more than fit are ever started. Replicas with GPUs get the lease's nodes as
their label selector. A deployment that says itself where it runs, by a selector or a placement group, is left alone
(Moorage's own endpoints do): the guard looks at those. So is what a job deploys on a cluster that it started itself.

Serve is one for all jobs, and a name stands for one application: `serve.run(app)` of two jobs, both "default", would
have the second replace the first. Such a name is refused while the job that deployed it runs.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

from moorage.cluster import binding, demands, following, joining, leasegroup
from moorage.cluster.holdings import RawDriver
from moorage.errors import Conflict, InvalidRequest, MoorageError

STARTS_S, CLAIMS_S, LOOKS_EVERY_S = 60.0, 120.0, 0.2
"""So long a job waits for the pool to start Serve, and for another one that deploys the same name just then."""


def wrap_start(api: ModuleType) -> None:
    """A job that needs Serve waits for the pool to start it, at most a minute: whoever starts it chooses its port for
    all. After the cluster was started anew, jobs may be quicker. `api` is `ray.serve._private.api`."""
    original = api.serve_start

    @functools.wraps(original)
    def serve_start(*arguments: Any, **options: Any) -> Any:
        _await_serve()
        return original(*arguments, **options)

    api.serve_start = serve_start  # type: ignore[attr-defined]


def _await_serve() -> None:
    lease = binding.current()
    if lease is None:
        return
    import ray

    from moorage.cluster import rayapi

    if not ray.is_initialized():
        ray.init(namespace="serve")  # as Serve itself would
    if not joining.here(lease):
        return
    if rayapi.serve_is_there():
        return
    joining.say("waiting for the pool to start Serve")
    deadline = time.monotonic() + STARTS_S
    while not rayapi.serve_is_there() and time.monotonic() < deadline:
        time.sleep(LOOKS_EVERY_S)


def wrap_deploy(client: ModuleType) -> None:
    """What `serve.run` ends in. `client` is `ray.serve._private.client`."""
    owner: Any = client.ServeControllerClient
    original = owner.deploy_applications

    @functools.wraps(original)
    def deploy_applications(self: Any, built_apps: Sequence[Any], **options: Any) -> Any:
        lease = following.context()
        bound = lease is not None and joining.here(lease)
        apps: Sequence[Any] = built_apps
        if lease is not None and bound:
            with claimed([app.name for app in apps]):
                apps, held = within(lease, apps)
                result = original(self, apps, **options)
            leasegroup.served.update(held)
            return result
        return original(self, apps, **options)

    owner.deploy_applications = deploy_applications


@contextmanager
def claimed(names: Sequence[str]) -> Iterator[None]:
    """Names that only this process deploys meanwhile: of two jobs that do it in the same moment the second one sees
    what the first one has deployed. Raises as `free_names` does."""
    from moorage.cluster import rayapi

    me, held = rayapi.own_id().encode(), []
    until = time.monotonic() + CLAIMS_S
    try:
        for name in sorted(name for name in set(names) if not _is_the_teams(name)):
            key = f"serve-name/{name}"
            while not rayapi.kv_claim(key, me):
                free_names(names, *_records())
                holder = rayapi.kv_get(key)
                if holder is not None and rayapi.has_ended(holder.decode()):
                    rayapi.kv_delete(key)
                elif time.monotonic() >= until:
                    raise _in_use(name)
                else:
                    time.sleep(LOOKS_EVERY_S)
            held.append(key)
        free_names(names, *_records())
        yield
    finally:
        for key in held:
            rayapi.kv_delete(key)


def _is_the_teams(name: str) -> bool:
    team = os.environ.get("MOORAGE_TEAM", "")
    return bool(team) and name.startswith(f"{team}-")


def _in_use(name: str) -> Conflict:
    return Conflict(
        f"another job serves an application named {name!r}",
        why="Serve is shared by all jobs of the pool: this one would replace it",
        todo="give yours a name and a route: serve.run(app, name='flights', route_prefix='/flights')",
        code="app-name-in-use",
    )


def free_names(names: Sequence[str], deployers: Mapping[str, str], drivers: Mapping[str, RawDriver]) -> None:
    """Conflict (code `app-name-in-use`) when an application of that name was deployed by another job that runs. What an
    ended job left behind, and what this job deployed, may be replaced; so may names of the job's own team, as Moorage's
    endpoints have (`<team>-<endpoint>`): that is how a later job brings a newer version. `deployers`: application ->
    Ray job."""
    ours = os.environ.get("MOORAGE_JOB_ID", "")
    for name in names:
        if _is_the_teams(name):
            continue
        driver = drivers.get(deployers.get(name, ""))
        if driver is not None and not driver.dead and driver.submission.rpartition("-")[0] != ours:
            raise _in_use(name)


def _records() -> tuple[Mapping[str, str], Mapping[str, RawDriver]]:
    """Nothing where Serve or Ray does not say in time: Serve's own answer to the deployment counts then."""
    from ray.exceptions import RayError

    from moorage.cluster import rayapi

    try:
        deployers = rayapi.serve_deployers()
        return deployers, rayapi.drivers() if deployers else {}
    except (RayError, MoorageError, TimeoutError, RuntimeError):
        return {}, {}


def within(
    lease: binding.LeaseView, apps: Sequence[Any]
) -> tuple[list[Any], dict[str, list[tuple[str, float]]]]:
    """Serve's built applications with their replicas on the lease's nodes, and (node, GPUs) of the most replicas that
    each may have. Raises `InvalidRequest` (code `lease-too-small`) when the replicas they start with do not fit. The
    bounds of Serve's own autoscaling come down to what does."""
    asked = [one for app in apps for one in app.deployments if _is_bound(one)]
    counts = _counts(lease, asked)
    found = binding.bundle_selectors(lease, _bundles(asked, counts))
    held: dict[str, list[tuple[str, float]]] = {app.name: [] for app in apps}
    if found is None:
        return list(apps), held
    whose = {id(one): app.name for app in apps for one in app.deployments}
    chosen, at = {}, 0
    for one, most in zip(asked, counts, strict=True):
        places = Counter(selector[binding.NODE_ID_LABEL] for selector in found[at : at + most])
        chosen[id(one)] = _placed(lease, _capped(one, most), places)
        held[whose[id(one)]] += [(node, _gpus(one)) for node, count in places.items() for _ in range(count)]
        at += most
    bound = [replace(app, deployments=[chosen.get(id(one), one) for one in app.deployments]) for app in apps]
    return bound, held


def _counts(lease: binding.LeaseView, asked: Sequence[Any]) -> list[int]:
    """The most replicas of each that there may be: as many as it says where all of that fits, else what fits beside the
    least of the others, one more of each in turn."""
    most, counts = [_most(one) for one in asked], [_least(one) for one in asked]
    if _fit(lease, asked, most):
        return most
    if not _fit(lease, asked, counts):
        named = ", ".join(sorted({str(one.name) for one in asked}))
        gpus = sum(_gpus(one) * count for one, count in zip(asked, counts, strict=True))
        raise InvalidRequest(
            f"the replicas of {named} do not fit into the lease",
            why=f"{sum(counts)} of them take {gpus:g} GPUs, and the lease has {lease.gpus:g} in "
            f"{len(lease.workers)} workers",
            todo="ask for them at submission: workers and gpus_per_worker; or deploy fewer",
            code="lease-too-small",
        )
    growing = [at for at in range(len(asked)) if counts[at] < most[at]]
    while growing:
        for at in list(growing):
            more = [*counts[:at], counts[at] + _step(asked[at]), *counts[at + 1 :]]
            if more[at] <= most[at] and _fit(lease, asked, more):
                counts = more
            else:
                growing.remove(at)
    return counts


def _fit(lease: binding.LeaseView, asked: Sequence[Any], counts: Sequence[int]) -> bool:
    try:
        binding.bundle_selectors(lease, _bundles(asked, counts))
    except InvalidRequest:
        return False
    return True


def _bundles(asked: Sequence[Any], counts: Sequence[int]) -> list[dict[str, float]]:
    return [{"GPU": _gpus(one)} for one, count in zip(asked, counts, strict=True) for _ in range(count)]


def _capped(one: Any, most: int) -> Any:
    if most == _most(one):
        return one
    scaling = one._deployment_config.autoscaling_config
    joining.say(f"{one.name}: max_replicas {_most(one)} becomes {most}, which the lease holds")
    return one.options(autoscaling_config=scaling.model_copy(update={"max_replicas": most}))


def _placed(lease: binding.LeaseView, one: Any, places: Counter[str]) -> Any:
    """One selector stands for all replicas of a deployment, so over several nodes their number on each is bounded."""
    nodes = sorted(places)
    where = nodes[0] if len(nodes) == 1 else f"in({','.join(nodes)})"
    actor = {**(one.ray_actor_options or {}), "label_selector": {binding.NODE_ID_LABEL: where}}
    if wanted := actor.pop("accelerator_type", None):
        demands.of(lease, {"accelerator_type": wanted}, joining.nodes(lease))
    least = one._replica_config.max_replicas_per_node
    if len(nodes) == 1:
        return one.options(ray_actor_options=actor)
    most = max(places.values())
    return one.options(ray_actor_options=actor, max_replicas_per_node=min(least or most, most))


def _gpus(one: Any) -> float:
    return float((one.ray_actor_options or {}).get("num_gpus") or 0)


def _most(one: Any) -> int:
    config = one._deployment_config
    scaling = config.autoscaling_config
    return int(config.num_replicas or 1) if scaling is None else int(scaling.max_replicas)


def _least(one: Any) -> int:
    """Replicas that are started at once."""
    scaling = one._deployment_config.autoscaling_config
    return _most(one) if scaling is None else max(scaling.min_replicas, scaling.initial_replicas or 0, 1)


def _step(one: Any) -> int:
    gang = one._deployment_config.gang_scheduling_config
    return int(gang.gang_size) if gang is not None else 1


def _is_bound(one: Any) -> bool:
    says_where = (one.ray_actor_options or {}).get("label_selector")
    return bool(_gpus(one)) and not says_where and one._replica_config.placement_group_bundles is None
