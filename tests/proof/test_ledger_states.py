"""S2-S4: every state that a small pool can be in, found breadth first, with a crash anywhere.

Two teams, three devices on two nodes, three jobs of half a device or a whole one. Two histories that differ only in
the names of jobs, in how many events they had, or in gaps between epochs lead to the same state: the key keeps
every array, and the leases in order of epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import pytest
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
)
from moorage.scheduling.model import Lease, NodeSpec, Role, TaskPlacement, TeamSpec
from moorage.scheduling.validate import violations


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What there is: devices by node, how many jobs may hold leases, and what each may ask of a device."""

    nodes: tuple[int, ...] = (2, 1)
    jobs: int = 3
    teams: tuple[str, ...] = ("a", "b")
    shares: tuple[int, ...] = (500, 1000)
    quotas: tuple[int, ...] = (1000, 2000)
    gangs: bool = False

    def node(self, n: int, more: int = 0) -> NodeSpec:
        return NodeSpec(
            name=f"n{n}",
            gpu_model="AB"[n % 2],
            devices=self.nodes[n] + more,
            device_mib=24,
            milli_cpu=16,
            mib=16,
        )

    def team(self, name: str, quota: int) -> TeamSpec:
        return TeamSpec(name=name, quota=(("*", quota),), limit=(("*", 3000),))

    def start(self) -> list[Event]:
        teams: list[Event] = [TeamSet(self.team(name, self.quotas[0])) for name in self.teams]
        return teams + [NodeUp(self.node(n)) for n in range(len(self.nodes))]

    def holdings(self) -> list[tuple[str, tuple[tuple[str, int], ...], int]]:
        """(team, devices by node, share) that a lease may have: one task, or a gang of two on two devices."""
        devices = [(f"n{n}", d) for n, count in enumerate(self.nodes) for d in range(count)]
        sizes = (1, 2) if self.gangs else (1,)
        placed = [places for size in sizes for places in combinations(devices, size)]
        return [(team, p, milli) for team in self.teams for p in placed for milli in self.shares]

    def grants(self, ledger: Ledger) -> Iterator[Event]:
        """Whatever the next job may be given."""
        if len(ledger.leases) == self.jobs:
            return
        job = next(f"j{j}" for j in range(self.jobs) if f"j{j}" not in ledger.leases)
        for team, places, milli in self.holdings():
            tasks = tuple(task(t, *place, milli) for t, place in enumerate(places))
            yield LeaseGranted(Lease(lease=job, job=job, team=team, epoch=ledger.last_epoch + 1, tasks=tasks))

    def resizes(self, lease: Lease, granted: int) -> Iterator[Event]:
        """A gang of two gives up its second, or has another instead; a gang of one takes any later device besides."""
        if len(lease.tasks) == 2:
            yield LeaseResized(lease.lease, lease.epoch, granted, 1)
        first = lease.tasks[0]
        for node, d in ((f"n{n}", d) for n, count in enumerate(self.nodes) for d in range(count)):
            if self.gangs and (node, d) > (first.node, first.devices[0]):
                second = task(1, node, d, first.milli_gpu)
                yield LeaseResized(lease.lease, lease.epoch, granted, 1, (second,))

    def others(self, ledger: Ledger) -> Iterator[Event]:
        for lease in ledger.leases.values():
            yield LeaseReleased(lease.lease, lease.epoch)
            yield from self.resizes(lease, ledger.last_epoch + 1)
        for n in range(len(self.nodes)):
            yield NodeDown(f"n{n}")
            yield NodeUp(self.node(n))
        for quota in self.quotas:
            yield TeamSet(self.team(self.teams[0], quota))

    def wrong(self, ledger: Ledger) -> Iterator[Event]:
        """What no state allows."""
        for lease in ledger.leases.values():
            yield LeaseReleased(lease.lease, lease.epoch + 1)
            yield LeaseReleased(lease.lease, lease.epoch - 1)
            yield LeaseGranted(lease)
            yield LeaseResized(lease.lease, lease.epoch, ledger.last_epoch + 1, len(lease.tasks))
            yield LeaseResized(lease.lease, lease.epoch, ledger.last_epoch + 1, 0)
            again = task(9, lease.tasks[0].node, lease.tasks[0].devices[0], 1000)
            for epoch, granted, more in (
                (lease.epoch, ledger.last_epoch, task(9, "n0", 0, 1)),
                (lease.epoch - 1, ledger.last_epoch + 1, task(9, "n0", 0, 1)),
                (lease.epoch, ledger.last_epoch + 1, again),
                (lease.epoch, ledger.last_epoch + 1, task(9, "n0", 9, 1)),
            ):
                yield LeaseResized(lease.lease, epoch, granted, 1, (more,))
            for held in lease.tasks:
                yield NodeUp(self.node(int(held.node[1:]), more=1))
        for j in range(self.jobs):
            if f"j{j}" not in ledger.leases:
                yield LeaseReleased(f"j{j}", ledger.last_epoch)


def task(index: int, node: str, d: int, milli: int) -> TaskPlacement:
    return TaskPlacement(
        role=Role.WORKER,
        index=index,
        node=node,
        devices=(d,),
        milli_gpu=milli,
        gpu_mib=8,
        milli_cpu=2,
        mib=1,
    )


def key(ledger: Ledger) -> tuple[object, ...]:
    """The state without names of jobs, counts of events, and gaps between epochs."""
    arrays = tuple(
        getattr(ledger, name).tobytes()
        for name in ("up", "milli_free", "mem_free", "cpu_free", "mib_free", "used", "held", "quota")
    )
    held = tuple(
        (lease.team, tuple((task.node, task.devices, task.milli_gpu) for task in lease.tasks))
        for lease in ledger.leases.values()
    )
    return arrays, held


@dataclass(slots=True)
class Search:
    states: int = 0
    applied: int = 0
    refused: int = 0
    resized: int = 0
    depth: int = 0
    seen: set[tuple[object, ...]] = field(default_factory=set)


def explore(scope: Scope) -> Search:
    """Visit every state; in each: all invariants, both ways to build it again, and that what is wrong is refused."""
    search = Search()
    log = tuple(scope.start())
    todo: deque[tuple[Ledger, tuple[Event, ...]]] = deque([(replay(log), log)])
    search.seen.add(key(todo[0][0]))
    while todo:
        ledger, log = todo.popleft()
        search.states += 1
        search.depth = max(search.depth, len(log) - len(scope.start()))
        before = image(ledger)
        assert violations(ledger) == []
        assert image(replay(log)) == before, "a crash here, and the recorded events again"
        assert differences(ledger, rebuilt(ledger)) == [], "a crash here, and the figures of the store again"
        for event in scope.wrong(ledger):
            assert not attempt(ledger, event), f"{event} applied"
            search.refused += 1
        for event in (*scope.grants(ledger), *scope.others(ledger)):
            after = ledger.copy()
            if not attempt(after, event):
                search.refused += 1
                continue
            search.applied += 1
            search.resized += isinstance(event, LeaseResized)
            if (new := key(after)) not in search.seen:
                search.seen.add(new)
                todo.append((after, (*log, event)))
        assert image(ledger) == before, "what was refused changed something"
    return search


def lawful(scope: Scope) -> int:
    """How many states there are by the rules alone: leases in some order that fit together, times the rest."""

    def sequences(held: tuple[tuple[tuple[tuple[str, int], ...], int], ...]) -> int:
        found = 1
        for _, places, milli in scope.holdings() if len(held) < scope.jobs else ():
            if all(milli + sum(s for w, s in held if place in w) <= 1000 for place in places):
                found += sequences((*held, (places, milli)))
        return found

    return sequences(()) * 2 ** len(scope.nodes) * len(scope.quotas)


def test_every_state_of_a_small_pool_is_sound() -> None:
    """As many as the rules allow: none that they forbid is reached, and none that they allow is not."""
    search = explore(Scope())
    assert search.states == lawful(Scope())
    assert search.states > 6000
    assert search.refused > search.states


def test_every_state_of_gangs_that_grow_and_shrink_is_sound() -> None:
    scope = Scope(jobs=2, gangs=True, quotas=(1000,))
    search = explore(scope)
    assert search.states == lawful(scope)
    assert search.resized > search.states, "from almost every state, several ways"


@pytest.mark.soak
@pytest.mark.parametrize(
    "scope",
    [Scope(jobs=4), Scope(nodes=(2, 2), quotas=(1000,)), Scope(gangs=True), Scope(shares=(300, 700, 1000))],
    ids=["four jobs", "four devices", "gangs", "three shares"],
)
def test_every_state_of_a_larger_pool_is_sound(scope: Scope) -> None:
    search = explore(scope)
    print(search.states, search.applied, search.refused, search.depth)
    assert search.states == lawful(scope)
