"""S2-S4: the ledger and the planner under random histories; every invariant after every step."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moorage.scheduling.ledger import (
    LeaseGranted,
    LeaseReleased,
    Ledger,
    LedgerError,
    NodeDown,
    NodeUp,
    TeamSet,
    step,
)
from moorage.scheduling.model import JobRequest, Lease, NodeSpec, Policy, Shape, Snapshot, TeamSpec
from moorage.scheduling.planner import plan
from moorage.scheduling.quota import team_use
from moorage.scheduling.validate import check

MILLI = st.sampled_from([0, 100, 180, 300, 500, 600, 1000, 2000, 4000])
TEAMS = ("ops", "research", "search")


class PoolMachine(RuleBasedStateMachine):
    """Nodes come and go, jobs are planned and end, quotas change, the control plane restarts from its log."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.log: list[object] = []
        self.pending: list[JobRequest] = []
        self.count = 0
        for name in TEAMS:
            self.apply(
                TeamSet(TeamSpec(name=name, quota=(("*", 2000),), limit=(("*", 3000),), lend=(("*", 500),)))
            )
        for name in ("n0", "n1"):
            self.apply(
                NodeUp(NodeSpec(name=name, gpu_model="A", devices=4, device_mib=24000, milli_cpu=8000))
            )

    def apply(self, event: object) -> None:
        step(self.ledger, event)  # type: ignore[arg-type]
        self.log.append(event)

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
        before = self.ledger.version
        try:
            self.apply(NodeUp(spec))
        except LedgerError:
            assert self.ledger.version == before

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
                gpu_model=model,
            )
        )

    @rule(now=st.integers(0, 10**13))
    def tick(self, now: int) -> None:
        snapshot = Snapshot(version=self.ledger.version, ledger=self.ledger, pending=tuple(self.pending))
        decided = plan(snapshot, Policy(), now)
        seen = sorted([*decided.admitted.tolist(), *decided.deferred.tolist()])
        assert seen == list(range(len(self.pending))), "every waiting job starts or has a reason"
        for _, reason in decided.waiting(snapshot):
            assert reason.text()
        started = set()
        for request, tasks in list(decided.admissions(snapshot)):
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
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.ledger.leases[data.draw(st.sampled_from(sorted(self.ledger.leases)))]
        with pytest.raises(LedgerError, match="stale"):
            step(self.ledger, LeaseReleased(lease.lease, lease.epoch + 1))
        self.apply(LeaseReleased(lease.lease, lease.epoch))
        with pytest.raises(LedgerError, match="not held"):
            step(self.ledger, LeaseReleased(lease.lease, lease.epoch))

    @rule()
    def restart(self) -> None:
        """The state is the fold of its events: nothing else is needed to come back."""
        again = Ledger()
        for event in self.log:
            step(again, event)  # type: ignore[arg-type]
        for name in Ledger.__slots__:
            a, b = getattr(self.ledger, name), getattr(again, name)
            assert (a == b).all() if hasattr(a, "all") else a == b, name
        self.ledger = again

    @invariant()
    def sound(self) -> None:
        check(self.ledger)
        for use in team_use(self.ledger):
            assert use.allowance >= 0


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase
