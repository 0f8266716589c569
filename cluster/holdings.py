"""From what Ray says of actors, placement groups, workers and jobs to who holds GPUs, and for whom. No Ray import.

The records are Ray's own, not our notes; `moorage.cluster.rayapi` reads them. Amounts are in GPUs, as Ray has them;
what comes out is milli-GPU on nodes by their stable names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moorage.scheduling.guard import UNKNOWN_DEVICE, Holder, Holding, Part, Seen

MAX_ROWS = 10_000
"""Actors, and placement groups, read per look; above it the guard says that it does not see all."""
MAX_SCANS = 16
"""Nodes per look whose workers are asked for; the others have their turn in the next ones."""
SUPERVISOR_NAMESPACE = "SUPERVISOR_ACTOR_RAY_NAMESPACE"
SUPERVISOR_NAME = "_ray_internal_job_actor_"
REPLICA_NAME, SERVE_NAMESPACE = "SERVE_REPLICA::", "serve"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawActor:
    """`gpus`: {device: amount} outside placement groups, `in_group` inside its own; `worker` is its own process's id,
    `owner_worker` that of the process that made it ("" for a detached one)."""

    id: str
    job: str
    name: str
    namespace: str
    node: str
    pid: int
    detached: bool
    since_ms: int
    group: str
    worker: str
    owner_worker: str
    gpus: Mapping[int, float]
    in_group: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawGroup:
    """`bundles`: (node, GPUs) of those that are placed."""

    id: str
    job: str
    name: str
    namespace: str
    detached: bool
    since_ms: int
    bundles: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawWorker:
    """A worker process that holds GPUs; `actor` is "" while it runs tasks."""

    job: str
    actor: str
    pid: int
    gpus: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawProcess:
    """A process on a device, as its node says (`moorage.cluster.devices`). `started` with `pid` names it for good;
    `job` and `submission` are what its environment says, "" where it says nothing; `mib` is -1 where unknown.
    `asked_ms`: when its node was asked (wall time); one answer is seen by several looks."""

    device: int
    pid: int
    started: int
    mib: int
    command: str
    job: str
    submission: str
    asked_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDriver:
    """A Ray job: the submission behind it, or ""."""

    submission: str
    dead: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What one look read. `nodes` maps Ray's node id to our name, `workers` and `processes` hold the nodes that
    were asked. `starting`: actors in their constructor, as far as they are known.

    `deployers`: Serve application -> Ray job, None when Serve did not say. `own_job` is the agent's Ray job.
    """

    nodes: Mapping[str, str]
    drivers: Mapping[str, RawDriver]
    own_job: str
    actors: Sequence[RawActor] = ()
    starting: Sequence[RawActor] = ()
    groups: Sequence[RawGroup] = ()
    workers: Mapping[str, Sequence[RawWorker]] = field(default_factory=dict)
    processes: Mapping[str, Sequence[RawProcess]] = field(default_factory=dict)
    deployers: Mapping[str, str] | None = None


def replicas_with_gpus(actors: Sequence[RawActor], groups: Sequence[RawGroup]) -> bool:
    """Whether it matters who deployed which Serve application."""
    return any(app_of(one.name, one.namespace) and (one.gpus or one.group) for one in actors) or any(
        app_of(one.name, one.namespace) for one in groups
    )


def app_of(name: str, namespace: str) -> str:
    """The application of a Serve replica, or of its placement group, by their name; "" for anything else."""
    if namespace != SERVE_NAMESPACE or not name.startswith(REPLICA_NAME):
        return ""
    app, _, rest = name.removeprefix(REPLICA_NAME).partition("#")
    return app if "#" in rest else ""


def unexplained(
    used: Mapping[str, int], actors: Sequence[RawActor], groups: Sequence[RawGroup]
) -> dict[str, int]:
    """Milli-GPU that Ray has booked on a node (`used`, by Ray's node id) and that neither actors nor groups explain:
    running tasks, actors in their constructor, or news that has not reached every table yet."""
    left = dict(used)
    for actor in actors:
        left[actor.node] = left.get(actor.node, 0) - _milli(sum(actor.gpus.values()))
    for group in groups:
        for node, amount in group.bundles:
            left[node] = left.get(node, 0) - _milli(amount)
    return {node: amount for node, amount in left.items() if amount > 0}


def assemble(records: Records, at_ns: int, complete: bool, rest: Mapping[str, int]) -> Seen:
    """All holders of GPUs; `rest` is what was unexplained before the workers were asked."""
    apps = _Apps(records)
    found = [_actor(records, apps, one) for one in records.actors if one.gpus]
    found += [_group(records, apps, one) for one in records.groups if any(gpu for _, gpu in one.bundles)]
    known = {one.id for one in records.actors}
    left = dict(rest)
    for node, workers in records.workers.items():
        for worker in workers:
            if worker.actor not in known:
                left[node] = left.get(node, 0) - _milli(sum(worker.gpus.values()))
    found += _starting(records, apps, known, at_ns)
    found += _tasks(records, at_ns)
    held = [one for one in found if one.milli_gpu > 0]
    return Seen(
        at_ns=at_ns,
        holdings=(*held, *_processes(records, apps)),
        complete=complete,
        unexplained={_node(records, node): amount for node, amount in sorted(left.items()) if amount > 0},
    )


class _Apps:
    """For which Serve application an actor or a group works: by its name, by the replica that made it, or by the
    replica inside it (applications on several GPUs make actors and groups of their own)."""

    def __init__(self, records: Records) -> None:
        self._of_worker: dict[str, str] = {}
        self._of_group: dict[str, str] = {}
        for one in records.actors:
            app = app_of(one.name, one.namespace)
            if app:
                self._of_worker[one.worker] = app
                if one.group:
                    self._of_group[one.group] = app

    def of_actor(self, actor: RawActor) -> str:
        return app_of(actor.name, actor.namespace) or self._of_worker.get(actor.owner_worker, "")

    def of_group(self, group: RawGroup) -> str:
        return app_of(group.name, group.namespace) or self._of_group.get(group.id, "")


def _actor(records: Records, apps: _Apps, one: RawActor) -> Holding:
    app = apps.of_actor(one) if one.job == records.own_job else ""
    supervised = one.namespace == SUPERVISOR_NAMESPACE and one.name.startswith(SUPERVISOR_NAME)
    whose = (
        # The entrypoint's own GPUs: Ray books them under its dashboard's job.
        {"submission": one.name.removeprefix(SUPERVISOR_NAME), "owner": one.job}
        if supervised
        else _whose(records, one.job, app)
    )
    return Holding(
        holder=Holder.REPLICA if app else Holder.ACTOR,
        id=one.id,
        parts=_parts(records, one.node, one.gpus),
        detached=one.detached,
        name=one.name,
        namespace=one.namespace,
        app=app,
        pid=one.pid,
        since_ms=one.since_ms,
        **whose,
    )


def _group(records: Records, apps: _Apps, one: RawGroup) -> Holding:
    app = apps.of_group(one) if one.job == records.own_job else ""
    return Holding(
        holder=Holder.GROUP,
        app=app,
        id=one.id,
        parts=tuple(_reserved(records, one)),
        detached=one.detached,
        name=one.name,
        namespace=one.namespace,
        since_ms=one.since_ms,
        **_whose(records, one.job, app),
    )


def _reserved(records: Records, group: RawGroup) -> Iterator[Part]:
    """What a group reserves: on the devices of the actors inside, the rest on devices that Ray does not say."""
    reserved: dict[str, int] = {}
    for node, amount in group.bundles:
        reserved[node] = reserved.get(node, 0) + _milli(amount)
    for actor in records.actors:
        if actor.group == group.id and reserved.get(actor.node, 0) >= _milli(sum(actor.in_group.values())):
            reserved[actor.node] -= _milli(sum(actor.in_group.values()))
            yield from _parts(records, actor.node, actor.in_group)
    for node, left in reserved.items():
        if left:
            yield Part(node=_node(records, node), device=UNKNOWN_DEVICE, milli_gpu=left)


def _starting(records: Records, apps: _Apps, known: set[str], at_ns: int) -> list[Holding]:
    """Actors whose constructor still runs: the table of living actors does not have them yet. Whose they are says that
    of those who start (a job's entrypoint is an actor of Ray's dashboard), else the job they run in."""
    starts = {one.id: one for one in records.starting}
    found = []
    for node, workers in records.workers.items():
        for worker in workers:
            if not worker.actor or worker.actor in known:
                continue
            raw, parts = starts.get(worker.actor), _parts(records, node, worker.gpus)
            if raw is not None:
                made = _actor(records, apps, raw)
                found.append(replace(made, parts=parts, pid=worker.pid, since_ms=at_ns // 10**6))
                continue
            found.append(
                Holding(
                    holder=Holder.ACTOR,
                    id=worker.actor,
                    parts=parts,
                    pid=worker.pid,
                    since_ms=at_ns // 10**6,
                    **_whose(records, worker.job, ""),
                )
            )
    return found


def _tasks(records: Records, at_ns: int) -> list[Holding]:
    """The running tasks of each Ray job as one holder."""
    parts: dict[str, list[Part]] = {}
    for node, workers in records.workers.items():
        for worker in workers:
            if not worker.actor:
                parts.setdefault(worker.job, []).extend(_parts(records, node, worker.gpus))
    return [
        Holding(
            holder=Holder.TASKS,
            id=job,
            parts=tuple(held),
            since_ms=at_ns // 10**6,
            **_whose(records, job, ""),
        )
        for job, held in sorted(parts.items())
    ]


def _processes(records: Records, apps: _Apps) -> Iterator[Holding]:
    """One holder per process, on all of its devices. An actor's process is its job's whatever its environment says: a
    worker keeps that of the job it was started for."""
    actors = {(one.node, one.pid): one for one in records.actors}
    for node, running in records.processes.items():
        by_process: dict[tuple[int, int], list[RawProcess]] = {}
        for one in running:
            by_process.setdefault((one.pid, one.started), []).append(one)
        for (pid, started), places in by_process.items():
            first, actor = places[0], actors.get((node, pid))
            known = [one.mib for one in places if one.mib >= 0]
            found = Holding(
                holder=Holder.PROCESS,
                id=f"{_node(records, node)}/{pid}/{started}",
                parts=tuple(
                    Part(node=_node(records, node), device=one.device, milli_gpu=0) for one in places
                ),
                name=first.command,
                pid=pid,
                mib=sum(known) if known else -1,
                since_ms=first.asked_ms,
            )
            if actor is not None:
                made = _actor(records, apps, actor)
                whose = {
                    key: getattr(made, key) for key in ("owner", "submission", "owner_dead", "app", "own")
                }
                yield replace(found, **{**whose, "submission": made.submission or first.submission})
            elif first.job:
                whose = _whose(records, first.job, "")
                yield replace(
                    found, **{**whose, "submission": first.submission or whose.get("submission", "")}
                )
            else:
                yield replace(found, submission=first.submission)


def _whose(records: Records, job: str, app: str) -> dict[str, Any]:
    """Owner, submission and so on of what Ray job `job` made, for application `app` if that is one."""
    if app and records.deployers is not None and app in records.deployers:
        job = records.deployers[app]
    elif job == records.own_job:
        return {"owner": job, "own": True}
    driver = records.drivers.get(job, RawDriver(submission="", dead=True))
    return {"owner": job, "submission": driver.submission, "owner_dead": driver.dead}


def _parts(records: Records, node: str, gpus: Mapping[int, float]) -> tuple[Part, ...]:
    return tuple(
        Part(node=_node(records, node), device=device, milli_gpu=_milli(amount))
        for device, amount in sorted(gpus.items())
        if _milli(amount)
    )


def _node(records: Records, ray_node_id: str) -> str:
    return records.nodes.get(ray_node_id, f"ray-{ray_node_id[:12]}")


def _milli(gpus: float) -> int:
    return round(gpus * 1000)
