"""Endpoints: names for Serve applications that running jobs host, with the replicas that a lease carries.

An endpoint has one application, or as many as it has replicas (`report`): the front door spreads requests over those
that serve. What a job reports is remembered as long as the job runs; load is remembered in memory alone.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Iterable
from typing import Any, get_args

from sqlalchemy import Connection, Row, distinct, func, insert, null, select, update

from moorage.configs import units
from moorage.errors import Conflict, NotFound
from moorage.runtime import answers
from moorage.runtime.control.api import Caller, EndpointView, ReplicaReport
from moorage.runtime.control.book import Book
from moorage.runtime.control.core import Core
from moorage.runtime.control.growth import asks_view, own_job
from moorage.runtime.control.records import JobRow
from moorage.runtime.control.states import ON_RAY, WITH_ATTEMPT
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import endpoints, jobs, leases, placements
from moorage.scheduling.model import Role

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ROUTE = re.compile(r"(?=.{2,256}$)(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+/?")
"""No root, no empty or dotted segment, and not Serve's own `/-/`."""
STATES: tuple[str, ...] = get_args(answers.ReplicaState)
MOST_REPLICAS = 1000


def ask_name(endpoint: str, number: int) -> str:
    """The name of the ask for one more replica: what `waits` of an endpoint is found by."""
    return f"endpoint:{endpoint}:{number}"


def publish(core: Core, caller: Caller, name: str, app: str, route: str, job_id: str | None) -> EndpointView:
    """Give a name to a Serve app that a running job of the caller's hosts. The name stays with its first team."""
    if not _NAME.fullmatch(name):
        raise units.refuse("name", name, "lower case letters, digits and '-', at most 63")
    if not app or len(app) > 100 or not app.isprintable():
        raise units.refuse("app", app, "1 to 100 printable characters")
    if not _ROUTE.fullmatch(route):
        raise units.refuse(
            "route",
            route,
            "a route prefix of its own such as '/flights': the root would reach every team's apps",
        )
    with core.change() as change:
        db, now = change.db, change.now
        job = own_job(db, caller, job_id)
        if job.state not in WITH_ATTEMPT:
            raise Conflict(
                f"job {job.id} is {job.state}", why="an endpoint needs a running job", code="job-not-running"
            )
        held = db.execute(
            select(leases.c.id)
            .where(leases.c.job_id == job.id, leases.c.held.is_(True))
            .order_by(leases.c.epoch)
        ).scalars()
        lease_id = next(iter(held), "")
        old = db.execute(select(endpoints).where(endpoints.c.name == name)).one_or_none()
        if old is not None and old.team != job.team:
            raise Conflict(f"the endpoint name {name!r} belongs to another team", code="endpoint-name-in-use")
        _check_route(core.book, db, job.team, route)
        values = {
            "job_id": job.id,
            "lease_id": lease_id,
            "app": app,
            "route": route,
            "created_ns": now.wall_ns,
            "scaling": null(),
        }
        if old is None:
            values |= {"name": name, "id": f"e-{secrets.token_hex(8)}", "team": job.team}
            db.execute(insert(endpoints).values(**values))
        else:
            db.execute(update(endpoints).where(endpoints.c.name == name).values(**values))
        record(
            db,
            now,
            "endpoint.published",
            {"name": name, "app": app, "route": route},
            principal=caller.principal,
            team=job.team,
            job_id=job.id,
            lease_id=lease_id,
        )
        return endpoint_views(core.book, db, name)[0]


def _check_route(book: Book, db: Connection, team: str, route: str) -> None:
    """Conflict when requests to `route` could reach what another team serves now: its route, below or above it."""
    wanted = route.rstrip("/") + "/"
    for other in endpoint_views(book, db):
        if not other.live or other.team == team:
            continue
        of_replicas = other.scaling["replicas"] if other.scaling else ()
        for served in (other.route, *(replica["route"] for replica in of_replicas)):
            taken = served.rstrip("/") + "/"
            if wanted.startswith(taken) or taken.startswith(wanted):
                raise Conflict(
                    f"the route {route!r} is served by another team",
                    todo="give your application another route_prefix",
                    code="endpoint-route-in-use",
                )


def report(core: Core, caller: Caller, name: str, said: ReplicaReport) -> EndpointView:
    """Remember what an endpoint's job says of its replicas: requests go to those that serve, from now on.

    Whole each time, so a report that was lost is made up for by the next. Only a change of more than load is written.
    """
    _check(said)
    with core.store.lock, core.store.read() as db:
        row, job = _own(db, caller, name)
        same = row.scaling == _remembered(said, job.attempt)
    if not same:
        with core.change("endpoint") as change:
            db, now = change.db, change.now
            row, job = _own(db, caller, name)
            for replica in said.replicas:
                _check_route(core.book, db, job.team, replica["route"])
            _check_leases(db, job, said.replicas)
            scaling = _remembered(said, job.attempt)
            db.execute(update(endpoints).where(endpoints.c.name == name).values(scaling=scaling))
            record(
                db,
                now,
                "endpoint.scaled",
                {"name": name, "wanted": said.wanted, **_counts(said.replicas), "load": dict(said.load)},
                principal=caller.principal,
                team=job.team,
                job_id=job.id,
            )
    with core.store.lock, core.store.read() as db:
        core.book.loads[name] = dict(said.load)
        return endpoint_views(core.book, db, name)[0]


def _own(db: Connection, caller: Caller, name: str) -> tuple[Row[Any], JobRow]:
    """The endpoint, and the running job that published it last: only that job speaks for it."""
    row = db.execute(select(endpoints).where(endpoints.c.name == name)).one_or_none()
    if row is None or not caller.may_see(row.team):
        raise NotFound(f"there is no endpoint {name!r}", code="endpoint-not-found")
    job = own_job(db, caller, row.job_id)
    if job.state not in WITH_ATTEMPT:
        raise Conflict(
            f"job {job.id} is {job.state}", why="an endpoint needs a running job", code="job-not-running"
        )
    return row, job


def _check(said: ReplicaReport) -> None:
    units.whole("min_replicas", said.min_replicas, 1, MOST_REPLICAS)
    units.whole("max_replicas", said.max_replicas, said.min_replicas, MOST_REPLICAS)
    units.whole("wanted", said.wanted, said.min_replicas, said.max_replicas)
    if len(said.note) > 1000:
        raise units.refuse("note", said.note[:40], "at most 1000 characters")
    if len(said.replicas) > MOST_REPLICAS:
        raise units.refuse("replicas", len(said.replicas), f"at most {MOST_REPLICAS}")
    if len({one["app"] for one in said.replicas}) < len(said.replicas):
        raise units.refuse("replicas", "", "each replica is an application of its own")
    for one in said.replicas:
        state, app, route = one["state"], one["app"], one["route"]
        if state not in STATES:
            raise units.refuse("state", state, f"one of {', '.join(STATES)}")
        if not app or len(app) > 100 or not app.isprintable():
            raise units.refuse("app", app, "1 to 100 printable characters")
        if not _ROUTE.fullmatch(route):
            raise units.refuse("route", route, "a route prefix of its own such as '/flights'")


def _check_leases(db: Connection, job: JobRow, replicas: Iterable[answers.Replica]) -> None:
    """No more replicas on a lease than it has workers: Conflict otherwise. One that drains may outlive its lease."""
    held = {
        row.id: row.workers
        for row in db.execute(
            select(leases.c.id, func.count(distinct(placements.c.task)).label("workers"))
            .join(placements, placements.c.lease_id == leases.c.id)
            .where(leases.c.job_id == job.id, leases.c.held.is_(True), placements.c.role == str(Role.WORKER))
            .group_by(leases.c.id)
        )
    }
    used = Counter(one["lease_id"] for one in replicas if one["state"] != "DRAINING")
    for lease, count in used.items():
        if count > held.get(lease, 0):
            raise Conflict(
                f"{count} replicas on lease {lease!r}, which holds {held.get(lease, 0)} workers of job {job.id}",
                todo="a replica starts on a worker of its own: ask for one more lease",
                code="replicas-beyond-lease",
            )


def _remembered(said: ReplicaReport, attempt: int) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "min_replicas": said.min_replicas,
        "max_replicas": said.max_replicas,
        "wanted": said.wanted,
        "note": said.note,
        "replicas": list(said.replicas),
    }


def _counts(replicas: Iterable[answers.Replica]) -> dict[str, int]:
    states: list[str] = [one["state"] for one in replicas]
    return {state.lower(): states.count(state) for state in STATES}


def endpoint_views(book: Book, db: Connection, name: str | None = None) -> list[EndpointView]:
    """All endpoints by name, or the one named (an empty list without it)."""
    query = select(endpoints, jobs.c.state.label("job_state"), jobs.c.attempt.label("job_attempt")).join(
        jobs, jobs.c.id == endpoints.c.job_id
    )
    if name is not None:
        query = query.where(endpoints.c.name == name)
    return [
        EndpointView(
            name=row.name,
            app=row.app,
            route=row.route,
            team=row.team,
            job_id=row.job_id,
            created_ns=row.created_ns,
            live=row.job_state in ON_RAY,
            scaling=_scaling(book, db, row),
        )
        for row in db.execute(query.order_by(endpoints.c.name)).all()
    ]


def _scaling(book: Book, db: Connection, row: Row[Any]) -> answers.Scaling | None:
    """What the present attempt reported; None when it reported nothing."""
    said = row.scaling
    if not said or said["attempt"] != row.job_attempt or row.job_state not in ON_RAY:
        return None
    waits = [
        one for one in asks_view(book, db, row.job_id) if one["name"].startswith(ask_name(row.name, 0)[:-1])
    ]
    return answers.Scaling(
        min_replicas=said["min_replicas"],
        max_replicas=said["max_replicas"],
        wanted=said["wanted"],
        replicas=said["replicas"],
        load=book.loads.get(row.name, {}),
        waits=waits,
        note=said["note"],
    )
