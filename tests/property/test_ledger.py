"""S2-S4: the ledger and the planner under random histories; every invariant after every step."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ledger_events import attempt, differences, image, rebuilt, replay

from moorage.scheduling.ledger import (
    Event,
    LeaseGranted,
    LeaseReleased,
    LeaseResized,
    Ledger,
    NodeDown,
    NodeUp,
    TeamSet,
    accepts,
    step,
)
from moorage.scheduling.model import (
    PLANNED,
    JobRequest,
    Lease,
    NodeSpec,
    Plan,
    Policy,
    Role,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.quota import team_use
from moorage.scheduling.validate import Auditor, check
from moorage.scheduling.workspace import Workspace

MILLI = st.sampled_from([0, 100, 180, 300, 500, 600, 1000, 2000, 4000])
TEAMS = ("ops", "research", "search")


class PoolMachine(RuleBasedStateMachine):
    """Nodes come and go, jobs are planned and end, quotas change, the control plane restarts from its log."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.auditor = Auditor(self.ledger)
        self.log: list[Event] = []
        self.follower = np.zeros((0, 0), np.int64)
        self.seen_at = self.ledger.mark()
        self.pending: list[JobRequest] = []
        self.count = 0
        self.workspace = Workspace()
        for name in TEAMS:
            self.apply(
                TeamSet(TeamSpec(name=name, quota=(("*", 2000),), limit=(("*", 3000),), lend=(("*", 500),)))
            )
        for name in ("n0", "n1"):
            self.apply(
                NodeUp(NodeSpec(name=name, gpu_model="A", devices=4, device_mib=24000, milli_cpu=8000))
            )

    def apply(self, event: Event) -> None:
        step(self.ledger, event)
        self.log.append(event)
        assert self.auditor.after(event) == []

    def refused(self, event: Event) -> None:
        """It must be, and leave everything as it was."""
        before = image(self.ledger)
        assert not attempt(self.ledger, event), f"{event} applied"
        assert image(self.ledger) == before
        assert self.auditor.after(event, applied=False) == []

    @rule(n=st.integers(0, 4), devices=st.integers(0, 6), mib=st.sampled_from([0, 8000, 24000]))
    def node_up(self, n: int, devices: int, mib: int) -> None:
        spec = NodeSpec(
            name=f"n{n}",
            gpu_model=("A", "B")[n % 2],
            devices=devices,
            device_mib=mib,
            milli_cpu=8000,
            mib=9000,
        )
        if accepts(self.ledger, spec):
            self.apply(NodeUp(spec))
        else:
            self.refused(NodeUp(spec))
            assert any(task.node == spec.name for held in self.ledger.leases.values() for task in held.tasks)

    @precondition(lambda self: self.ledger.node_names)
    @rule(data=st.data())
    def node_down(self, data: st.DataObject) -> None:
        self.apply(NodeDown(data.draw(st.sampled_from(self.ledger.node_names))))

    @rule(
        team=st.sampled_from(TEAMS),
        quota=st.integers(0, 6),
        limit=st.integers(0, 12),
        lend=st.integers(0, 6),
        model=st.sampled_from(["*", "A", "B"]),
    )
    def quota(self, team: str, quota: int, limit: int, lend: int, model: str) -> None:
        figures = {
            "quota": ((model, quota * 1000),),
            "limit": ((model, limit * 1000),),
            "lend": ((model, lend * 1000),),
        }
        self.apply(TeamSet(TeamSpec(name=team, **figures)))  # type: ignore[arg-type]

    @rule(
        team=st.sampled_from(TEAMS),
        milli=MILLI,
        mib=st.sampled_from([0, 1000, 9000]),
        cpu=st.sampled_from([0, 1000, 5000]),
        workers=st.integers(0, 6),
        elastic=st.integers(0, 6),
        priority=st.integers(0, 3),
        model=st.sampled_from(["*", "A", "B", "C"]),
        head=MILLI,
    )
    def submit(
        self,
        team: str,
        milli: int,
        mib: int,
        cpu: int,
        workers: int,
        elastic: int,
        priority: int,
        model: str,
        head: int,
    ) -> None:
        self.count += 1
        self.pending.append(
            JobRequest(
                job=f"j{self.count}",
                team=team,
                submitted_ns=self.count,
                priority=priority,
                head=Shape(milli_gpu=head) if head else Shape(),
                worker=Shape(milli_gpu=milli, gpu_mib=mib, milli_cpu=cpu),
                workers=workers,
                min_workers=max(0, workers - elastic),
                gpu_models=() if model == "*" else (model,),
            )
        )

    @rule(now=st.integers(0, 10**13), crash=st.none() | st.integers(0, 3))
    def tick(self, now: int, crash: int | None) -> None:
        """Plan and apply; with `crash`, only so many starts are recorded before the control plane is gone."""
        snapshot = Snapshot(version=self.ledger.version, ledger=self.ledger, pending=Queue.of(self.pending))
        decided = plan(snapshot, Policy(), now, self.workspace)
        again = Snapshot(version=self.ledger.version, ledger=replay(self.log), pending=Queue.of(self.pending))
        assert columns(plan(again, Policy(), now)) == columns(decided), (
            "a replayed ledger gives the same plan"
        )
        seen = sorted([*decided.admitted.tolist(), *decided.deferred.tolist()])
        assert seen == list(range(len(self.pending))), "every waiting job starts or has a reason"
        for _, reason in decided.waiting(snapshot):
            assert reason.text()
        started = set()
        for request, tasks in list(decided.admissions(snapshot))[:crash]:
            workers = sum(t.role == "worker" for t in tasks)
            expected = 0 if request.worker.empty else request.workers
            assert min(expected, request.min_workers) <= workers <= expected
            lease = Lease(
                lease=f"l{self.ledger.last_epoch + 1}",
                job=request.job,
                team=request.team,
                epoch=self.ledger.last_epoch + 1,
                tasks=tasks,
            )
            self.apply(LeaseGranted(lease))
            started.add(request.job)
            self.within_allowance(lease)
        self.pending = [r for r in self.pending if r.job not in started]
        if crash is not None:
            self.restart()

    def within_allowance(self, lease: Lease) -> None:
        """No admission raises a team's use above its allowance: its limit, and quota plus what is lent (S2).

        Recomputed here from the definition, model column 0; teams are flat in this machine.
        """
        if not lease.milli_gpu:
            return
        ledger, row = self.ledger, self.ledger.team_row[lease.team]
        used, own = ledger.used[:, 0], ledger.quota[:, 0]
        assert used[row] <= ledger.limit[row, 0]
        if used[row] > own[row] and own.max() > 0:
            lent = sum(min(int(ledger.lend[t, 0]), max(0, int(own[t] - used[t]))) for t in range(len(own)))
            spare = max(0, int(ledger.capacity()[0] - own.sum()))
            assert sum(max(0, int(used[t] - own[t])) for t in range(len(own))) <= lent + spare

    @precondition(lambda self: self.ledger.leases)
    @rule(data=st.data(), off=st.integers(1, 9))
    def release(self, data: st.DataObject, off: int) -> None:
        """A lease ends once, by its own epoch alone, and its epoch never comes again."""
        lease = self.ledger.leases[data.draw(st.sampled_from(sorted(self.ledger.leases)))]
        assert lease in self.ledger.held_by(lease.job)
        for stale in (lease.epoch - off, lease.epoch + off):
            self.refused(LeaseReleased(lease.lease, stale))
        self.refused(LeaseGranted(lease))
        self.apply(LeaseReleased(lease.lease, lease.epoch))
        self.refused(LeaseReleased(lease.lease, lease.epoch))
        self.refused(LeaseGranted(lease))
        assert lease not in self.ledger.held_by(lease.job)

    @precondition(lambda self: self.ledger.leases)
    @rule(
        data=st.data(),
        fewer=st.integers(0, 3),
        node=st.integers(0, 4),
        devices=st.lists(st.integers(-1, 5), max_size=2),
    )
    def resize(self, data: st.DataObject, fewer: int, node: int, devices: list[int]) -> None:
        """A gang keeps its first tasks and takes others: applied whole under a new epoch, or refused whole."""
        lease = self.ledger.leases[data.draw(st.sampled_from(sorted(self.ledger.leases)))]
        kept, granted = max(1, len(lease.tasks) - fewer), self.ledger.last_epoch + 1
        more = self.lease(f"n{node}", tuple(devices), 1000 * len(devices)).tasks[:1] if devices else ()
        event = LeaseResized(lease.lease, lease.epoch, granted, kept, more)
        self.refused(LeaseResized(lease.lease, lease.epoch - 1, granted, kept, more))
        before = image(self.ledger)
        if attempt(self.ledger, event):
            self.log.append(event)
            assert self.auditor.after(event) == []
            now = self.ledger.leases[lease.lease]
            assert now.tasks == (*lease.tasks[:kept], *more) and now.epoch == granted
            assert now in self.ledger.held_by(lease.job)
            self.refused(event)
            self.refused(LeaseReleased(lease.lease, lease.epoch))
        else:
            assert more or kept == len(lease.tasks), "giving up alone is never refused"
            assert image(self.ledger) == before

    @precondition(lambda self: self.ledger.leases)
    @rule(data=st.data(), milli=st.sampled_from([1, 500, 1000]))
    def beside_a_whole_device(self, data: st.DataObject, milli: int) -> None:
        """Nobody gets a part of a device that a lease holds whole."""
        held = [
            (task.node, d)
            for lease in self.ledger.leases.values()
            for task in lease.tasks
            for d in task.devices
            if task.milli_gpu >= 1000
        ]
        if held:
            node, d = data.draw(st.sampled_from(held))
            self.refused(LeaseGranted(self.lease(node, (d,), milli)))

    @precondition(lambda self: self.ledger.node_names)
    @rule(data=st.data(), devices=st.lists(st.integers(-1, 5), max_size=3), milli=MILLI)
    def grant_anything(self, data: st.DataObject, devices: list[int], milli: int) -> None:
        """A lease nobody planned: applied whole, or refused whole."""
        node = data.draw(st.sampled_from(self.ledger.node_names))
        lease = self.lease(node, tuple(devices), milli)
        before = image(self.ledger)
        if attempt(self.ledger, LeaseGranted(lease)):
            self.log.append(LeaseGranted(lease))
            assert self.auditor.after(LeaseGranted(lease)) == []
        else:
            assert image(self.ledger) == before

    def lease(self, node: str, devices: tuple[int, ...], milli: int) -> Lease:
        epoch = self.ledger.last_epoch + 1
        task = TaskPlacement(
            role=Role.WORKER,
            index=0,
            node=node,
            devices=devices,
            milli_gpu=milli,
            gpu_mib=0,
            milli_cpu=0,
            mib=0,
        )
        return Lease(lease=f"l{epoch}", job="unplanned", team="ops", epoch=epoch, tasks=(task, task))

    @rule()
    def restart(self) -> None:
        """The state is the fold of its events: nothing else is needed to come back."""
        again = replay(self.log)
        assert image(again) == image(self.ledger)
        assert differences(self.ledger, rebuilt(self.ledger)) == []
        self.ledger, self.auditor = again, Auditor(again)

    @rule()
    def follow(self) -> None:
        """Who copies only the rows that were touched since has them all; another history is copied whole."""
        rows, all_of_it = self.ledger.touched_since(self.seen_at), self.ledger.milli_free
        if rows is None or self.follower.shape != all_of_it.shape:
            self.follower = all_of_it.copy()
        else:
            self.follower[rows] = all_of_it[rows]
        assert np.array_equal(self.follower, all_of_it)
        self.seen_at = self.ledger.mark()

    @invariant()
    def sound(self) -> None:
        check(self.ledger)
        for use in team_use(self.ledger):
            assert use.allowance >= 0


def columns(decided: Plan) -> list[object]:
    """A plan as bytes."""
    values = (getattr(decided, name) for name in PLANNED)
    return [value.tobytes() if isinstance(value, np.ndarray) else value for value in values]


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase
