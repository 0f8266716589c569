"""Pools in which running jobs, gangs among them, move: for tests that carry a plan out one move after another and look
at every rule after each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from moorage.scheduling.bound import drawn
from moorage.scheduling.constraints import ANYWHERE, Constraints, Traits
from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    WHOLE,
    DeviceRule,
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
    unmask,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.validate import check

MIB = 8000
FREE, RAYLET = DeviceRule.FREE, DeviceRule.RAYLET


def job(
    name: str,
    milli: int,
    workers: int = 1,
    head: int = 0,
    cpu: int = 0,
    rule: Constraints = ANYWHERE,
    **more: object,
) -> JobRequest:
    figures = {"min_workers": workers, "preemptible": False, "submitted_ns": 0, **more}
    shape = Shape(milli_gpu=milli, milli_cpu=cpu)
    return JobRequest(  # type: ignore[arg-type]
        job=name,
        team="t",
        head=Shape(milli_gpu=head),
        worker=shape,
        workers=workers,
        constraints=rule,
        **figures,
    )


def pool(*nodes: tuple[str, str], devices: int = 2) -> Ledger:
    """(GPU model, rack) of each node: rack `r2` is in zone `r`; `-` = no rack."""
    ledger = Ledger()
    step(ledger, TeamSet(TeamSpec(name="t")))
    for n, (model, rack) in enumerate(nodes):
        traits = Traits.of({} if rack == "-" else {"rack": rack, "zone": rack[0]})
        figures = {"gpu_model": model, "devices": devices, "device_mib": MIB, "milli_cpu": 8000}
        step(ledger, NodeUp(NodeSpec(name=f"n{n}", traits=traits, **figures)))  # type: ignore[arg-type]
    return ledger


def tasks_of(request: JobRequest, places: list[tuple[str, tuple[int, ...]]]) -> tuple[TaskPlacement, ...]:
    heads = 0 if request.head.empty else 1
    made = []
    for i, (node, devices) in enumerate(places):
        shape = request.head if i < heads else request.worker
        made.append(
            TaskPlacement(
                role=Role.HEAD if i < heads else Role.WORKER,
                index=max(i - heads, 0),
                node=node,
                devices=devices,
                milli_gpu=shape.milli_gpu,
                gpu_mib=min(shape.milli_gpu, WHOLE) * MIB // WHOLE,
                milli_cpu=shape.milli_cpu,
                mib=shape.mib,
            )
        )
    return tuple(made)


def grant(ledger: Ledger, request: JobRequest, tasks: tuple[TaskPlacement, ...]) -> None:
    epoch = ledger.last_epoch + 1
    step(ledger, LeaseGranted(Lease(lease=request.job, job=request.job, team="t", epoch=epoch, tasks=tasks)))


@dataclass
class World:
    ledger: Ledger
    held: dict[str, JobRequest]
    policy: Policy
    rule: DeviceRule = FREE
    movable: int = 1

    def hold(self, request: JobRequest, places: str, *, stays: bool = False) -> None:
        """Grant it 'n0/01 n1/0': the nodes and devices of its tasks. Who `stays` may not move."""
        tasks = tasks_of(
            request, [(at.split("/")[0], tuple(map(int, at.split("/")[1]))) for at in places.split()]
        )
        grant(self.ledger, request, tasks)
        if not stays:
            self.held[request.job] = request

    def went(self, decided: Plan) -> list[str]:
        """'gang.1 n2/0': which task of which job goes where."""
        columns = zip(
            decided.moved, decided.moved_task, decided.moved_node, decided.moved_devices, strict=True
        )
        return [
            f"{name}.{task} {self.ledger.node_names[node]}/{''.join(map(str, unmask(int(mask))))}"
            for name, task, node, mask in columns
        ]

    def see(self, *waits: JobRequest) -> Snapshot:
        running = RunningJobs.of(self.ledger, self.held)
        count = len(self.held)
        running = replace(running, movable=np.full(count, self.movable), fixed=np.ones(count, np.int64))
        return Snapshot(
            version=self.ledger.version,
            ledger=self.ledger,
            pending=Queue.of(waits),
            running=running,
            device_rule=self.rule,
        )

    def plan(self, *waits: JobRequest, policy: Policy | None = None) -> Plan:
        self.snapshot = self.see(*waits)
        return plan(self.snapshot, policy or self.policy, 0)

    def start(self, *requests: JobRequest) -> None:
        """As many of them as the planner starts, and run from then on."""
        decided = self.plan(*requests, policy=replace(self.policy, moves=0))
        for request, tasks in decided.admissions(self.snapshot):
            grant(self.ledger, request, tasks)
            self.held[request.job] = request

    def apply(self, decided: Plan) -> None:
        """In the plan's order, each job that moves and each that starts a step; all rules are looked at after each."""
        over = self.over()
        moves = list(steps(decided))
        for at, (request, tasks) in enumerate(decided.admissions(self.snapshot)):
            while moves and moves[0][1] <= at:
                self.move(decided, *moves.pop(0))
                self.look(over)
            if self.rule is RAYLET:
                self.picked(tasks)
            grant(self.ledger, request, tasks)
            self.held[request.job] = request
            self.look(over)
        assert not moves, "a move after the last admission helps nobody"

    def move(self, decided: Plan, name: str, after: int, entries: list[int]) -> None:
        before, request = self.ledger.leases[name], self.held[name]
        step(self.ledger, LeaseReleased(name, before.epoch))
        new = list(before.tasks)
        for i in entries:
            node = self.ledger.node_names[int(decided.moved_node[i])]
            t, devices = int(decided.moved_task[i]), unmask(int(decided.moved_devices[i]))
            assert (node, devices) != (new[t].node, new[t].devices), "an entry is a new place"
            new[t] = replace(new[t], node=node, devices=devices, gpu_mib=int(decided.moved_gpu_mib[i]))
        if self.movable == 1:
            models = [[self.model(t.node) for t in tasks] for tasks in (before.tasks, new)]
            assert sorted(models[0]) == sorted(models[1])
        if self.rule is RAYLET:
            self.picked(tuple(new))
        grant(self.ledger, request, tuple(new))

    def model(self, node: str) -> str:
        return self.ledger.models[int(self.ledger.model[self.ledger.node_row[node]])]

    def picked(self, tasks: tuple[TaskPlacement, ...]) -> None:
        """Each task, started after those before it, has the devices that the raylet picks: whole GPUs the lowest free,
        a fraction the smallest remainder that is enough."""
        free = self.ledger.milli_free.copy()
        for task in tasks:
            row = self.ledger.node_row[task.node]
            mine = free[row]
            if task.milli_gpu >= WHOLE:
                wanted = tuple(np.flatnonzero(mine == WHOLE)[: task.milli_gpu // WHOLE].tolist())
            elif task.milli_gpu:
                enough = [(int(mine[d]), d) for d in range(len(mine)) if mine[d] >= task.milli_gpu]
                wanted = (min(enough)[1],)
            else:
                wanted = ()
            assert task.devices == wanted
            mine[list(wanted)] -= min(task.milli_gpu, WHOLE)

    def over(self) -> dict[str, int]:
        """By rack: W in use, or its cap where that is more."""
        return {
            rack: max(used) for rack, used in drawn(self.ledger, self.policy, self.ledger.milli_free).items()
        }

    def look(self, over: dict[str, int]) -> None:
        check(self.ledger)
        now = self.over()
        assert all(now[rack] <= most for rack, most in over.items()), "more than a rack's cap"
        for name, request in self.held.items():
            self.keeps(request.constraints, self.ledger.leases[name].tasks)

    def keeps(self, rule: Constraints, tasks: tuple[TaskPlacement, ...]) -> None:
        def value(task: TaskPlacement, key: str) -> str | None:
            return self.ledger.traits[int(self.ledger.trait[self.ledger.node_row[task.node]])].value(key)

        if rule.required:
            (domain,) = {value(task, rule.required) for task in tasks}
            assert domain is not None
        if rule.spread:
            workers = [task for task in tasks if task.role is Role.WORKER]
            of = [value(task, rule.spread_by) if rule.spread_by else task.node for task in workers]
            assert None not in of and all(of.count(one) <= rule.spread for one in of)


def steps(decided: Plan) -> Iterator[tuple[str, int, list[int]]]:
    """(lease, after how many admissions, its entries) of each move."""
    seen: list[str] = []
    for i, name in enumerate(decided.moved):
        if seen and seen[-1] == name:
            continue
        assert name not in seen, "the entries of a job follow one another, and it moves once"
        seen.append(name)
        entries = [k for k in range(i, len(decided.moved)) if decided.moved[k] == name]
        assert entries == list(range(i, i + len(entries)))
        assert len({int(decided.moved_after[k]) for k in entries}) == 1
        yield name, int(decided.moved_after[i]), entries
