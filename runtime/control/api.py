"""What the front door sees of the control plane: plain frozen types and one protocol. No database, no Ray.

Units: times are wall-clock nanoseconds since 1970 (`*_ns`), money is micro-dollars, GPUs are milli-GPU,
memory is MiB, CPUs are milli-CPU. Every method is synchronous and thread-safe, and raises `MoorageError`
subclasses only (`Unauthenticated` 401, `Forbidden` 403, `NotFound` 404, `Conflict` 409, `InvalidRequest` 400,
`Infeasible` 422, `LeaseTimeout` 408, `Unavailable` 503).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

PENDING, ADMITTED, STARTING, RUNNING, PREEMPTING = "PENDING", "ADMITTED", "STARTING", "RUNNING", "PREEMPTING"
SUCCEEDED, FAILED, STOPPED, QUARANTINED = "SUCCEEDED", "FAILED", "STOPPED", "QUARANTINED"
STATES = (
    *(PENDING, ADMITTED, STARTING, RUNNING, PREEMPTING),
    *(SUCCEEDED, FAILED, STOPPED, QUARANTINED),
)
FINAL = frozenset({SUCCEEDED, FAILED, STOPPED, QUARANTINED})

_RAY_STATUS = {
    PENDING: "PENDING",
    ADMITTED: "PENDING",
    STARTING: "PENDING",
    PREEMPTING: "RUNNING",
    RUNNING: "RUNNING",
    SUCCEEDED: "SUCCEEDED",
    FAILED: "FAILED",
    QUARANTINED: "FAILED",
    STOPPED: "STOPPED",
}


def ray_status(state: str) -> str:
    """The status of Ray's JobDetails that stands for our `state`."""
    return _RAY_STATUS[state]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is asking, from the bearer token alone.

    `kind` is "admin", "team" or "job"; `teams` are those it may submit to and read ("admin": all of them);
    `team` is the default one ("" for an admin); `job_id` is set for a job-scoped token only.
    """

    principal: str
    kind: str
    team: str
    teams: frozenset[str]
    job_id: str | None = None

    @property
    def is_admin(self) -> bool:
        return self.kind == "admin"

    def may_see(self, team: str) -> bool:
        return self.is_admin or team in self.teams


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request to run a job, as Ray's `POST /api/jobs/` has it. Not validated yet.

    `entrypoint_memory` is bytes, as in Ray. `packages` maps each spooled `gcs://` URI that `runtime_env`
    names to the file that holds it, for the launch to PUT again (Ray drops packages after 600 s).
    """

    entrypoint: str
    submission_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_memory: int | None = None
    entrypoint_resources: Mapping[str, float] | None = None
    entrypoint_label_selector: Mapping[str, str] | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One run of a job on Ray; `submission_id` is Ray's (`<job>-<n>`), `state` one of ours."""

    attempt: int
    submission_id: str
    state: str
    started_ns: int | None
    ended_ns: int | None
    message: str
    driver_exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as a caller may see it. `message` is the pending reason while it waits, else the last outcome.

    `lease` is None or the JSON of `MOORAGE_LEASE` (lease_id, epoch, head, workers).
    `attempt` is the number of the current or last attempt, 0 before the first.
    """

    job_id: str
    team: str
    state: str
    ray_status: str
    message: str
    submission: Submission
    created_ns: int
    started_ns: int | None
    ended_ns: int | None
    attempt: int
    lease: Mapping[str, Any] | None
    driver_exit_code: int | None
    reason: Mapping[str, Any] | None = None

    @property
    def final(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyView:
    """`explanation` is the JSON of `scheduling.explanation.Explanation` with wall times, None when nothing waits (or
    what waits is about to start); `holds` are the leases held now."""

    job: JobView
    explanation: Mapping[str, Any] | None
    holds: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowAsk:
    """More room for a running job: `workers` pieces that come together or not at all.

    `job_id` may be None for a job-scoped caller (its own job). `timeout_s` bounds the wait; on timeout nothing
    is held. `milli_gpu` and `gpu_mib` are per piece, `gpu_mib` per device touched.
    """

    job_id: str | None
    workers: int = 1
    milli_gpu: int = 0
    gpu_mib: int = 0
    milli_cpu: int = 1000
    timeout_s: float = 60.0
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubleaseView:
    """A granted `GrowAsk`; `lease` has the shape of `MOORAGE_LEASE` (head is None)."""

    lease_id: str
    job_id: str
    team: str
    epoch: int
    lease: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeView:
    """A running job was told to leave. Times are wall clock ns; `left_s` is what is left of its grace."""

    attempt: int
    for_job: str
    rule: str
    text: str
    noticed_ns: int
    deadline_ns: int
    left_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """A published name: requests to `/endpoints/<name>/...` go to `route` of Ray Serve's app `app`.

    `live` is False once the job that published it has ended.
    """

    name: str
    app: str
    route: str
    team: str
    job_id: str
    created_ns: int
    live: bool


class Control(Protocol):
    """The facade. One implementation: `moorage.runtime.control.service.Service`."""

    def authenticate(self, bearer: str | None) -> Caller:
        """The caller of a bare token (no "Bearer " prefix needed); Unauthenticated."""

    def submit(
        self,
        caller: Caller,
        submission: Submission,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """The job id; durable when this returns. `headers` are the request's (any case): `Moorage-Team: x`
        beats metadata `team`, and so for every key (`Moorage-Gpus-Per-Worker`). The same `submission_id` or
        idempotency key with the same content answers the same id; with other content: Conflict."""

    def check_submission(
        self, caller: Caller, metadata: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> str:
        """The team a submission would be charged to, without submitting; same errors as `submit`."""

    def job(self, caller: Caller, job_id: str) -> JobView:
        """NotFound also for a job of another team."""

    def jobs(self, caller: Caller) -> list[JobView]:
        """Newest first; an admin sees all teams."""

    def why(self, caller: Caller, job_id: str) -> WhyView:
        """Why a job waits, what would start it now, and when it starts; or what it holds. NotFound; `why-busy` (429)
        when too many ask at once. Plans many times: may take seconds."""

    def stop(self, caller: Caller, job_id: str) -> bool:
        """True if the job was not final yet: it will stop. NotFound."""

    def delete(self, caller: Caller, job_id: str) -> bool:
        """Hide a final job; its audit record and cost stay. Conflict while it is not final."""

    def attempts(self, job_id: str) -> list[AttemptView]:
        """In order; only those that were asked of Ray."""

    def status(self, caller: Caller) -> dict[str, Any]:
        """nodes, devices and their holders, queue with reasons, teams with quota/used/borrowed; JSON values."""

    def events(
        self,
        caller: Caller,
        after: int = 0,
        limit: int = 100,
        job_id: str | None = None,
        last: bool = False,
    ) -> list[dict[str, Any]]:
        """The audit record the caller may see, oldest first, with seq > `after`; `last`: the end of it, not the
        begin, where there is more than `limit`."""

    def grow(self, caller: Caller, ask: GrowAsk) -> SubleaseView:
        """Blocks up to `ask.timeout_s`; LeaseTimeout carries the reason and leaves nothing held."""

    def release_sublease(self, caller: Caller, lease_id: str) -> bool:
        """True if it was held. A second call answers False."""

    def notice(self, caller: Caller, job_id: str) -> NoticeView | None:
        """Whether the caller's job was told to leave. NotFound, Forbidden."""

    def noticed(self, job_id: str) -> bool:
        """Whether a job was told to leave, from memory: answers at once, for whoever waits for it."""

    def answer_notice(self, caller: Caller, job_id: str, said: str, step: int | None = None) -> bool:
        """Record what a job says after its notice (`checkpointed`, `leaving`); False when it has none."""

    def publish_endpoint(
        self, caller: Caller, name: str, app: str, route: str, job_id: str | None = None
    ) -> EndpointView:
        """Only for a job of the caller; a name belongs to its first team (Conflict for others)."""

    def endpoint(self, name: str) -> EndpointView:
        """For the proxy; NotFound."""

    def endpoints(self, caller: Caller) -> list[EndpointView]:
        """Those of the caller's teams, by name."""

    def quotas(self, caller: Caller) -> dict[str, Any]:
        """The tree of teams in force: `version`, `since_ns`, and `file` as a teams file says it (GPUs)."""

    def put_quotas(
        self, caller: Caller, text: str, base: int | None = None, force: bool = False, dry: bool = False
    ) -> dict[str, Any]:
        """Put the teams file `text` in force, durable when this returns; `dry`: only say what would change. Admin only.
        `version`, `changes` (none = it was in force) and `applied`. Forbidden, InvalidRequest (with the path of each
        wrong field), Infeasible (`quota-over-committed`, unless `force`), Conflict (`quota-changed` when `base` is not
        the version in force, `team-in-use` for a team that is gone and has unfinished jobs)."""

    def drain(self, caller: Caller, node: str, drain: bool, why: str = "") -> dict[str, Any]:
        """Let a node take nothing new, or (`drain` = False) take work again; durable when this returns. What runs there
        goes on. Admin only. `changed`, and the `jobs` that hold a part of it. Forbidden, NotFound."""

    def cost(self, caller: Caller) -> dict[str, Any]:
        """GPU-nanoseconds x milli-GPU and micro-dollars per team and per job, folded from lease events."""

    def usage(self, caller: Caller, minutes: int, points: int) -> dict[str, Any]:
        """milli-GPU that each team held, as means over `points` equal parts of the last `minutes`; for everybody."""

    def guard(self, caller: Caller) -> dict[str, Any]:
        """What the guard found (the caller's teams' jobs; all of it for an admin), and what it does about it."""

    def health(self) -> dict[str, Any]:
        """{"ok": bool, "ray": "reachable"|"unreachable", "tick_age_ms": n, "pending": n, "running": n}."""

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Prometheus samples: name -> {labels -> value}; names carry their unit as Prometheus asks."""
