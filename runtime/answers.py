"""What the front door's own routes answer, said once: the control plane makes plain JSON of these shapes,
`runtime.client.Client` returns it, and the OpenAPI document is made from them (docstrings are its descriptions).

Times are nanoseconds since 1970 (`*_ns`) or seconds (`*_s`), GPUs are milli-GPU, money is micro-dollars. Nothing heavy
is imported here, so that a job that asks pays nothing for it.
"""

from __future__ import annotations

from typing import Any, Literal

# Not the standard library's: before Python 3.12 pydantic cannot describe that one. It comes with pydantic.
from typing_extensions import TypedDict


class WhoAmI(TypedDict):
    """Whose token it is; `job_id` of a job's own token. `ray_dashboard`: whether the caller may look at Ray's
    dashboard. `grafana`: the address of the pool's Grafana, empty where it has none."""

    principal: str
    kind: str
    team: str
    teams: list[str]
    job_id: str | None
    ray_dashboard: bool
    grafana: str


class Attempt(TypedDict):
    """One run of a job on Ray; `submission_id` is Ray's (`<job>-<n>`)."""

    attempt: int
    submission_id: str
    state: str
    started_ns: int | None
    ended_ns: int | None
    message: str
    driver_exit_code: int | None


class Job(TypedDict):
    """A job as Moorage sees it; `message` and `reason` say why it waits, when it does. `attempts` are given for one job
    only. `lease` is as in MOORAGE_LEASE. Times are ns since 1970."""

    job_id: str
    team: str
    state: str
    ray_status: str
    message: str
    reason: dict[str, Any] | None
    entrypoint: str
    metadata: dict[str, str]
    created_ns: int
    started_ns: int | None
    ended_ns: int | None
    attempt: int
    lease: dict[str, Any] | None
    driver_exit_code: int | None
    attempts: list[Attempt]


class Explanation(TypedDict):
    """Why something waits. Each of `suggestions` was applied to a copy of the pool and planned again: it starts the job
    now. `earliest_ns` is null where the known ends of running jobs make no room (`ends_unknown` leases have none).
    `complete` is false when the search was stopped at its bound; `paused`: a failed attempt is tried again later."""

    job: str
    now_ns: int
    reason: dict[str, Any]
    suggestions: list[dict[str, Any]]
    earliest_ns: int | None
    earliest_text: str
    plans: int
    complete: bool
    ends_known: int
    ends_unknown: int
    paused: bool


class Held(TypedDict):
    """A lease that is held now; `ends_ns` is null where no `max_runtime` says when it ends at the latest."""

    lease: str
    kind: str
    milli_gpu: int
    since_ns: int
    ends_ns: int | None


class Ask(TypedDict):
    """What a running job waits for to grow by; `reason` is null until it was planned."""

    sublease: str
    name: str
    workers: int
    milli_gpu: int
    since_ns: int
    reason: dict[str, Any] | None


class Why(Job):
    """A job, why it waits (`explanation`; null when it does not), what it holds, and what more it asked for."""

    explanation: Explanation | None
    holds: list[Held]
    asks: list[Ask]


class Notice(TypedDict):
    """The job was told to leave for `for_job`; `rule` says why it may be. `left_s` seconds of its grace are left."""

    attempt: int
    for_job: str
    rule: str
    text: str
    noticed_ns: int
    deadline_ns: int
    left_s: float


class Noticed(TypedDict):
    """`notice` is null while nobody told the job to leave."""

    notice: Notice | None


class Recorded(TypedDict):
    """`recorded` is false when the job was told nothing."""

    recorded: bool


class Asked(TypedDict):
    """The job is to keep no more than its first `workers` workers, for `for_job`, within `left_s` seconds: then it is
    told to leave as a whole."""

    workers: int
    for_job: str
    rule: str
    text: str
    deadline_ns: int
    left_s: float


class HeldLease(TypedDict):
    """`lease` is as in MOORAGE_LEASE; the job may use its first `workers` workers. It was submitted with `min_workers`
    to `max_workers`. `follows`: it said that it follows its lease. `version` is another text whenever any of this
    is."""

    version: str
    lease: dict[str, Any]
    workers: int
    min_workers: int
    max_workers: int
    follows: bool
    asked: Asked | None


class LeaseAnswer(TypedDict):
    """`now` is null while the job holds nothing."""

    now: HeldLease | None


class Followed(TypedDict):
    """`resized` is true when the lease is as small as was said now."""

    resized: bool


class Lease(TypedDict):
    """A granted lease. `lease` has the shape of the environment variable MOORAGE_LEASE (its head is null)."""

    lease_id: str
    job_id: str
    team: str
    epoch: int
    lease: dict[str, Any]


class Released(TypedDict):
    """`released` is false when it was not held any more."""

    released: bool


ReplicaState = Literal["STARTING", "SERVING", "UNHEALTHY", "DRAINING"]


class Replica(TypedDict):
    """One replica: an application of its own on one worker of a lease. `devices` are indexes on `node`, as leased."""

    app: str
    route: str
    lease_id: str
    node: str
    devices: list[int]
    state: ReplicaState


class Scaling(TypedDict):
    """How many replicas an endpoint has and wants, as its job said. `waits`: what the pool was asked for and has not
    given yet, each with its reason. `load`: `ongoing` rows in flight in all, `target_ongoing` of one replica, and the
    like. `note`: why the pool is not asked for more, where that is so."""

    min_replicas: int
    max_replicas: int
    wanted: int
    replicas: list[Replica]
    load: dict[str, float]
    waits: list[Ask]
    note: str


class Endpoint(TypedDict):
    """A published endpoint; `live` is false once the job that published it has ended. `scaling` is null for one that
    is a single application."""

    name: str
    app: str
    route: str
    team: str
    job_id: str
    created_ns: int
    live: bool
    path: str
    scaling: Scaling | None


class Reported(Endpoint):
    """`under_way`: requests by route that this front door still waits for. One that drains may end when it has none."""

    under_way: dict[str, int]


class Usage(TypedDict):
    """milli-GPU held by each team, as means over equal parts of the time asked for; `capacity_milli_gpu` is what the
    pool has now."""

    from_ns: int
    to_ns: int
    capacity_milli_gpu: int
    teams: dict[str, list[int]]


class GuardKind(TypedDict):
    """What is done about one kind of finding. `mode`: off, warn or stop; the grace is from the warning to the stop."""

    mode: str
    grace_s: int


class GuardFinding(TypedDict):
    """Something that holds GPUs without a lease or beyond it. `state`: WARNED, STOPPING, STOPPED, or CLEARED (it ended
    by itself, or a lease covers it now). `target` and `target_id`: what is stopped; `owner`: the Ray job that made it;
    `job` and `team` are empty where nobody is known; `stops_in_ns` is null where it will not be stopped, or has
    been."""

    id: str
    kind: str
    state: str
    target: str
    target_id: str
    owner: str
    job: str
    team: str
    milli_gpu: int
    message: str
    detail: dict[str, Any]
    first_ns: int
    warned_ns: int
    ended_ns: int | None
    stops_in_ns: int | None


class GuardReport(TypedDict):
    """What the guard found. `message`: why it cannot see now, else empty. `complete` is false when there was more than
    one look may read. `unexplained_milli_gpu`: booked in Ray on a node by nobody that was seen (admins only)."""

    mode: str
    kinds: dict[str, GuardKind]
    looked_ns: int | None
    message: str
    complete: bool
    unexplained_milli_gpu: dict[str, int]
    findings: list[GuardFinding]


class Quotas(TypedDict):
    """The tree of teams in force, as a teams file says it (amounts in GPUs)."""

    version: int
    since_ns: int
    file: dict[str, Any]


class QuotasPut(TypedDict):
    """`changes`: each figure that differs, in milli-GPU; `applied` is false where nothing does, or for a dry run."""

    version: int
    applied: bool
    changes: list[dict[str, Any]]


class Drained(TypedDict):
    """A node that takes nothing new, or takes work again. `changed` is false where it was so already; `jobs` hold a
    part of it now."""

    node: str
    drained: bool
    changed: bool
    jobs: list[str]


class RayView(TypedDict):
    """`path` shows Ray's dashboard to the browser that asked; the cookie that opens it came with this answer."""

    path: str
    expires_in_s: int


class Event(TypedDict):
    """An entry of the audit record; `seq` rises. `version` is that of the shape of an entry."""

    seq: int
    kind: str
    version: int
    wall_ns: int
    control_ns: int
    principal: str
    team: str
    job_id: str
    lease_id: str
    payload: dict[str, Any]
