"""Asks for one more replica: granted, refused, and withdrawn while they wait or in the moment of the grant (V4)."""

from __future__ import annotations

import threading
from typing import Any

from waiting import until

from moorage.cluster.binding import LeaseView, WorkerView
from moorage.errors import Infeasible, LeaseTimeout, Unavailable
from moorage.runtime.client import Client
from moorage.serve.load import Reading
from moorage.serve.replicas import JobPool, NoPool, Replica

LIKE = WorkerView(node="n", ray_node_id="id", devices=(0,), milli_gpu=500, gpu_mib=4096, milli_cpu=250)
LEASE = LeaseView(lease_id="s-1", epoch=2, head=None, workers=(LIKE,))


class Door(Client):
    """The front door: `grant` lets an ask through, as what `gives` says."""

    def __init__(self) -> None:
        self.grant = threading.Event()
        self.gives: LeaseView | Exception = LEASE
        self.asked: list[dict[str, Any]] = []
        self.released: list[str] = []
        self.withdrawn: list[tuple[str, str]] = []
        self.closed = 0

    def grow(self, **ask: Any) -> LeaseView:
        self.asked.append(ask)
        assert self.grant.wait(10)
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives

    def withdraw(self, job_id: str, name: str) -> bool:
        self.withdrawn.append((job_id, name))
        return True

    def release(self, lease_id: str) -> bool:
        self.released.append(lease_id)
        return True

    def close(self) -> None:
        self.closed += 1


def pool(door: Door) -> JobPool:
    return JobPool("trips", "job-1", LIKE, lambda: door)


def test_an_ask_is_for_one_worker_like_those_there_are() -> None:
    door = Door()
    ask = pool(door).ask("endpoint:trips:1")
    until(lambda: door.asked, 10, "the ask")
    wanted = {
        "gpus": 0.5,
        "gpu_memory_mib": 4096,
        "cpus": 0.25,
        "job_id": "job-1",
        "name": "endpoint:trips:1",
    }
    assert door.asked[0].items() >= wanted.items() and ask.lease is None
    door.grant.set()
    until(lambda: ask.lease == LEASE, 10, "the grant")
    until(lambda: door.closed, 10, "its connection to be closed")


def test_refused_is_told_and_anything_else_does_not_look_as_if_it_waited() -> None:
    for given, told in ((Infeasible("no"), Infeasible), (RuntimeError("broke"), Unavailable)):
        door = Door()
        door.gives = given
        ask = pool(door).ask("a")
        door.grant.set()
        until(lambda one=ask: one.error, 10, "the refusal")
        assert isinstance(ask.error, told)


def test_what_is_granted_to_a_withdrawn_ask_is_given_back() -> None:
    door = Door()
    ask = pool(door).ask("a")
    until(lambda: door.asked, 10, "the ask")
    ask.withdraw()
    assert door.withdrawn == [("job-1", "a")]
    door.grant.set()
    until(lambda: door.released == ["s-1"], 10, "it to be given back")
    assert ask.lease is None


def test_an_ask_that_was_granted_already_is_released_when_it_is_withdrawn() -> None:
    door = Door()
    door.grant.set()
    ask = pool(door).ask("a")
    until(lambda: ask.lease, 10, "the grant")
    ask.withdraw()
    assert door.released == ["s-1"] and not door.withdrawn


def test_an_ask_that_the_pool_did_not_hear_the_end_of_is_withdrawn_again() -> None:
    """Its thread asks as soon as the front door is back, and training would leave for what nobody wants."""
    door = Door()
    answers: list[bool | Exception] = [Unavailable("away"), False, True]

    def withdraw(job_id: str, name: str) -> bool:
        door.withdrawn.append((job_id, name))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    door.withdraw = withdraw  # type: ignore[method-assign]
    door.report_replicas = lambda name, said: {}  # type: ignore[method-assign,assignment]
    asked = pool(door)
    ask = asked.ask("a")
    until(lambda: door.asked, 10, "the ask")
    ask.withdraw()
    for _ in range(4):
        asked.report({})
    assert len(door.withdrawn) == 3, "until the pool has heard it, and then no more"
    door.gives = LeaseTimeout("withdrawn")
    door.grant.set()
    until(lambda: ask.error, 10, "its thread to end")


def test_what_came_too_late_and_could_not_be_given_back_is_given_back_later() -> None:
    door = Door()
    broken = [True, True]

    def release(lease_id: str) -> bool:
        if broken:
            broken.pop()
            raise Unavailable("away")
        door.released.append(lease_id)
        return True

    door.release = release  # type: ignore[method-assign]
    door.withdraw = lambda job_id, name: False  # type: ignore[method-assign]
    door.report_replicas = lambda name, said: {}  # type: ignore[method-assign,assignment]
    asked = pool(door)
    ask = asked.ask("a")
    until(lambda: door.asked, 10, "the ask")
    ask.withdraw()
    door.grant.set()
    until(lambda: ask.error, 10, "the release to fail")
    asked.report({})
    assert door.released == []
    asked.report({})
    asked.report({})
    assert door.released == ["s-1"], "once"


def test_on_bare_ray_there_is_nobody_to_ask() -> None:
    assert NoPool().ask("a").error is not None and NoPool().report({}) == {}


def test_a_replica_tells_the_devices_it_holds_once_it_has_said() -> None:
    one = Replica(app="ops-trips-r1", lease_id="s-1", worker=LIKE, own=True)
    assert one.to_json() == {
        "app": "ops-trips-r1",
        "route": "/ops-trips-r1",
        "lease_id": "s-1",
        "node": "n",
        "devices": [0],
        "state": "STARTING",
    }
    one.reading = Reading(at_s=1, ongoing=0, row_seconds=0, rows=0, latency_ms=None, node="id", devices=(3,))
    assert one.to_json()["devices"] == [3]
