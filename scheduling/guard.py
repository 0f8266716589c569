"""The judgement of the guard: who holds GPUs without a lease, or beyond it. Pure: what was seen in, findings out.

`judge` looks at one observation only. What it says is acted on when it was said of several observations in a row
(`moorage.runtime.control.guarding`): an actor outlives its job by a moment, a lease its last task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase

UNKNOWN_DEVICE = -1


class Kind(StrEnum):
    """Reason codes. Stable: people filter on them."""

    NO_LEASE = "no-lease"
    """A living owner holds GPUs, and there is no lease behind it."""
    BEYOND_LEASE = "beyond-lease"
    """Its job's leases are full: this comes on top of them."""
    OTHER_NODE = "other-node"
    """Within the amount leased, on a node where the job has no lease left."""
    OTHER_DEVICE = "other-device"
    """Within what is leased on the node, on another device: Ray picks devices itself."""
    LEAKED_GROUP = "leaked-placement-group"
    """A placement group whose creator has ended, without a lease."""
    DEAD_OWNER = "dead-owner"
    """An actor or a Serve application whose creator has ended, without a lease."""
    UNBOOKED_DEVICE = "unbooked-device"
    """A process of a running job is on a device that its job has not leased and that Ray has not given it."""
    ORPHAN_PROCESS = "orphan-process"
    """A process is on a device after the job it came from has ended."""
    FOREIGN_PROCESS = "foreign-process"
    """A process that came from no job of this cluster is on a device."""


class Holder(StrEnum):
    """What Ray books GPUs for."""

    ACTOR = "actor"
    GROUP = "placement-group"
    """Its whole reservation; what runs inside is not counted again."""
    TASKS = "tasks"
    """All running tasks of one Ray job: they come and go, their driver stays."""
    REPLICA = "serve-replica"
    """An actor of a Serve application; a placement group of one stays a placement group, with its `app`."""
    PROCESS = "process"
    """A process that the device's driver names (NVML), whatever Ray has booked."""


class Target(StrEnum):
    """What is stopped."""

    ACTOR = "actor"
    GROUP = "placement-group"
    DRIVER = "driver"
    """By Ray's job id: a driver that nobody submitted through the front door."""
    APP = "serve-app"
    JOB = "job"
    """By our job id: its tasks cannot be stopped one by one."""
    PROCESS = "process"
    """By node, process id and start time."""


class Mode(StrEnum):
    OFF = "off"
    WARN = "warn"
    STOP = "stop"


MILD = {Kind.OTHER_NODE: Mode.WARN, Kind.OTHER_DEVICE: Mode.OFF, Kind.FOREIGN_PROCESS: Mode.WARN}
"""What is no more than warned about unless asked for: it takes no more than was leased and Ray chose the place, or it
may be the machine's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`device` is -1 where Ray does not say which (a placement group's bundle)."""

    node: str
    device: int
    milli_gpu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One holder as Ray books it. `id` is Ray's, in hex; of tasks it is that of their Ray job.

    `owner` is the Ray job that made it, `submission` the submission id behind that job ("" for a driver that nobody
    submitted). For a Serve replica both are those of whoever deployed its application `app`, never of whoever started
    Serve. `own`: Moorage's agent made it and nothing says for whom. `since_ms` is wall time, 0 if unknown.

    Of a process, `name` is its command, its parts hold 0 milli-GPU each, `mib` says what it has of the devices' memory
    in all (-1: the driver does not say), and `since_ms` is when its node was asked: several looks may show one answer.
    """

    holder: Holder
    id: str
    parts: tuple[Part, ...]
    owner: str = ""
    submission: str = ""
    owner_dead: bool = False
    detached: bool = False
    name: str = ""
    namespace: str = ""
    app: str = ""
    pid: int = 0
    since_ms: int = 0
    own: bool = False
    mib: int = 0

    @property
    def milli_gpu(self) -> int:
        return sum(part.milli_gpu for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Who holds GPUs at `at_ns` (wall time). Not `complete`: there may be more than what was read.

    `unexplained`: milli-GPU per node that Ray has booked and that nothing seen accounts for.
    """

    at_ns: int
    holdings: tuple[Holding, ...]
    complete: bool = True
    unexplained: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """All that a running attempt has leased, by (node, device), in milli-GPU."""

    job: str
    team: str
    parts: Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """What is never judged: shell patterns, matched with case. `jobs` holds our job ids and Ray's."""

    namespaces: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()

    def covers(self, held: Holding, job: str = "") -> bool:
        ids = {held.owner, held.submission, job} - {""}
        return (
            _any(self.namespaces, (held.namespace,))
            or _any(self.names, (held.name, held.app))
            or _any(self.jobs, ids)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardPolicy:
    """What is done about findings. `grace_ns` is from the warning to the stop, `confirm_ns` how long a thing must have
    been seen before it is a finding, `interval_ns` the pause between looks: all control time. `devices`: whether the
    nodes are asked what runs on their devices (NVML)."""

    mode: Mode = Mode.STOP
    grace_ns: int = 30 * 10**9
    confirm_ns: int = 5 * 10**9
    interval_ns: int = 2 * 10**9
    devices: bool = False
    modes: Mapping[Kind, Mode] = field(default_factory=dict)
    graces_ns: Mapping[Kind, int] = field(default_factory=dict)
    allow: Allow = field(default_factory=Allow)

    def mode_of(self, kind: Kind) -> Mode:
        if self.mode is Mode.OFF:
            return Mode.OFF
        return self.modes.get(kind, MILD.get(kind, self.mode))

    def grace_of(self, kind: Kind) -> int:
        return self.graces_ns.get(kind, self.grace_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`target` and `target_id` say what to stop. `job` and `team` are "" where nobody is known.

    `held` and `leased` are milli-GPU: of the whole job where there is one, else of this holder and 0.
    """

    kind: Kind
    holding: Holding
    target: Target
    target_id: str
    job: str = ""
    team: str = ""
    held: int = 0
    leased: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """The same thing found again has the same key."""
        return str(self.kind), str(self.target), self.target_id

    def text(self) -> str:
        """What happened, for people. Names are others' words: they are quoted."""
        who = f"{self.holding.holder} {self.holding.id[:12]}"
        name = self.holding.app or self.holding.name
        who += f" ({name[:60]!r})" if name else ""
        places = ", ".join(sorted({_place(part) for part in self.holding.parts}))
        what = f"{who} holds {self.holding.milli_gpu / 1000:g} GPU on {places}"
        if self.holding.holder is Holder.PROCESS:
            memory = f"{self.holding.mib} MiB" if self.holding.mib >= 0 else "memory"
            what = f"process {self.holding.pid} ({self.holding.name[:60]!r}) has {memory} of {places}"
        whose = f"job {self.job}" if self.job else f"Ray job {self.holding.owner}"
        amounts = f"its job holds {self.held / 1000:g} GPU and has leased {self.leased / 1000:g}"
        return {
            Kind.NO_LEASE: f"{what} without a lease ({whose})",
            Kind.BEYOND_LEASE: f"{what} beyond the lease of {whose}: {amounts}",
            Kind.OTHER_NODE: f"{what}, where {whose} has no lease left: {amounts} elsewhere",
            Kind.OTHER_DEVICE: f"{what}; the lease of {whose} is on another device of that node",
            Kind.LEAKED_GROUP: f"{what}, and its creator has ended ({whose})",
            Kind.DEAD_OWNER: f"{what}, and its creator has ended ({whose})",
            Kind.UNBOOKED_DEVICE: f"{what}, which {whose} has not leased and Ray has not given it",
            Kind.ORPHAN_PROCESS: f"{what}, and the job it came from has ended ({whose})",
            Kind.FOREIGN_PROCESS: f"{what} and came from no job of this cluster",
        }[self.kind]


def judge(
    seen: Seen,
    covers: Mapping[str, Cover],
    apps: Mapping[str, str] | None = None,
    allow: Allow | None = None,
) -> tuple[Finding, ...]:
    """What of `seen` no lease covers, in the order seen.

    `covers` has one entry per attempt that runs, by its submission id; `apps` says which submission published a
    Serve application, for one whose deployer is not known or gone. Never a finding: what fits in its job's leases
    (`beyond-lease` is said of some holders if and only if the job holds more than it has leased), what is allowed,
    and what Moorage's own agent made for nobody known.
    """
    published, permitted = apps or {}, allow or Allow()
    given = _given(seen)
    found: dict[int, Finding] = {}
    of_job: dict[str, list[int]] = {}
    for at, held in enumerate(seen.holdings):
        submission = _behind(held, covers, published)
        cover = covers.get(submission)
        if permitted.covers(held, cover.job if cover else ""):
            continue
        if held.holder is Holder.PROCESS:
            judged = None if held.own else _process(held, submission, cover, given)
            if judged is not None:
                found[at] = judged
        elif held.milli_gpu <= 0:
            continue
        elif cover is not None:
            of_job.setdefault(submission, []).append(at)
        elif not held.own:
            found[at] = _uncovered(held)
    for submission, places in of_job.items():
        for at, finding in _within(covers[submission], [(at, seen.holdings[at]) for at in places]):
            found[at] = finding
    return tuple(found[at] for at in sorted(found))


def _given(seen: Seen) -> dict[tuple[str, str], set[int]]:
    """(Ray job, node) -> the devices that Ray has booked there for it, `UNKNOWN_DEVICE` among them for a group's."""
    given: dict[tuple[str, str], set[int]] = {}
    for held in seen.holdings:
        for part in held.parts:
            if held.holder is not Holder.PROCESS and part.milli_gpu > 0:
                for whose in {held.owner, held.submission} - {""}:
                    given.setdefault((whose, part.node), set()).add(part.device)
    return given


def _process(
    held: Holding, submission: str, cover: Cover | None, given: Mapping[tuple[str, str], set[int]]
) -> Finding | None:
    """What is wrong with a process on a device. Where Ray has booked that device for its job, what Ray has booked is
    judged, and not the process a second time; a group's device is not known, so all of its node are taken for given."""

    def explained(part: Part) -> bool:
        devices = set().union(*(given.get((whose, part.node), set()) for whose in (held.owner, submission)))
        leased = cover is not None and (part.node, part.device) in cover.parts
        return leased or part.device in devices or UNKNOWN_DEVICE in devices

    rest = tuple(part for part in held.parts if not explained(part))
    if not rest:
        return None
    job, team = (cover.job, cover.team) if cover else ("", "")
    if cover is not None:
        kind = Kind.UNBOOKED_DEVICE
    elif not held.owner and not submission:
        kind = Kind.FOREIGN_PROCESS
    else:
        kind = Kind.ORPHAN_PROCESS if held.owner_dead or submission else Kind.NO_LEASE
    return Finding(
        kind=kind,
        holding=replace(held, parts=rest),
        target=Target.PROCESS,
        target_id=held.id,
        job=job,
        team=team,
    )


def _behind(held: Holding, covers: Mapping[str, Cover], published: Mapping[str, str]) -> str:
    """The submission whose lease a holder is charged to."""
    if held.submission in covers or not held.app:
        return held.submission
    return published.get(held.app, held.submission)


def _uncovered(held: Holding) -> Finding:
    if not held.owner_dead:
        kind = Kind.NO_LEASE
    else:
        kind = Kind.LEAKED_GROUP if held.holder is Holder.GROUP and not held.app else Kind.DEAD_OWNER
    target, key = (Target.ACTOR, held.id)
    if held.app:
        target, key = Target.APP, held.app
    elif held.holder is Holder.GROUP:
        target = Target.GROUP
    elif held.holder is Holder.TASKS:
        target, key = Target.DRIVER, held.owner
    return Finding(kind=kind, holding=held, target=target, target_id=key, held=held.milli_gpu)


def _within(cover: Cover, held: list[tuple[int, Holding]]) -> Iterable[tuple[int, Finding]]:
    """The findings of one job. The oldest holders have the first claim to its lease, tasks the last; on each node
    those that fit what is leased there come before those that are where nothing is leased."""
    ordered = sorted(held, key=lambda one: _claim(one[1]))
    on_node: dict[str, int] = {}
    for (node, _), amount in cover.parts.items():
        on_node[node] = on_node.get(node, 0) + amount
    total, leased = sum(one.milli_gpu for _, one in held), sum(on_node.values())
    left, at_home, elsewhere = leased, [], []
    for at, one in ordered:
        if _take(on_node, one):
            left -= one.milli_gpu
            at_home.append((at, one))
        else:
            elsewhere.append((at, one))
    for at, one in elsewhere:
        fits = one.milli_gpu <= left
        left -= one.milli_gpu if fits else 0
        yield at, _of_job(Kind.OTHER_NODE if fits else Kind.BEYOND_LEASE, one, cover, total, leased)
    on_device = dict(cover.parts)
    for at, one in at_home:
        if not _take_devices(on_device, one):
            yield at, _of_job(Kind.OTHER_DEVICE, one, cover, total, leased)


def _claim(held: Holding) -> tuple[bool, int, str]:
    return held.holder is Holder.TASKS, held.since_ms, held.id


def _take(left: dict[str, int], held: Holding) -> bool:
    """Charge the nodes if what is left there holds all of it."""
    need: dict[str, int] = {}
    for part in held.parts:
        need[part.node] = need.get(part.node, 0) + part.milli_gpu
    if any(amount > left.get(node, 0) for node, amount in need.items()):
        return False
    for node, amount in need.items():
        left[node] -= amount
    return True


def _take_devices(left: dict[tuple[str, int], int], held: Holding) -> bool:
    known = [part for part in held.parts if part.device != UNKNOWN_DEVICE]
    if any(part.milli_gpu > left.get((part.node, part.device), 0) for part in known):
        return False
    for part in known:
        left[part.node, part.device] -= part.milli_gpu
    return True


def _of_job(kind: Kind, held: Holding, cover: Cover, total: int, leased: int) -> Finding:
    target, key = {
        Holder.GROUP: (Target.GROUP, held.id),
        Holder.TASKS: (Target.JOB, cover.job),
    }.get(held.holder, (Target.ACTOR, held.id))
    return Finding(
        kind=kind,
        holding=held,
        target=target,
        target_id=key,
        job=cover.job,
        team=cover.team,
        held=total,
        leased=leased,
    )


def _any(patterns: tuple[str, ...], texts: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns for text in texts if text)


def _place(part: Part) -> str:
    return part.node if part.device == UNKNOWN_DEVICE else f"{part.node}/{part.device}"
