"""What the front door sees of the control plane: plain frozen types and one protocol. No database, no Ray.

What clients are answered as it is has its shape in `moorage.runtime.answers`: plain JSON values.

Units: times are wall-clock nanoseconds since 1970 (`*_ns`), money is micro-dollars, GPUs are milli-GPU,
memory is MiB, CPUs are milli-CPU. Every method is synchronous and thread-safe, and raises `MoorageError`
subclasses only (`Unauthenticated` 401, `Forbidden` 403, `NotFound` 404, `Conflict` 409, `InvalidRequest` 400,
`Infeasible` 422, `LeaseTimeout` 408, `Unavailable` 503).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from moorage.runtime import answers

if TYPE_CHECKING:
    from moorage.runtime.control.measures import Samples

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
    """`explanation` is None when nothing waits (or what waits is about to start); `holds` are the leases held now,
    `asks` what a running job waits for to grow."""

    job: JobView
    explanation: answers.Explanation | None
    holds: list[answers.Held]
    asks: list[answers.Ask] = field(default_factory=list)


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
class ReplicaReport:
    """What a job says of its endpoint: the bounds, how many replicas its load wants, those there are, and the load
    (`ongoing` rows in flight in all, `target_ongoing` of one replica, `latency_ms`, ...)."""

    min_replicas: int
    max_replicas: int
    wanted: int
    replicas: Sequence[answers.Replica]
    load: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    """Why the pool is not asked for more, where that is so: what it refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """A published name: requests to `/endpoints/<name>/...` go to `route` of Ray Serve's app `app`, or to the replicas
    of `scaling` that serve.

    `live` is False once the job that published it has ended.
    """

    name: str
    app: str
    route: str
    team: str
    job_id: str
    created_ns: int
    live: bool
    scaling: answers.Scaling | None = None

    @property
    def routes(self) -> tuple[str, ...]:
        """Where requests may go now."""
        replicas = self.scaling["replicas"] if self.scaling else ()
        return tuple(one["route"] for one in replicas if one["state"] == "SERVING") or (self.route,)


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

    def attempts(self, job_id: str) -> list[answers.Attempt]:
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
    ) -> list[answers.Event]:
        """The audit record the caller may see, oldest first, with seq > `after`; `last`: the end of it, not the
        begin, where there is more than `limit`."""

    def grow(self, caller: Caller, ask: GrowAsk) -> answers.Lease:
        """Blocks up to `ask.timeout_s`; LeaseTimeout carries the reason and leaves nothing held."""

    def release_sublease(self, caller: Caller, lease_id: str) -> bool:
        """True if it was held. A second call answers False."""

    def withdraw_ask(self, caller: Caller, job_id: str, name: str) -> bool:
        """End what `grow` of another call waits for under this name, or was just granted; False when there is none."""

    def notice(self, caller: Caller, job_id: str) -> answers.Notice | None:
        """Whether the caller's job was told to leave. NotFound, Forbidden."""

    def noticed(self, job_id: str) -> bool:
        """Whether a job was told to leave, from memory: answers at once, for whoever waits for it."""

    def answer_notice(self, caller: Caller, job_id: str, said: str, step: int | None = None) -> bool:
        """Record what a job says after its notice (`checkpointed`, `leaving`); False when it has none."""

    def lease_now(self, caller: Caller, job_id: str) -> answers.HeldLease | None:
        """What the caller's job holds now; None when it holds nothing. NotFound."""

    def lease_changes(self, job_id: str) -> int:
        """Another number whenever what a job holds, or is asked for, may be another; from memory: answers at once."""

    def follow_lease(
        self,
        caller: Caller,
        job_id: str,
        *,
        follows: bool = False,
        workers: int | None = None,
        wants: int | None = None,
    ) -> bool:
        """A job says that it follows its lease, that it holds no more than its first `workers`, how many it has use
        for. True when its lease is that small now. NotFound, Forbidden, InvalidRequest, Conflict (`not-following`)."""

    def publish_endpoint(
        self, caller: Caller, name: str, app: str, route: str, job_id: str | None = None
    ) -> EndpointView:
        """Only for a job of the caller; a name belongs to its first team (Conflict for others)."""

    def report_replicas(self, caller: Caller, name: str, said: ReplicaReport) -> EndpointView:
        """What the endpoint's own running job says of its replicas. NotFound, InvalidRequest, Conflict
        (`replicas-beyond-lease`)."""

    def endpoint(self, name: str) -> EndpointView:
        """For the proxy; NotFound."""

    def endpoints(self, caller: Caller) -> list[EndpointView]:
        """Those of the caller's teams, by name."""

    def quotas(self, caller: Caller) -> answers.Quotas:
        """The tree of teams in force."""

    def put_quotas(
        self, caller: Caller, text: str, base: int | None = None, force: bool = False, dry: bool = False
    ) -> answers.QuotasPut:
        """Put the teams file `text` in force, durable when this returns; `dry`: only say what would change. Admin only.
        No `changes` = it was in force. Forbidden, InvalidRequest (with the path of each
        wrong field), Infeasible (`quota-over-committed`, unless `force`), Conflict (`quota-changed` when `base` is not
        the version in force, `team-in-use` for a team that is gone and has unfinished jobs)."""

    def drain(self, caller: Caller, node: str, drain: bool, why: str = "") -> answers.Drained:
        """Let a node take nothing new, or (`drain` = False) take work again; durable when this returns. What runs there
        goes on. Admin only. Forbidden, NotFound."""

    def cost(self, caller: Caller) -> dict[str, Any]:
        """GPU-nanoseconds x milli-GPU and micro-dollars per team and per job, folded from lease events."""

    def usage(self, caller: Caller, minutes: int, points: int) -> answers.Usage:
        """milli-GPU that each team held, as means over `points` equal parts of the last `minutes`; for everybody."""

    def guard(self, caller: Caller) -> answers.GuardReport:
        """What the guard found (the caller's teams' jobs; all of it for an admin), and what it does about it."""

    def health(self) -> dict[str, Any]:
        """{"ok": bool, "role": "leader", "generation": n, "ray": "reachable"|"unreachable", "tick_age_ms": n,
        "pending": n, "running": n}."""

    def ready(self) -> dict[str, Any]:
        """{"ready": True, "role": "leader", "generation": n}; Unavailable when this one does not lead."""

    def metrics(self) -> Samples:
        """Prometheus samples: name -> {labels -> value}; names carry their unit as Prometheus asks."""
