"""`plan(snapshot, policy, now_ns) -> Plan`: one scheduling decision.

Pure: the snapshot is not changed, time is an argument, and the same input gives the same plan byte for byte. Here the
columns are laid out; the loop over them is `kernels.admission`, the placing of one task `kernels.placing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moorage.kernels import admission, asking, moving, preemption, relocating
from moorage.kernels.gang import Pool, fits_within
from moorage.kernels.keeping import free_by_model
from moorage.kernels.lifting import Scratch, scratch_for
from moorage.kernels.teams import Teams, room
from moorage.scheduling import bound, domains, growing, words
from moorage.scheduling.constraints import ANYWHERE
from moorage.scheduling.layout import (
    deadlines,
    first_pass,
    out_columns,
    promises_of,
    row_columns,
    small_at_first,
    with_room,
)
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import (
    UNLIMITED,
    DeviceRule,
    IntArray,
    JobRequest,
    Plan,
    Policy,
    Reason,
    ReasonCode,
    Snapshot,
)
from moorage.scheduling.queue import Queue
from moorage.scheduling.quota import Quotas
from moorage.scheduling.reservations import Reservations
from moorage.scheduling.running import Pieces, RunningJobs
from moorage.scheduling.sharing import barred, put_off, shares
from moorage.scheduling.who import Who
from moorage.scheduling.workspace import Kept, Workspace

_FIRST_TASKS = 4096
_NOTHING = np.zeros(0, np.int64)


def plan(snapshot: Snapshot, policy: Policy, now_ns: int, workspace: Workspace | None = None) -> Plan:
    """Decide which waiting jobs start where, and say of every other one which rule holds it.

    `workspace` saves work where one caller plans again and again; it never changes the plan.
    """
    return _Decision.of(snapshot, policy, now_ns, workspace or Workspace()).run()


def feasible(
    ledger: Ledger, request: JobRequest, rule: DeviceRule, policy: Policy | None = None
) -> Reason | None:
    """None when an otherwise idle pool could start the job's minimum; else the rule that never will."""
    queue = Queue.of((request,))
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=queue, device_rule=rule)
    return _Decision.of(snapshot, policy or Policy(), 0, Workspace()).never(0)


@dataclass(slots=True)
class _Decision:
    """One run of the loop, and the words for what it left waiting."""

    snapshot: Snapshot
    policy: Policy
    now_ns: int
    rows: admission.Rows
    teams: Teams
    kept: Kept
    pool: Pool
    who: Who
    stuck: IntArray
    late_ns: IntArray | None
    """[R] by how much each row misses its deadline, 0 = it need not; None = nobody has one."""
    urgent: IntArray | None
    reserving: Reservations | None
    """None where nothing is known of the future, or nobody is to reserve."""
    scratch: Scratch | None = None
    pushed: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Piece of a running job that leaves -> the row it leaves for, and by which rule."""
    jobs: relocating.Jobs | None = None

    @classmethod
    def of(cls, snapshot: Snapshot, policy: Policy, now_ns: int, workspace: Workspace) -> _Decision:
        ledger, queue = snapshot.ledger, snapshot.pending
        running = RunningJobs() if snapshot.running is None else snapshot.running
        kept = workspace.open(snapshot, policy)
        waiting, held = kept.rows(ledger, queue.classes), kept.rows(ledger, running.classes)
        rows = row_columns(ledger, queue, waiting, now_ns, policy)
        if policy.start_small:
            rows = small_at_first(rows, queue, int(kept.pool.nodes.milli_free.sum()))
        late, urgent = deadlines(queue, now_ns, policy.urgent_ns)
        teams = _teams(snapshot, policy, rows)
        made = cls(
            snapshot=snapshot,
            policy=policy,
            now_ns=now_ns,
            rows=rows,
            teams=teams,
            kept=kept,
            pool=kept.pool,
            who=Who(running, ledger, policy, held, teams, kept.pool),
            stuck=np.full(len(kept.pool.classes.milli), -1, np.int64),
            late_ns=late,
            urgent=urgent,
            reserving=None,
        )
        if running.ends_ns is not None and policy.reservations > 0:
            made.reserving = Reservations(
                pool=made.pool,
                spare=kept.scratch(),
                teams=made.teams,
                running=made.running,
                ends=running.ends_ns[made.pieces.job],
                rows=rows,
                policy=policy,
                now=now_ns,
                columns=promises_of(len(queue), int(rows.kind.max(initial=0)) + 1),
            )
        return made

    @property
    def pieces(self) -> Pieces:
        return self.who.pieces

    @property
    def running(self) -> preemption.Running:
        return self.who.running

    @property
    def moves(self) -> moving.Moves:
        return self.who.moves

    def run(self) -> Plan:
        queue, policy = self.snapshot.pending, self.policy
        order, count = first_pass(queue, self.urgent), len(queue)
        reserving = self.reserving
        several = int(self.rows.kind.max(initial=0)) + 1
        promises = promises_of(count, several) if reserving is None else reserving.columns
        judged = np.zeros(count, np.int64)
        account = self._barred(order)
        without, order, account = order[account >= 0], order[account < 0], account[account >= 0]
        order, later = self._turns(order)
        jobs = self.who.jobs
        loose = jobs.loose(policy)
        bounds = (
            policy.margin,
            int(jobs.priority[loose].min(initial=UNLIMITED)),
            int(jobs.key[loose].max(initial=admission.NOBODY)),
            policy.moves > 0,
        )
        full, why = np.full((2, several), -1, np.int64)
        own, allowed, within, left = np.zeros((4, len(self.snapshot.ledger.models)), np.int64)
        rooms = admission.Rooms(own, allowed, within, left, full, why)
        state = np.zeros(admission.STATE_SIZE, np.int64)
        state[admission.HELD] = state[admission.OF] = -1
        state[admission.FIRST] = UNLIMITED
        state[admission.LEFT] = 0 if reserving is None else policy.reservations
        out = out_columns(count, max(_FIRST_TASKS, 2 * count))
        _defer(out, state, without, account)
        while True:
            stopped = admission.admit(
                order,
                self.rows,
                self.teams,
                self.pool,
                bounds,
                self.stuck,
                policy.max_admissions,
                judged,
                promises,
                later,
                rooms,
                out,
                state,
            )
            if stopped == admission.DONE:
                break
            row = int(state[admission.ROW])
            if stopped == admission.GROW:
                out = with_room(out, int(state[admission.TASKS] + 1 + self.rows.workers[row]))
            elif stopped == admission.RESERVE and reserving is not None:
                reserving.reserve(row, out, state)
            elif stopped == admission.HELP:
                first = bool(state[admission.PASS] == 0)
                if state[admission.ANSWER] == admission.MAY_OVERTAKE and reserving is not None:
                    state[admission.ANSWER] = reserving.overtake(row, first, out, state)
                else:
                    state[admission.ANSWER] = self._help(row, first=first, out=out, state=state)
                state[admission.ANSWERED] = 1
            else:
                judged[row] = admission.POSSIBLE if self.never(row) is None else admission.NEVER
        return self._plan(out, state, self._grow(out, state))

    def _grow(self, out: admission.Out, state: IntArray) -> growing.Grown | None:
        """What is left over goes to running gangs that want more; None where nobody takes any."""
        running, policy = self.snapshot.running, self.policy
        gangs = growing.may_grow(running, policy) if running else _NOTHING
        if running is None or not len(gangs) or state[admission.HELD] >= 0:
            return None
        if self.who.disturbed() or state[admission.ADMITTED] >= policy.max_admissions:
            return None
        count = int(state[admission.DEFERRED])
        said = out.deferred[:count], out.code[:count], out.figures[:count]
        ledger, classes = self.snapshot.ledger, self.pool.classes
        lacks = growing.wanted(self.rows, *said, self.teams, growing.holding(ledger, classes), self.never)
        if lacks.nodes.all():
            return None
        if not len(self.teams.shares.weight):
            self.teams = self.teams._replace(shares=shares(self.teams, ledger, _past(self.snapshot, policy)))
        lacks.teams[barred(ledger, self.snapshot.accounts) >= 0] = True
        klass = self.kept.rows(ledger, running.classes)[running.workers()]
        gangs = gangs[~domains.bound(self.pool.limits, klass[gangs])]
        team = self.running.team[self.pieces.rank == 0]
        return growing.grow(gangs, running, team, klass, self.pool, self.teams, lacks)

    def _barred(self, order: IntArray) -> IntArray:
        """By row in `order`: the account that is out of budget, -1 = it may start. Without GPUs nothing is spent."""
        accounts, rows = self.snapshot.accounts, self.rows
        none = np.full(len(order), -1, np.int64)
        if accounts is None or not any(account.out for account in accounts.budgets):
            return none
        milli = np.append(self.pool.classes.milli, 0)
        spends = (milli[rows.head] > 0) | ((milli[rows.worker] > 0) & (rows.workers > 0))
        account = np.append(barred(self.snapshot.ledger, accounts), -1)[rows.team]
        return np.asarray(np.where(spends, account, -1)[order])

    def _turns(self, order: IntArray) -> tuple[IntArray, admission.Later]:
        """The rows of the first pass, and those put off to the second from the start: all of them where nobody has a
        quota and there are several teams to share the pool."""
        team, teams = self.rows.team, len(self.teams.weight)
        if self.teams.counted.any() or not len(self.teams.shares.weight):
            return order, admission.Later(*(np.full(n, -1, np.int64) for n in (teams, teams, len(team))))
        return put_off(order, team, teams)

    def _help(self, row: int, *, first: bool, out: admission.Out, state: IntArray) -> int:
        """What becomes of a row that was not placed: it borrows, others leave for it, or it waits."""
        rows, at = self.rows, int(state[admission.TASKS])
        team, head, worker = int(rows.team[row]), int(rows.head[row]), int(rows.worker[row])
        least = int(rows.min_workers[row])
        columns = out.task_node[at:], out.task_mask[at:], out.task_mem[at:]
        allowed, left = np.zeros((2, self.teams.own.shape[1]), np.int64)
        if first and not self.teams.free[team]:
            room(self.teams, team, allowed)
            if fits_within(self.pool, head, worker, least, allowed, left, *columns):
                return admission.BORROWS
        if not len(self.who.jobs) or not rows.least[row]:
            return admission.WAITS
        asker = preemption.Asker(
            team=team,
            priority=int(rows.priority[row]),
            key=int(rows.key[row]),
            margin=self.policy.margin,
            entitled=first,
            hasty=not self.policy.reclaim_waits,
            head=head,
            worker=worker,
            least=least,
            milli=int(rows.least[row]),
        )
        kept = np.zeros((2, 1 + least), np.int64)
        before = self.running.taken.copy()
        placed = asking.make_room(asker, self.running, self.pool, self.teams, allowed, left, *columns, kept)
        if placed >= 0:
            self._pushed(row, asker, before)
            self._another_future()
            return int(placed)
        return self._move_for(row, columns, int(state[admission.ADMITTED]))

    def _pushed(self, row: int, asker: preemption.Asker, before: npt.NDArray[np.bool_]) -> None:
        """Remember for whom those leave who were not `before` marked as leaving."""
        for v in np.flatnonzero(self.running.taken & ~before).tolist():
            if asker.entitled and self.running.team[v] != asker.team:
                rule = "reclaim"
            else:
                rule = "priority" if self.running.priority[v] != asker.priority else "index"
            self.pushed[v] = row, rule

    def _shrunk_for(self, shrunk: IntArray) -> dict[str, Any]:
        """Of a plan: for whom running gangs give up workers, and by which rule."""
        if not len(shrunk):
            return {}
        of = self.pieces.job
        given = [[self.pushed[v] for v in sorted(self.pushed) if of[v] == job] for job in shrunk]
        rows = tuple(tuple(sorted({row for row, _ in one})) for one in given)
        rules = tuple(dict(one)[first[0]] for one, first in zip(given, rows, strict=True))
        return {"shrunk_for": rows, "shrunk_by": rules}

    def _another_future(self) -> None:
        """Somebody leaves or moves: what was reserved is to be looked at again."""
        if self.reserving is not None:
            self.reserving.stale = True

    def _move_for(self, row: int, columns: tuple[IntArray, IntArray, IntArray], admitted: int) -> int:
        """The workers placed by moving running jobs aside, or that the row waits."""
        c, team = int(self.rows.alike[row]), int(self.rows.team[row])
        if c < 0 or not self.moves.budget[0]:
            return admission.WAITS
        allowed = np.zeros(self.teams.own.shape[1], np.int64)
        room(self.teams, team, allowed)
        headed = self.rows.head[row] >= 0
        workers = int(self.rows.min_workers[row]) if headed else max(int(self.rows.min_workers[row]), 1)
        count = max(workers, 1)
        self.moves.made[1] = admitted
        mixed = bool(headed and self.rows.workers[row] > 0)
        plain = not mixed and not domains.bound(self.pool.limits, np.array([c])).any()
        if plain and allowed.min() >= self.rows.least[row]:
            if not self.policy.move_for_all:
                placed = moving.make_place(self.pool, c, self.running, self.moves, *columns)
            else:
                scratch = self.scratch = self.scratch or scratch_for(self.pool)
                placed = moving.make_places(self.pool, c, count, self.running, self.moves, scratch, *columns)
            if placed:
                self._another_future()
                return workers
        if self._make_way(row, workers, allowed, columns):
            self._another_future()
            return workers
        if count == 1 and not mixed:
            self.stuck[c] = self.pool.scores.clock[0]
        return admission.WAITS

    def _make_way(
        self, row: int, workers: int, allowed: IntArray, columns: tuple[IntArray, IntArray, IntArray]
    ) -> bool:
        """Move whole jobs: gangs where the policy says so, and anybody where a limit beyond single nodes binds."""
        running, gangs, rows = self.snapshot.running, self.policy.move_gangs, self.rows
        if running is None or not (gangs or self.pool.limits.on):
            return False
        if self.jobs is None:
            self.jobs = running.jobs(self.pieces, gangs, self.snapshot.ledger, self.teams)
        wish = relocating.Wish(int(rows.head[row]), int(rows.worker[row]), workers, int(rows.least[row]))
        left = np.zeros_like(allowed)
        return bool(
            relocating.make_way(self.pool, wish, self.running, self.jobs, self.moves, allowed, left, *columns)
        )

    def never(self, row: int) -> Reason | None:
        """The rule that keeps a row from ever starting, were everything else idle; None when there is none."""
        queue, ledger, rows = self.snapshot.pending, self.snapshot.ledger, self.rows
        team, least = int(rows.team[row]), int(rows.least[row])
        column, head, worker = int(rows.column[row]), int(queue.head[row]), int(queue.worker[row])
        about = {"team": queue.teams[queue.team[row]], "asked": least}
        if team < 0:
            return Reason(code=ReasonCode.TEAM_UNKNOWN, **about)
        most = Quotas.of(ledger).most(team)
        if self._fits_idle(row, most):
            return None
        model = words.model_text(words.models_of(self.snapshot, row))
        if not self._fits_idle(row, np.full(len(ledger.models), UNLIMITED, np.int64)):
            ruled_out = words.ruled_out(ledger, [queue.classes[c] for c in (head, worker) if c >= 0])
            code, limit = self._limit(row, self.kept.idle(ledger))
            note = "; ".join(filter(None, (ruled_out, words.too_much(code, limit))))
            return Reason(code=ReasonCode.NO_DEVICE, gpu_model=model, note=note, **about)
        here = (
            np.unique(ledger.model[ledger.up & (ledger.devices > 0)]) if column == 0 else np.array([column])
        )
        allowed = min(int(most[0]), sum(int(most[m]) for m in here))
        return Reason(code=ReasonCode.TEAM_LIMIT, gpu_model=model, allowed=allowed, **about)

    def _fits_idle(self, row: int, within: IntArray) -> bool:
        return self._fits(row, within, self.kept.idle(self.snapshot.ledger))

    def _fits(self, row: int, within: IntArray, pool: Pool) -> bool:
        rows, least = self.rows, int(self.rows.min_workers[row])
        columns = (np.zeros(1 + least, np.int64) for _ in range(3))
        head, worker = int(rows.head[row]), int(rows.worker[row])
        return bool(fits_within(pool, head, worker, least, within, within.copy(), *columns))

    def _limit(self, row: int, pool: Pool) -> tuple[ReasonCode | None, str]:
        """The limit beyond a single node without which a row would fit into the pool, and what it says."""
        queue, ledger = self.snapshot.pending, self.snapshot.ledger
        at = queue.worker if queue.worker[row] >= 0 else queue.head
        rows = self.rows.worker if queue.worker[row] >= 0 else self.rows.head
        unbounded = np.full(len(ledger.models), UNLIMITED, np.int64)
        code = bound.binds(pool, int(rows[row]), lambda other: self._fits(row, unbounded, other))
        wanted = queue.classes[int(at[row])].constraints
        return code, bound.describe(code, wanted, ledger, self.policy, pool.nodes)

    def _limits(self) -> Callable[[int], tuple[ReasonCode | None, str]] | None:
        """`_limit` in the pool as this decision leaves it."""
        if not self.pool.limits.on:
            return None
        left = bound.set_aside(self.pool)
        return lambda row: self._limit(row, left)

    def _plan(self, out: admission.Out, state: IntArray, grown: growing.Grown | None) -> Plan:
        admitted, tasks = int(state[admission.ADMITTED]), int(state[admission.TASKS])
        deferred = out.deferred[: int(state[admission.DEFERRED])].copy()
        classes, task_class = self.pool.classes, out.task_class[:tasks]
        running, left = self.snapshot.running, self.who.left()
        reserved = () if self.reserving is None else self.reserving.result(out, state)
        return Plan(
            version=self.snapshot.version,
            admitted=out.admitted[:admitted].copy(),
            workers=out.workers[:admitted].copy(),
            task_admission=out.task_admission[:tasks].copy(),
            task_index=out.task_index[:tasks].copy(),
            task_node=out.task_node[:tasks].copy(),
            task_devices=out.task_mask[:tasks].copy(),
            task_milli=classes.milli[task_class],
            task_gpu_mib=out.task_mem[:tasks].copy(),
            task_milli_cpu=classes.cpu[task_class],
            task_mib=classes.mib[task_class],
            deferred=deferred,
            preempted=tuple(running.leases[v] for v in left.leave) if running else (),
            preempted_for=tuple(self.pushed[v][0] for v in left.pieces.tolist()),
            preempted_by=tuple(self.pushed[v][1] for v in left.pieces.tolist()),
            shrunk=tuple(running.leases[v] for v in left.shrunk) if running else (),
            shrunk_tasks=left.kept,
            **self._shrunk_for(left.shrunk),
            **growing.columns(running, grown),
            moved=tuple(running.leases[v] for v in left.moved) if running else (),
            moved_task=left.moved_task,
            moved_node=left.node,
            moved_devices=left.mask,
            moved_gpu_mib=left.mib,
            moved_after=left.after,
            reserved=reserved,
            words=words.Words(
                snapshot=self.snapshot,
                never=self.never,
                code=out.code[: len(deferred)].copy(),
                figures=out.figures[: len(deferred)].copy(),
                free=self._free() if len(deferred) else _NOTHING,
                admitted=out.admitted[:admitted].copy(),
                on_node=self._free_on_nodes() if len(deferred) else None,
                task_admission=out.task_admission[:tasks],
                task_node=out.task_node[:tasks],
                late_ns=self.late_ns,
                reserved={one.row: one for one in reserved},
                now_ns=self.now_ns,
                limit=self._limits() if len(deferred) else None,
            ),
        )

    def _free_on_nodes(self) -> IntArray | None:
        """[N] milli-GPU left on each node; None where no constraint makes it worth knowing."""
        plain = all(c.constraints == ANYWHERE for c in self.snapshot.pending.classes)
        if plain and len(self.snapshot.ledger.traits) == 1:
            return None
        return np.asarray(self.pool.nodes.milli_free.sum(axis=1), np.int64)

    def _free(self) -> IntArray:
        """[M] milli-GPU left on the nodes that are up."""
        free = np.zeros(len(self.snapshot.ledger.models), np.int64)
        free_by_model(self.pool.nodes, self.snapshot.ledger.up, free)
        return free


def _defer(out: admission.Out, state: IntArray, rows: IntArray, account: IntArray) -> None:
    """Defer rows before the loop begins: their team is out of budget."""
    out.deferred[: len(rows)], out.code[: len(rows)] = rows, admission.BUDGET
    out.figures[: len(rows), 0] = account
    state[admission.DEFERRED] = len(rows)


def _teams(snapshot: Snapshot, policy: Policy, rows: admission.Rows) -> Teams:
    ledger, teams = snapshot.ledger, Quotas.of(snapshot.ledger).columns()
    several = len(rows.team) > 0 and bool((rows.team != rows.team[0]).any())
    if teams.counted.any() or (policy.sharing and several):
        teams = teams._replace(shares=shares(teams, ledger, _past(snapshot, policy)))
    return teams


def _past(snapshot: Snapshot, policy: Policy) -> Mapping[str, int]:
    """Milli-GPU that teams held on average, where that counts."""
    return snapshot.accounts.past if snapshot.accounts and policy.half_life_ns else {}
