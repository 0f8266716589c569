"""For the front door's own tests: a control plane in memory and a dashboard that serves scripted logs.

They stand in where a test needs a state at an exact moment (an attempt that is cut mid-line, a reason that
changes); tests/ray has the same paths over the real control plane and real raylets.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from moorage.errors import Conflict, Forbidden, InvalidRequest, LeaseTimeout, NotFound, Unauthenticated
from moorage.runtime import answers
from moorage.runtime.control import api
from moorage.runtime.frontdoor.app import create_app
from moorage.runtime.frontdoor.settings import Settings

CALLERS = {
    "ops-token": api.Caller(principal="ops", kind="team", team="ops", teams=frozenset({"ops"})),
    "research-token": api.Caller(
        principal="research", kind="team", team="research", teams=frozenset({"research"})
    ),
    "admin-token": api.Caller(principal="admin", kind="admin", team="", teams=frozenset({"ops", "research"})),
}
RAY_TOKEN = "the-ray-token-of-the-pool"


class MemoryControl:
    """The facade over dictionaries. Tests move jobs with `to`; nothing happens by itself."""

    def __init__(self) -> None:
        self.views: dict[str, api.JobView] = {}
        self.tries: dict[str, list[answers.Attempt]] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.held: dict[str, answers.Lease] = {}
        self.published: dict[str, api.EndpointView] = {}
        self.asked: list[api.GrowAsk] = []
        self.released: list[str] = []
        self.notices: dict[str, answers.Notice] = {}
        self.leases_now: dict[str, answers.HeldLease] = {}
        self.changes: dict[str, int] = {}
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.answers: list[tuple[str, str, int | None]] = []
        self.grant = threading.Event()
        self.authenticated = 0
        self._ids = itertools.count(1)

    # what a test does to a job
    def to(self, job_id: str, state: str, message: str = "", exit_code: int | None = None) -> None:
        self.views[job_id] = replace(
            self.views[job_id],
            state=state,
            ray_status=api.ray_status(state),
            message=message,
            driver_exit_code=exit_code,
            ended_ns=time.time_ns() if state in api.FINAL else None,
            started_ns=self.views[job_id].started_ns or (time.time_ns() if state == api.RUNNING else None),
        )

    def attempt(self, job_id: str) -> str:
        number = len(self.tries[job_id]) + 1
        self.tries[job_id].append(
            answers.Attempt(
                attempt=number,
                submission_id=f"{job_id}-{number}",
                state=api.RUNNING,
                started_ns=time.time_ns(),
                ended_ns=None,
                message="",
                driver_exit_code=None,
            )
        )
        return f"{job_id}-{number}"

    def end_attempt(self, job_id: str) -> None:
        self.tries[job_id][-1] = {**self.tries[job_id][-1], "ended_ns": time.time_ns()}

    # the facade
    def authenticate(self, bearer: str | None) -> api.Caller:
        self.authenticated += 1
        if bearer not in CALLERS:
            raise Unauthenticated("This token is not known")
        return CALLERS[bearer]

    def check_submission(
        self, caller: api.Caller, metadata: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> str:
        named = {k.lower(): v for k, v in (headers or {}).items()}.get("moorage-team") or metadata.get("team")
        if named and not caller.may_see(named):
            raise Forbidden(f"{caller.principal} may not submit for team {named!r}")
        if "worker" in metadata:
            raise InvalidRequest("metadata key 'worker' is not known", why="did you mean 'workers'?")
        return named or caller.team

    def submit(
        self,
        caller: api.Caller,
        submission: api.Submission,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        team = self.check_submission(caller, submission.metadata, headers)
        job_id = submission.submission_id or f"job_{next(self._ids)}"
        if job_id in self.views:
            if self.views[job_id].submission == submission:
                return job_id
            raise Conflict(f"Job {job_id} exists with other content")
        self.headers[job_id] = dict(headers or {})
        self.tries[job_id] = []
        self.views[job_id] = api.JobView(
            job_id=job_id,
            team=team,
            state=api.PENDING,
            ray_status="PENDING",
            message=f"team {team} uses 4 of 4 GPUs; waits for 2",
            submission=submission,
            created_ns=time.time_ns(),
            started_ns=None,
            ended_ns=None,
            attempt=0,
            lease=None,
            driver_exit_code=None,
        )
        return job_id

    def job(self, caller: api.Caller, job_id: str) -> api.JobView:
        view = self.views.get(job_id)
        if view is None or not caller.may_see(view.team):
            raise NotFound(f"No job {job_id!r}")
        return view

    def jobs(self, caller: api.Caller) -> list[api.JobView]:
        return [view for view in reversed(self.views.values()) if caller.may_see(view.team)]

    def why(self, caller: api.Caller, job_id: str) -> api.WhyView:
        view = self.job(caller, job_id)
        if view.state != api.PENDING:
            held = answers.Held(lease="l-1", kind="job", milli_gpu=500, since_ns=5, ends_ns=None)
            return api.WhyView(job=view, explanation=None, holds=[held])
        reason: dict[str, Any] = {
            "code": "team-limit",
            "text": view.message,
            "team": view.team,
            "gpu_model": "*",
        }
        reason |= {"asked": 2000, "held": 4000, "allowed": 4000, "free": 0, "holders": ["hog"]}
        change = {
            "change": "raise-limit",
            "team": view.team,
            "gpu_model": "*",
            "milli": 2000,
            "text": "raise it",
        }
        explanation: answers.Explanation = {
            "job": job_id,
            "now_ns": 7,
            "reason": reason,
            "suggestions": [change],
            "earliest_ns": None,
            "earliest_text": "When it starts is not known.",
            "plans": 12,
            "complete": True,
            "ends_known": 0,
            "ends_unknown": 1,
            "paused": False,
        }
        return api.WhyView(job=view, explanation=explanation, holds=[])

    def stop(self, caller: api.Caller, job_id: str) -> bool:
        if self.job(caller, job_id).final:
            return False
        self.to(job_id, api.STOPPED, "stopped by its owner")
        return True

    def delete(self, caller: api.Caller, job_id: str) -> bool:
        if not self.job(caller, job_id).final:
            raise Conflict(f"Job {job_id} has not ended", todo="stop it first")
        del self.views[job_id]
        return True

    def attempts(self, job_id: str) -> list[answers.Attempt]:
        return list(self.tries[job_id])

    def status(self, caller: api.Caller) -> dict[str, Any]:
        return {"nodes": [], "queue": [], "teams": [], "caller": caller.principal}

    def events(
        self,
        caller: api.Caller,
        after: int = 0,
        limit: int = 100,
        job_id: str | None = None,
        last: bool = False,
    ) -> list[answers.Event]:
        everything = [
            answers.Event(
                seq=n,
                kind="job.submitted",
                version=1,
                wall_ns=n,
                control_ns=n,
                principal=caller.principal,
                team=caller.team,
                job_id=job_id or "",
                lease_id="",
                payload={},
            )
            for n in range(1, 8)
        ]
        found = [one for one in everything if one["seq"] > after]
        return found[-limit:] if last else found[:limit]

    def grow(self, caller: api.Caller, ask: api.GrowAsk) -> answers.Lease:
        self.asked.append(ask)
        if not self.grant.wait(ask.timeout_s):
            raise LeaseTimeout(
                "No lease was granted", why="team ops uses 4 of 4 GPUs", todo="wait or ask for less"
            )
        worker = {
            "node": "node-0",
            "ray_node_id": "ab" * 28,
            "devices": [1],
            "milli_gpu": ask.milli_gpu,
            "gpu_mib": ask.gpu_mib,
            "milli_cpu": ask.milli_cpu,
        }
        lease: dict[str, Any] = {
            "lease_id": f"sub-{len(self.asked)}",
            "epoch": 3,
            "head": None,
            "workers": [worker] * ask.workers,
        }
        view = answers.Lease(
            lease_id=lease["lease_id"], job_id=ask.job_id or "job_1", team=caller.team, epoch=3, lease=lease
        )
        self.held[view["lease_id"]] = view
        return view

    def release_sublease(self, caller: api.Caller, lease_id: str) -> bool:
        self.released.append(lease_id)
        return self.held.pop(lease_id, None) is not None

    def publish_endpoint(
        self, caller: api.Caller, name: str, app: str, route: str, job_id: str | None = None
    ) -> api.EndpointView:
        view = api.EndpointView(
            name=name, app=app, route=route, team=caller.team, job_id=job_id or "", created_ns=1, live=True
        )
        self.published[name] = view
        return view

    def withdraw_ask(self, caller: api.Caller, job_id: str, name: str) -> bool:
        self.job(caller, job_id)
        return any(one.name == name for one in self.asked)

    def report_replicas(self, caller: api.Caller, name: str, said: api.ReplicaReport) -> api.EndpointView:
        scaling = answers.Scaling(
            min_replicas=said.min_replicas,
            max_replicas=said.max_replicas,
            wanted=said.wanted,
            replicas=list(said.replicas),
            load=dict(said.load),
            waits=[],
            note=said.note,
        )
        self.published[name] = replace(self.endpoint(name), scaling=scaling)
        return self.published[name]

    def endpoint(self, name: str) -> api.EndpointView:
        if name not in self.published:
            raise NotFound(f"No endpoint {name!r}")
        return self.published[name]

    def endpoints(self, caller: api.Caller) -> list[api.EndpointView]:
        return [one for one in self.published.values() if caller.may_see(one.team)]

    def lease_now(self, caller: api.Caller, job_id: str) -> answers.HeldLease | None:
        self.job(caller, job_id)
        return self.leases_now.get(job_id)

    def lease_changes(self, job_id: str) -> int:
        return self.changes.get(job_id, 0)

    def follow_lease(self, caller: api.Caller, job_id: str, **said: Any) -> bool:
        self.job(caller, job_id)
        self.said.append((job_id, said))
        return said.get("workers") is not None

    def notice(self, caller: api.Caller, job_id: str) -> answers.Notice | None:
        self.job(caller, job_id)
        return self.notices.get(job_id)

    def noticed(self, job_id: str) -> bool:
        return job_id in self.notices

    def answer_notice(self, caller: api.Caller, job_id: str, said: str, step: int | None = None) -> bool:
        self.job(caller, job_id)
        self.answers.append((job_id, said, step))
        return job_id in self.notices

    def quotas(self, caller: api.Caller) -> answers.Quotas:
        return {"version": 1, "since_ns": 5, "file": {"teams": {"ops": {}}}}

    def put_quotas(
        self, caller: api.Caller, text: str, base: int | None = None, force: bool = False, dry: bool = False
    ) -> answers.QuotasPut:
        return {"version": 2, "applied": not dry, "changes": [{"asked": [text, base, force]}]}

    def drain(self, caller: api.Caller, node: str, drain: bool, why: str = "") -> answers.Drained:
        return {"node": node, "drained": drain, "changed": True, "jobs": [why]}

    def cost(self, caller: api.Caller) -> dict[str, Any]:
        return {"teams": [], "jobs": []}

    def usage(self, caller: api.Caller, minutes: int, points: int) -> answers.Usage:
        return {
            "from_ns": 0,
            "to_ns": minutes * 60 * 10**9,
            "capacity_milli_gpu": 0,
            "teams": {"ops": [0] * points},
        }

    def health(self) -> dict[str, Any]:
        return {"ok": True, "ray": "reachable", "tick_age_ms": 5, "pending": 0, "running": 0}

    def ready(self) -> dict[str, Any]:
        return {"ready": True, "role": "leader", "generation": 1}

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        return {
            "moorage_jobs": {(("state", "PENDING"),): 2.0, (("state", "RUNNING"),): 1.0},
            "moorage_leased_gpu_seconds_total": {(("team", "ops"),): 12.5},
        }


@dataclass
class Script:
    """One attempt's log. `break_after` cuts the live tail (once) after so many characters; `give_up` closes it
    cleanly there for good, as Ray does at a line over its frame limit."""

    data: bytes = b""
    ended: bool = False
    break_after: int | None = None
    give_up: bool = False
    tails: int = 0


@dataclass
class ScriptedDashboard:
    """Ray's dashboard, as much of it as the front door reads."""

    scripts: dict[str, Script] = field(default_factory=dict)
    refused: int = 0
    pages: dict[str, tuple[str, str]] = field(default_factory=dict)
    """(body, content type) of other paths; all else is an empty object."""
    asked: list[str] = field(default_factory=list)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/jobs/{id}", self._details)
        app.router.add_get("/api/v0/logs/file", self._file)
        app.router.add_get("/api/jobs/{id}/logs/tail", self._tail)
        app.router.add_route("*", "/{tail:.*}", self._anything)
        return app

    def _check(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {RAY_TOKEN}":
            self.refused += 1
            raise web.HTTPUnauthorized

    async def _anything(self, request: web.Request) -> web.Response:
        self._check(request)
        self.asked.append(f"{request.method} {request.path_qs}")
        body, kind = self.pages.get(request.path, ("{}", "application/json"))
        return web.Response(text=body, content_type=kind)

    async def _version(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.json_response(
            {"version": "4", "ray_version": "2.60.0", "ray_commit": "abc", "session_name": "session_1"}
        )

    async def _details(self, request: web.Request) -> web.Response:
        self._check(request)
        if request.match_info["id"] not in self.scripts:
            raise web.HTTPNotFound
        return web.json_response({"driver_node_id": "ab" * 28})

    async def _file(self, request: web.Request) -> web.Response:
        self._check(request)
        name = request.query["filename"].removeprefix("job-driver-").removesuffix(".log")
        data = self.scripts[name].data
        if request.query["lines"] != "-1":
            data = b"".join(data.splitlines(keepends=True)[-int(request.query["lines"]) :])
        return web.Response(body=data)

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        script = self.scripts.get(request.match_info["id"])
        if script is None:
            raise web.HTTPNotFound
        script.tails += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        at = 0
        while not script.ended or at < len(script.data):
            until = (
                len(script.data) if script.break_after is None else min(len(script.data), script.break_after)
            )
            for line in script.data[at:until].splitlines(keepends=True):
                await socket.send_str(line.decode())
            at = max(at, until)
            if script.break_after is not None and at >= script.break_after:
                if script.give_up:
                    return socket
                script.break_after = None
                assert request.transport is not None
                request.transport.abort()
                return socket
            await asyncio.sleep(0.01)
        return socket


@dataclass
class World:
    """A front door on a real loopback socket, its control plane, its dashboard."""

    client: TestClient[Any, Any]
    control: MemoryControl
    dashboard: ScriptedDashboard
    settings: Settings

    @property
    def url(self) -> str:
        return str(self.client.make_url("/")).rstrip("/")

    def as_(self, who: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {who}-token"}

    async def submit(self, who: str = "ops", **body: Any) -> str:
        answer = await self.client.post(
            "/api/jobs/", json={"entrypoint": "python train.py", **body}, headers=self.as_(who)
        )
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["submission_id"])


@asynccontextmanager
async def world(home: Path, **settings: Any) -> AsyncIterator[World]:
    """A running `World` with its files in `home`."""
    control, dashboard = MemoryControl(), ScriptedDashboard()
    (home / "ray.token").write_text(RAY_TOKEN)
    async with TestServer(dashboard.app()) as upstream:
        (home / "pool.json").write_text(json.dumps({"dashboard": str(upstream.make_url("")).rstrip("/")}))
        chosen = Settings(home=home, **{"poll_s": 0.02, **settings})
        server = TestServer(create_app(control, None, chosen))
        async with TestClient(server) as client:
            yield World(client, control, dashboard, chosen)
