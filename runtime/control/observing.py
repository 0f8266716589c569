"""Observation to state: nodes come and go, attempts run and end. Every transition after launch happens here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from moorage.cluster.backend import Observation, ObservedJob, ObservedNode
from moorage.cluster.binding import LEASE_VARIABLE, decode
from moorage.configs.job import JobAsk
from moorage.runtime.control import lifecycle, outcome, records, states
from moorage.runtime.control.api import ADMITTED, RUNNING, STARTING
from moorage.runtime.control.book import node_spec
from moorage.runtime.control.core import Change, Core
from moorage.runtime.control.records import JobRow
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import devices, jobs, nodes, outbox, placements
from moorage.scheduling.ledger import NodeDown, NodeUp, accepts
from moorage.scheduling.model import NodeSpec

_NODE_FIELDS = (
    "ray_node_id",
    "address",
    "alive",
    "is_head",
    "gpu_model",
    "devices",
    "device_mib",
    "milli_cpu",
    "mib",
)


class Observer:
    """Keeps what is only worth remembering while this process lives."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._nodes: dict[str, tuple[Any, ...]] = {}
        self._missing: dict[str, int] = {}
        """Attempt -> control time since which Ray does not know it."""
        self._pinned: dict[str, frozenset[tuple[str, str]]] = {}
        """Attempt -> the nodes it was launched for, with Ray's ids: a node that is restarted has another one."""

    def absorb(self, seen: Observation) -> None:
        """Bring store and book in line with what was seen, in one transaction (none if nothing changed)."""
        core = self._core
        with core.store.lock:
            changed = self._changed_nodes(seen)
            steps = self._steps(seen)
            if not changed and not steps:
                return
            with core.change("observe") as change:
                for node in changed:
                    self._put_node(change, node)
                for act, job, arguments in steps:
                    act(change, job, *arguments)
            self._nodes.update({node.name: _figures(node) for node in changed})

    # -- nodes

    def _changed_nodes(self, seen: Observation) -> list[ObservedNode]:
        """Nodes to write: new, changed, or known and no longer there (as not alive)."""
        present: dict[str, ObservedNode] = {}
        if not self._nodes:
            with self._core.store.read() as db:
                for row in db.execute(select(nodes)).all():
                    self._nodes[row.name] = _figures(row)
        for node in sorted(seen.nodes, key=lambda n: n.alive):
            present[node.name] = self._as_booked(
                node
            )  # an alive incarnation wins over a dead one of its name
        found = [node for node in present.values() if self._nodes.get(node.name) != _figures(node)]
        found = [node for node in found if node.alive or node.name in self._nodes]
        for name, figures in self._nodes.items():
            if name not in present and figures[_NODE_FIELDS.index("alive")]:
                found.append(_as_down(name, figures))
        return found

    def _as_booked(self, node: ObservedNode) -> ObservedNode:
        """The node; as it was and down, when it came back with other devices while leases hold parts of the old.

        So nothing new goes there until they end, and the store keeps the figures that its leases fit in.
        """
        known = self._nodes.get(node.name)
        if not node.alive or known is None or accepts(self._core.book.ledger, self._spec(node)):
            return node
        return _as_down(node.name, known)

    def _put_node(self, change: Change, node: ObservedNode) -> None:
        db, now, core = change.db, change.now, self._core
        values = {name: getattr(node, name) for name in _NODE_FIELDS}
        known = db.execute(select(nodes).where(nodes.c.name == node.name)).one_or_none()
        if known is None:
            values |= {"name": node.name, "labels": dict(node.labels), "first_seen_ns": now.wall_ns}
            db.execute(insert(nodes).values(**values, changed_ns=now.wall_ns))
        else:
            if node.alive:
                values["labels"] = dict(node.labels)
            db.execute(
                update(nodes).where(nodes.c.name == node.name).values(**values, changed_ns=now.wall_ns)
            )
        have = set(db.execute(select(devices.c.index).where(devices.c.node == node.name)).scalars())
        for index in range(node.devices):
            figures = {"gpu_model": node.gpu_model, "mib": node.device_mib}
            if index in have:
                where = devices.c.id == f"{node.name}/{index}"
                db.execute(update(devices).where(where).values(**figures))
            else:
                key = f"{node.name}/{index}"
                db.execute(insert(devices).values(id=key, node=node.name, index=index, **figures))
        payload = {name: getattr(node, name) for name in _NODE_FIELDS}
        if node.alive:  # version 1 of the event without these: a node that is just its figures
            payload |= {"labels": dict(node.labels), "traits": asdict(self._spec(node).traits)}
        record(db, now, "node.up" if node.alive else "node.down", {"node": node.name, **payload})
        change.after.append(lambda: core.book.ray_ids.__setitem__(node.name, node.ray_node_id))
        change.after.append(lambda: self._node_to_book(node))

    def _node_to_book(self, node: ObservedNode) -> None:
        book = self._core.book
        (book.alive.add if node.alive else book.alive.discard)(node.name)
        if node.alive:
            book.apply(NodeUp(self._spec(node)))
        if not node.alive or node.name in book.drained:
            book.apply(NodeDown(node.name))

    def _spec(self, node: ObservedNode) -> NodeSpec:
        return node_spec(node, self._core.settings)

    # -- jobs

    def _steps(self, seen: Observation) -> list[tuple[Any, JobRow, tuple[Any, ...]]]:
        by_id = {job.submission_id: job for job in seen.jobs}
        alive = {node.name for node in seen.nodes if node.alive}
        ids = {"", *(node.ray_node_id for node in seen.nodes if node.alive)}
        steps: list[tuple[Any, JobRow, tuple[Any, ...]]] = []
        with self._core.store.read() as db:
            active = db.execute(select(jobs).where(jobs.c.state.in_(states.WITH_ATTEMPT))).all()
            pinned: dict[str, frozenset[tuple[str, str]]] = {}
            for job in active:
                attempt = records.current_attempt(db, job)
                ray = by_id.get(attempt.submission_id)
                launched_for = self._launched_for(db, attempt)
                pinned[attempt.submission_id] = launched_for
                homes = set(
                    db.execute(
                        select(placements.c.node).where(placements.c.lease_id == attempt.lease_id)
                    ).scalars()
                )
                # Nodes that the lease has been resized away from are no concern of its job's.
                home_lost = bool(homes - alive) or any(
                    node in homes and ray_id not in ids for node, ray_id in launched_for
                )
                steps += self._judge(job, attempt, ray, home_lost)
        self._pinned = {key: found for key, found in pinned.items() if found}
        return steps

    def _launched_for(self, db: Connection, attempt: Row[Any]) -> frozenset[tuple[str, str]]:
        """The nodes of the lease that an attempt was launched with; none before that is written down."""
        known = self._pinned.get(attempt.submission_id)
        if known is not None:
            return known
        launch = select(outbox.c.payload).where(
            outbox.c.kind == "launch", outbox.c.submission_id == attempt.submission_id
        )
        environment = db.execute(launch).scalar_one().get("runtime_env") or {}
        text = (environment.get("env_vars") or {}).get(LEASE_VARIABLE)
        if not text:
            return frozenset()
        view = decode(text)
        heads = () if view.head is None else (view.head,)
        return frozenset((place.node, place.ray_node_id) for place in (*heads, *view.workers))

    def _judge(
        self, job: JobRow, attempt: Row[Any], ray: ObservedJob | None, home_lost: bool
    ) -> list[tuple[Any, JobRow, tuple[Any, ...]]]:
        """What to do for one active job; at most one step."""
        now = self._core.store.clock.now()
        if ray is None:
            if job.state == ADMITTED:
                return [(self._withdraw, job, ())] if home_lost else []
            if home_lost:  # the whole cluster is another one: Ray will not know it again
                return [(self._lost, job, (attempt,))]
            since = self._missing.setdefault(attempt.submission_id, now.control_ns)
            if now.control_ns - since >= self._core.settings.lost_after_ms * 10**6:
                return [(self._lost, job, (attempt,))]
            return []
        self._missing.pop(attempt.submission_id, None)
        if ray.ended:
            return [(self._ended, job, (ray, home_lost))]
        if ray.status == "RUNNING" and job.state in (ADMITTED, STARTING):
            return [(self._running, job, ())]
        if job.state == ADMITTED:
            return [(self._accepted, job, ())]
        if job.stop_reason:
            return []
        if home_lost:  # its workers are pinned to a node that is gone, also when that has come back
            return [(self._stop, job, (attempt, outcome.NODE_LOST))]
        asked, patience = attempt.launched_control_ns, self._core.settings.start_timeout_s * 10**9
        if job.state == STARTING and asked is not None and now.control_ns - asked >= patience:
            return [(self._stop, job, (attempt, outcome.NOT_BEGUN))]
        limit = JobAsk.model_validate(job.ask).max_runtime_ns
        started = attempt.started_control_ns
        if limit and started is not None and now.control_ns - started >= limit:
            return [(self._stop, job, (attempt, outcome.MAX_RUNTIME))]
        return []

    def _accepted(self, change: Change, job: JobRow) -> JobRow:
        """Ray has an attempt that we did not finish launching: this process was killed in between."""
        attempt = records.current_attempt(change.db, job)
        records.close_outbox(change.db, change.now, attempt.submission_id, ("launch",))
        return launched(change, job, "launch-observed")

    def _running(self, change: Change, job: JobRow) -> None:
        if job.state == ADMITTED:
            job = self._accepted(change, job)
        now = change.now
        records.set_attempt(
            change.db, job, state=RUNNING, started_ns=now.wall_ns, started_control_ns=now.control_ns
        )
        first = job.started_ns or now.wall_ns
        records.transition(change.db, now, job, RUNNING, "observed-running", started_ns=first)

    def _ended(self, change: Change, job: JobRow, ray: ObservedJob, home_lost: bool) -> None:
        """Who failed beside a lost node failed because of it, as far as can be known: it is tried again."""
        if job.state == ADMITTED:
            job = self._accepted(change, job)
        asked = JobAsk.model_validate(job.ask).max_attempts or 1
        verdict = outcome.judge(
            ray.status,
            ray.message,
            ray.driver_exit_code,
            job.stop_reason or (outcome.NODE_LOST if home_lost else ""),
            asked - 1 - job.failed_attempts,
        )
        if job.started_ns is None:
            started = change.now.wall_ns if ray.start_ms is None else ray.start_ms * 10**6
            change.db.execute(update(jobs).where(jobs.c.id == job.id).values(started_ns=started))
        lifecycle.end_attempt(self._core, change, job, verdict, ray.driver_exit_code)

    def _lost(self, change: Change, job: JobRow, attempt: Row[Any]) -> None:
        self._missing.pop(attempt.submission_id, None)
        text = "Ray no longer knows the attempt: its cluster was replaced or its record deleted"
        verdict = outcome.judge("FAILED", text, None, job.stop_reason)
        lifecycle.end_attempt(self._core, change, job, verdict, None)

    def _withdraw(self, change: Change, job: JobRow) -> None:
        """The lease's node went away before Ray was asked for anything."""
        attempt = records.current_attempt(change.db, job)
        launch = change.db.execute(
            select(outbox).where(outbox.c.kind == "launch", outbox.c.submission_id == attempt.submission_id)
        ).one()
        if launch.begun_ns is not None or job.stop_reason:
            return  # Ray may have it: it is launched to the end, then judged by what is seen
        records.close_outbox(change.db, change.now, attempt.submission_id, ("launch", "stop"))
        ended = {
            "state": "LOST",
            "ended_ns": change.now.wall_ns,
            "message": "its node was lost before the start",
        }
        records.set_attempt(change.db, job, **ended)
        self._core.freed(change, records.release_all(change.db, change.now, job, "node-lost"))
        lifecycle.requeue(self._core, change, job, "node-lost", "its node was lost before the start")

    def _stop(self, change: Change, job: JobRow, attempt: Row[Any], reason: str) -> None:
        lifecycle.ask_stop(change, job, attempt, reason)


def launched(change: Change, job: JobRow, reason: str) -> JobRow:
    """Ray has the attempt: ADMITTED -> STARTING."""
    now = change.now
    records.set_attempt(
        change.db, job, state=STARTING, launched_ns=now.wall_ns, launched_control_ns=now.control_ns
    )
    return records.transition(change.db, now, job, STARTING, reason)


def _as_down(name: str, figures: tuple[Any, ...]) -> ObservedNode:
    values = dict(zip(_NODE_FIELDS, figures, strict=False)) | {"alive": False}
    return ObservedNode(name=name, labels={}, free_milli_gpu=0, free_milli_cpu=0, **values)


def _figures(node: Any) -> tuple[Any, ...]:
    """What makes a node another one: its fields and, while it is up, its labels."""
    labels = tuple(sorted(node.labels.items())) if node.alive else ()
    return (*(getattr(node, name) for name in _NODE_FIELDS), labels)
