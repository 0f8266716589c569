"""S9, G6: the life of a finding in the control plane, over a simulated pool: seen, warned about, stopped, told; over
restarts, by policy, and never for what is leased."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_world import World, world
from sqlalchemy import select

from moorage.configs.pool import PoolSettings, parse_pool
from moorage.errors import InvalidRequest
from moorage.runtime.control import guarding
from moorage.runtime.control.api import GrowAsk
from moorage.runtime.control.guarding import MAX_STOPS, MAX_WARNINGS
from moorage.runtime.control.tables import events, outbox
from moorage.scheduling.guard import Holder, Holding, Kind, Mode, Part, Seen, Target

QUICK = {"confirm_s": 2, "grace_s": 5, "interval_ms": 500}


def settings(**more: Any) -> PoolSettings:
    return PoolSettings.model_validate({"guard": {**QUICK, **more}})


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, settings=settings()) as made:
        yield made


def rogue(key: str = "r1", milli: int = 1000, **more: Any) -> Holding:
    values = {
        "holder": Holder.ACTOR,
        "id": key,
        "parts": (Part(node="node-1", device=3, milli_gpu=milli),),
        "owner": "0a000000",
        "name": "mine",
    }
    return Holding(**{**values, **more})


def found(w: World, team: str = "admin") -> list[tuple[str, str, str]]:
    report = w.service.guard(w.caller(team))
    return [(one["target_id"], one["kind"], one["state"]) for one in report["findings"]]


def told(w: World, job: str = "") -> list[str]:
    with w.service.store.read() as db:
        rows = db.execute(
            select(events).where(events.c.kind.like("guard.%"), events.c.job_id == job).order_by(events.c.seq)
        )
        return [row.kind for row in rows]


def test_a_rogue_is_warned_then_stopped_then_told(w: World) -> None:
    w.backend.intrude(rogue())
    w.run(2)
    assert found(w) == [], "one look is not enough, nor are two within the time to confirm"
    w.run(1)
    assert found(w) == [("r1", "no-lease", "WARNED")] and w.backend.ended == []
    (one,) = w.service.guard(w.caller("admin"))["findings"]
    assert 0 < one["stops_in_ns"] <= 5 * 10**9 and "without a lease" in one["message"]
    w.run(4)
    assert w.backend.ended == [], "its grace is not over"
    w.run(1.5)
    assert w.backend.ended == [("actor", "r1")]
    w.run(1.5)
    assert found(w) == [("r1", "no-lease", "STOPPED")]
    assert told(w) == ["guard.warned", "guard.stopping", "guard.stopped"]
    with w.service.store.read() as db:
        (row,) = db.execute(select(outbox).where(outbox.c.kind == "guard-stop")).all()
    assert row.done_ns is not None
    w.run(10)
    assert w.backend.ended == [("actor", "r1")], "once"


def test_what_ends_by_itself_is_cleared(w: World) -> None:
    w.backend.intrude(rogue())
    w.run(3)
    w.backend.rogues.clear()
    w.run(1.5)
    assert found(w) == [("r1", "no-lease", "CLEARED")]
    assert told(w) == ["guard.warned", "guard.cleared"] and w.backend.ended == []


def test_what_comes_and_goes_is_never_a_finding(w: World) -> None:
    for _ in range(6):
        w.backend.intrude(rogue())
        w.run(1.5)
        w.backend.rogues.clear()
        w.run(0.5)
    assert found(w) == []


def test_leased_work_is_never_found(w: World) -> None:
    """Starts, ends, retries, growth and stops, at every tick of half a minute."""
    w.submit("ops", job="a", gpus=0.5, workers=3, seconds="9")
    w.submit("ops", job="b", gpus=2, seconds="60")
    w.submit("research", job="c", seconds="4", exit="1", max_attempts="3")
    w.run(5)
    w.service.stop(w.caller("ops"), "b")
    w.run(25)
    assert found(w) == [] and told(w) == []


def test_a_restart_forgets_no_deadline_and_warns_nobody_twice(w: World) -> None:
    w.backend.intrude(rogue())
    w.run(3)
    w.restart()
    w.run(3)
    assert told(w) == ["guard.warned"] and w.backend.ended == []
    w.restart()
    w.run(3)
    assert w.backend.ended == [("actor", "r1")]
    w.restart()
    w.run(3)
    assert told(w) == ["guard.warned", "guard.stopping", "guard.stopped"]
    assert w.backend.ended == [("actor", "r1")]


def test_a_stop_that_did_not_work_is_repeated_and_told_once(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    w.backend.intrude(rogue())
    asked: list[str] = []

    def deaf(target: Target, key: str, owner: str) -> None:
        asked.append(key)

    with monkeypatch.context() as patched:
        patched.setattr(w.backend, "end", deaf)
        w.run(20)
        assert 2 <= len(asked) <= 4, "every few seconds, not every tick"
        assert found(w) == [("r1", "no-lease", "STOPPING")]
    w.run(8)
    assert found(w) == [("r1", "no-lease", "STOPPED")]
    assert told(w) == ["guard.warned", "guard.stopping", "guard.stopped"]


def test_a_cluster_that_cannot_end_things_does_not_stop_the_pool(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moorage.cluster.backend import BackendUnavailable

    def broken(*_: object) -> None:
        raise BackendUnavailable("no")

    monkeypatch.setattr(w.backend, "end", broken)
    w.backend.intrude(rogue())
    w.run(9)
    w.submit("ops", job="a", seconds="1")
    w.run(3)
    assert w.states("a") == ["SUCCEEDED"] and not w.service.loop.unreachable
    monkeypatch.setattr(w.backend, "holdings", broken)
    w.run(1)
    report = w.service.guard(w.caller("admin"))
    assert report["message"] and w.service.metrics()["moorage_guard_sees"] == {(): 0.0}
    assert report["findings"][0]["state"] == "STOPPING", "blind, it takes nothing for gone"


def test_one_actor_too_many_is_told_to_its_job_and_only_that_one_is_stopped(w: World) -> None:
    w.submit("ops", job="a", gpus=1, seconds="60")
    w.run(1)
    w.backend.intrude(rogue("extra", submission="a-1", owner="ray-a-1", since_ms=10**15))
    w.run(3)
    (one,) = w.service.guard(w.caller("ops"))["findings"]
    assert (one["kind"], one["job"], one["team"], one["target_id"]) == ("beyond-lease", "a", "ops", "extra")
    assert one["detail"]["held_milli_gpu"] == 2000 and one["detail"]["leased_milli_gpu"] == 1000
    assert w.service.guard(w.caller("research"))["findings"] == [], "another team's"
    assert told(w, "a") == ["guard.warned"]
    w.run(8)
    assert w.backend.ended == [("actor", "extra")] and w.states("a") == ["RUNNING"]
    assert told(w, "a") == ["guard.warned", "guard.stopping", "guard.stopped"]


def test_a_lease_that_grows_in_time_clears_it(w: World) -> None:
    w.submit("ops", job="a", gpus=1, seconds="60")
    w.run(1)
    (task,) = w.service.core.book.ledger.held_by("a")[0].tasks
    w.backend.intrude(
        rogue("extra", submission="a-1", parts=(Part(node=task.node, device=-1, milli_gpu=1000),))
    )
    w.run(3)
    assert found(w) == [("extra", "beyond-lease", "WARNED")]
    import threading

    more = GrowAsk(job_id="a", milli_gpu=1000, timeout_s=20)
    growing = threading.Thread(target=w.service.grow, args=(w.caller("ops"), more))
    growing.start()
    while growing.is_alive():
        w.service.loop.tick()
        growing.join(0.01)
    w.run(2)
    assert found(w)[0][2] == "CLEARED" and w.backend.ended == []


def test_tasks_beyond_the_lease_stop_their_job(w: World) -> None:
    w.submit("ops", job="a", gpus=1, seconds="60")
    w.run(1)
    w.backend.intrude(rogue("ray-a-1", holder=Holder.TASKS, submission="a-1", owner="ray-a-1"))
    w.run(8.5)
    assert w.states("a") == ["FAILED"] and "guard" in w.job("a").message
    w.run(2)
    assert w.backend.ended == [], "the job was stopped, nothing else"
    assert told(w, "a") == ["guard.warned", "guard.stopping", "guard.stopped"]


def test_what_is_only_warned_about_becomes_worse_and_is_told_again(w: World) -> None:
    """A warning that nothing will be stopped is no warning of a stop."""
    w.submit("ops", job="a", gpus=1, seconds="90")
    w.run(1)
    w.backend.jobs["a-1"].devices.clear()  # its leased device stands idle
    (task,) = w.service.core.book.ledger.held_by("a")[0].tasks
    away = "node-0" if task.node == "node-1" else "node-1"
    elsewhere = (Part(node=away, device=2, milli_gpu=1000),)
    w.backend.intrude(rogue("away", submission="a-1", parts=elsewhere))
    w.run(20)
    assert found(w) == [("away", "other-node", "WARNED")] and w.backend.ended == []
    home = (Part(node=task.node, device=task.devices[0], milli_gpu=1000),)
    w.backend.intrude(rogue("home", submission="a-1", parts=home))
    w.run(1)
    assert found(w)[0] == ("away", "beyond-lease", "WARNED") and w.backend.ended == []
    w.run(6)
    assert w.backend.ended == [("actor", "away")]


def test_the_same_owner_is_given_one_grace(w: World) -> None:
    w.backend.intrude(rogue("r1"))
    w.run(10)
    w.backend.intrude(rogue("r2"))
    w.backend.intrude(rogue("other", owner="0b000000"))
    w.run(3.5)
    assert w.backend.ended == [("actor", "r1"), ("actor", "r2")]
    w.run(6)
    assert w.backend.ended[2:] == [("actor", "other")]


def test_what_the_dead_leave_is_freed(w: World) -> None:
    w.backend.intrude(rogue("g", holder=Holder.GROUP, owner_dead=True, detached=True))
    w.backend.intrude(rogue("d", owner="0c000000", owner_dead=True, detached=True))
    replica = {"holder": Holder.REPLICA, "app": "left", "owner": "0d000000", "owner_dead": True}
    w.backend.intrude(rogue("s1", **replica))
    w.backend.intrude(rogue("s2", **replica))
    w.run(10)
    assert sorted(w.backend.ended) == [("actor", "d"), ("placement-group", "g"), ("serve-app", "left")]
    kinds = {(target, kind) for target, kind, _ in found(w)}
    assert kinds == {("g", "leaked-placement-group"), ("d", "dead-owner"), ("left", "dead-owner")}
    assert {state for _, _, state in found(w)} == {"STOPPED"}


def test_an_endpoints_replica_is_its_jobs_whoever_started_serve(w: World) -> None:
    w.submit("ops", job="e", gpus=1, seconds="60")
    w.run(1)
    (task,) = w.service.core.book.ledger.held_by("e")[0].tasks
    w.backend.jobs["e-1"].devices.clear()
    w.service.publish_endpoint(w.caller("ops"), "flights", "app", "/flights", "e")
    parts = (Part(node=task.node, device=task.devices[0], milli_gpu=1000),)
    w.backend.intrude(
        rogue("r", holder=Holder.REPLICA, app="app", own=True, owner="01000000", parts=parts, detached=True)
    )
    w.run(20)
    assert found(w) == []


def test_warn_never_stops_and_off_never_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world(tmp_path, settings=settings(mode="warn")) as w:
        w.backend.intrude(rogue())
        w.run(20)
        assert found(w) == [("r1", "no-lease", "WARNED")] and w.backend.ended == []
        assert w.service.guard(w.caller("admin"))["findings"][0]["stops_in_ns"] is None
        w.options["settings"] = settings(mode="off")
        w.restart()
        monkeypatch.setattr(w.backend, "holdings", lambda devices: pytest.fail("it looked"))
        w.run(5)
        assert found(w) == [("r1", "no-lease", "CLEARED")] and w.backend.ended == []


def test_a_look_that_does_not_see_all_takes_nothing_for_gone(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes are asked in turns then: what is on one of them is seen in every other look only."""
    w.backend.intrude(rogue())
    whole, turn = w.backend.holdings, [0]

    def in_turns(devices: bool) -> Seen:
        turn[0] += 1
        seen = whole()
        return replace(seen, complete=False, holdings=seen.holdings if turn[0] % 2 else ())

    monkeypatch.setattr(w.backend, "holdings", in_turns)
    w.run(4)
    assert told(w) == ["guard.warned"]
    w.run(8)
    assert w.backend.ended == [("actor", "r1")]
    w.run(8)
    assert found(w) == [("r1", "no-lease", "STOPPING")], "nobody has seen that it is gone"
    monkeypatch.undo()
    w.run(2)
    assert found(w) == [("r1", "no-lease", "STOPPED")]


def test_a_crowd_is_dealt_with_in_turns(w: World) -> None:
    for n in range(130):
        w.backend.intrude(rogue(f"r{n:03}", owner=f"{n:08x}"))
    w.run(3)
    assert len(told(w)) in (MAX_WARNINGS, 130)
    w.run(1)
    assert told(w) == ["guard.warned"] * 130
    before, most = 0, 0
    for _ in range(30):
        w.run(0.5)
        most = max(most, len(w.backend.ended) - before)
        before = len(w.backend.ended)
    assert most == MAX_STOPS and len(w.backend.ended) == 130


def test_a_slow_look_is_not_repeated_at_once(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    times, looks = iter(range(0, 10**6, 3)), list[int]()  # each look takes 3 s
    monkeypatch.setattr(guarding, "monotonic", lambda: next(times))
    whole = w.backend.holdings
    monkeypatch.setattr(w.backend, "holdings", lambda devices: looks.append(1) or whole())
    w.run(29)
    assert len(looks) == 1
    w.run(31)
    assert len(looks) == 2


def test_while_somebody_waits_for_workers_a_slow_look_is_repeated(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the cluster shows is how a lease shrinks when its job does not say so: within a grace."""
    times, looks = iter(range(0, 10**6, 3)), list[int]()
    monkeypatch.setattr(guarding, "monotonic", lambda: next(times))
    whole, guard = w.backend.holdings, w.service.loop.guard
    monkeypatch.setattr(w.backend, "holdings", lambda devices: looks.append(1) or whole())
    w.run(0.5)
    monkeypatch.setattr(w.service.core.book, "shrinking", {"asked": object()})
    guard.look()
    assert len(looks) == 1, "not before the interval"
    w.clock.tick(guard.policy.interval_ns / 1e9)
    guard.look()
    assert len(looks) == 2


def test_counts_for_prometheus(w: World) -> None:
    w.backend.intrude(rogue())
    w.run(3)
    samples = w.service.metrics()
    mine = (("kind", "no-lease"),)
    assert samples["moorage_guard_findings"][mine] == 1 and samples["moorage_guard_warned_total"][mine] == 1
    assert set(samples["moorage_guard_findings"]) == {(("kind", str(kind)),) for kind in Kind}
    w.run(8)
    samples = w.service.metrics()
    assert samples["moorage_guard_findings"][mine] == 0 and samples["moorage_guard_stopped_total"][mine] == 1


def test_the_settings() -> None:
    kinds = "{other-node: stop, no-lease: {grace_s: 0}}"
    text = f"guard: {{mode: stop, grace_s: 60, kinds: {kinds}, allow: {{names: ['mon-*']}}}}"
    policy = parse_pool(text).guard.policy(joined=True)
    assert policy.mode is Mode.STOP and policy.mode_of(Kind.OTHER_NODE) is Mode.STOP
    assert policy.grace_of(Kind.NO_LEASE) == 0 and policy.grace_of(Kind.DEAD_OWNER) == 60 * 10**9
    assert policy.allow.names == ("mon-*",)
    assert parse_pool("guard: off").guard.policy().mode is Mode.OFF, "YAML's off is false"
    assert parse_pool("guard: warn").guard.policy().mode is Mode.WARN
    assert parse_pool("").guard.policy().mode is Mode.STOP
    assert parse_pool("").guard.policy(joined=True).mode is Mode.WARN, "others' work may run there"
    for wrong in (
        "guard: {mod: stop}",
        "guard: yes",
        "guard: {kinds: {no-leas: stop}}",
        "guard: {grace_s: -1}",
    ):
        with pytest.raises(InvalidRequest, match="guard"):
            parse_pool(wrong)


def test_one_answer_of_a_node_that_is_shown_again_is_one_look(w: World) -> None:
    """A job's process ends with its job; the node's answer from before that stands for a while."""
    seen = rogue("node-1/7/1", 0, holder=Holder.PROCESS, owner_dead=True, since_ms=1)
    w.backend.intrude(seen)
    w.run(8)
    assert found(w) == [], "it was seen once, however often it was shown"
    w.backend.intrude(replace(seen, since_ms=2))
    w.run(2)
    assert found(w) == [("node-1/7/1", "orphan-process", "WARNED")]
