"""S9: what the guard says of one look, case by case, and what it reads out of Ray's records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moorage.cluster.holdings import (
    SUPERVISOR_NAME,
    SUPERVISOR_NAMESPACE,
    RawActor,
    RawDriver,
    RawGroup,
    RawWorker,
    Records,
    app_of,
    assemble,
    unexplained,
)
from moorage.scheduling.guard import (
    Allow,
    Cover,
    Finding,
    GuardPolicy,
    Holder,
    Holding,
    Kind,
    Mode,
    Part,
    Seen,
    Target,
    judge,
)

LEASED = Cover(job="train", team="ops", parts={("a", 0): 1000, ("a", 1): 500})


def part(node: str = "a", device: int = 0, milli: int = 1000) -> Part:
    return Part(node=node, device=device, milli_gpu=milli)


def actor(key: str, /, *parts: Part, **more: Any) -> Holding:
    return Holding(
        **{"holder": Holder.ACTOR, "id": key, "parts": parts or (part(),), "owner": "02000000", **more}
    )


def ours(key: str, /, *parts: Part, **more: Any) -> Holding:
    return actor(key, *parts, submission="train-1", **more)


def said(*holdings: Holding, **more: Any) -> list[tuple[str, Kind]]:
    found = judge(Seen(at_ns=0, holdings=holdings), {"train-1": LEASED}, **more)
    return [(one.target_id, one.kind) for one in found]


def one(held: Holding, **more: Any) -> Finding:
    (found,) = judge(Seen(at_ns=0, holdings=(held,)), {"train-1": LEASED}, **more)
    return found


def test_what_a_lease_covers_is_no_finding() -> None:
    assert said(ours("x"), ours("y", part(device=1, milli=500))) == []
    assert said(ours("x", part(), part(device=1, milli=500))) == [], "one holder on two devices"
    group = ours("g", part(device=-1, milli=1500), holder=Holder.GROUP)
    assert said(group) == [], "a bundle does not say which device"


def test_a_driver_that_nobody_submitted_has_no_lease() -> None:
    found = one(actor("x", name="mine"))
    assert (found.kind, found.target, found.target_id, found.job) == (
        Kind.NO_LEASE,
        Target.ACTOR,
        "x",
        "",
    )
    assert found.text() == "actor x ('mine') holds 1 GPU on a/0 without a lease (Ray job 02000000)"
    tasks = one(actor("02000000", holder=Holder.TASKS))
    assert (tasks.target, tasks.target_id) == (Target.DRIVER, "02000000")
    assert one(actor("g", holder=Holder.GROUP)).target is Target.GROUP


def test_an_attempt_that_is_over_has_no_lease_any_more() -> None:
    assert said(actor("x", submission="train-0")) == [("x", Kind.NO_LEASE)]


def test_what_a_dead_owner_left() -> None:
    left = {"owner_dead": True, "detached": True}
    assert one(actor("x", **left)).kind is Kind.DEAD_OWNER
    assert one(actor("g", holder=Holder.GROUP, **left)).kind is Kind.LEAKED_GROUP
    assert said(ours("x", **left)) == [], "its driver has ended, the attempt has not: the lease is there"


def test_the_newest_is_the_one_too_many() -> None:
    half = part(milli=500)
    held = [
        ours("new", part(device=1, milli=500), since_ms=3),
        ours("old", half, since_ms=1),
        ours("mid", half, since_ms=2),
    ]
    assert said(*held) == []
    held.append(ours("newest", half, since_ms=4))
    assert said(*held) == [("newest", Kind.BEYOND_LEASE)]
    (found,) = judge(Seen(at_ns=0, holdings=tuple(held)), {"train-1": LEASED})
    assert (found.held, found.leased, found.job, found.team) == (2000, 1500, "train", "ops")


def test_tasks_come_last_and_are_stopped_with_their_job() -> None:
    tasks = ours("02000000", part(milli=1000), holder=Holder.TASKS, since_ms=0)
    assert said(tasks, ours("x", since_ms=9)) == [("train", Kind.BEYOND_LEASE)]
    assert one(ours("02000000", part(milli=2000), holder=Holder.TASKS)).target is Target.JOB


def test_a_job_that_leased_no_gpu_is_beyond_it_with_any() -> None:
    bare = Cover(job="train", team="ops", parts={})
    (found,) = judge(Seen(at_ns=0, holdings=(ours("x"),)), {"train-1": bare})
    assert found.kind is Kind.BEYOND_LEASE and found.leased == 0


def test_another_node_takes_what_is_left_of_the_lease_and_no_more() -> None:
    assert said(ours("x", part("b"))) == [("x", Kind.OTHER_NODE)]
    away, home = ours("away", part("b"), since_ms=1), ours("home", since_ms=2)
    assert said(away, home) == [("away", Kind.BEYOND_LEASE)], "who is where the lease is comes first"


def test_another_device_of_the_same_node() -> None:
    assert said(ours("x", part(device=3))) == [("x", Kind.OTHER_DEVICE)]
    assert said(ours("x", part(device=0, milli=600)), ours("y", part(device=0, milli=600))) == [
        ("y", Kind.OTHER_DEVICE)
    ]


def test_serve_belongs_to_the_job_that_deployed_or_published_it() -> None:
    replica = {"holder": Holder.REPLICA, "app": "flights", "detached": True}
    assert said(ours("r", **replica)) == []
    gone = actor("r", submission="old-3", owner_dead=True, **replica)
    assert said(gone, apps={"flights": "train-1"}) == [], "deployed again unchanged, Serve keeps the old job"
    found = one(gone)
    assert (found.kind, found.target, found.target_id) == (Kind.DEAD_OWNER, Target.APP, "flights")
    too_many = [ours("r1", since_ms=1, **replica), ours("r2", since_ms=2, **replica)]
    assert said(*too_many) == [("r2", Kind.BEYOND_LEASE)], "the replica, not the application"
    unknown = actor("r", own=True, **replica)
    assert said(unknown) == [], "nobody knows whose it is"


def test_what_is_allowed_is_not_judged_and_takes_nothing_of_the_lease() -> None:
    assert said(actor("x", namespace="ops-tools"), allow=Allow(namespaces=("ops-*",))) == []
    assert said(actor("x", name="metrics"), allow=Allow(names=("metrics",))) == []
    assert said(actor("x"), allow=Allow(jobs=("02000000",))) == []
    assert said(ours("x"), ours("y"), allow=Allow(jobs=("train",))) == []
    assert said(actor("x"), allow=Allow(names=("*",))) == [("x", Kind.NO_LEASE)], "a pattern needs a name"
    mine = ours("x", part(milli=1500), name="metrics")
    assert said(mine, ours("y"), allow=Allow(names=("metrics",))) == []


def test_modes_and_graces_by_kind() -> None:
    plain = GuardPolicy()
    assert plain.mode_of(Kind.NO_LEASE) is Mode.STOP
    assert plain.mode_of(Kind.OTHER_NODE) is Mode.WARN and plain.mode_of(Kind.OTHER_DEVICE) is Mode.OFF
    warn = GuardPolicy(mode=Mode.WARN, modes={Kind.NO_LEASE: Mode.STOP}, graces_ns={Kind.NO_LEASE: 1})
    assert warn.mode_of(Kind.NO_LEASE) is Mode.STOP and warn.mode_of(Kind.DEAD_OWNER) is Mode.WARN
    assert warn.grace_of(Kind.NO_LEASE) == 1 and warn.grace_of(Kind.DEAD_OWNER) == 30 * 10**9
    off = GuardPolicy(mode=Mode.OFF, modes={Kind.NO_LEASE: Mode.STOP})
    assert {off.mode_of(kind) for kind in Kind} == {Mode.OFF}


# -- from Ray's records

AGENT, USER = "01000000", "02000000"


def raw(name: str, /, job: str = USER, gpus: dict[int, float] | None = None, **more: Any) -> RawActor:
    values = {
        "id": f"id-{name}",
        "job": job,
        "name": name,
        "namespace": "user",
        "node": "n1",
        "pid": 7,
        "detached": False,
        "since_ms": 5,
        "group": "",
        "worker": f"worker-{name}",
        "owner_worker": "",
        "gpus": {0: 1.0} if gpus is None else gpus,
    }
    return RawActor(**{**values, **more})


def read(**more: Any) -> dict[str, Holding]:
    drivers = {
        AGENT: RawDriver(submission="", dead=False),
        USER: RawDriver(submission="train-1", dead=False),
    }
    values = {"nodes": {"n1": "node-1"}, "drivers": drivers, "own_job": AGENT, "deployers": {}}
    seen = assemble(Records(**{**values, **more}), 10**9, True, {})
    return {held.id: held for held in seen.holdings}


def test_actors_of_a_job_carry_its_submission() -> None:
    held = read(actors=[raw("a", gpus={1: 0.25}), raw("idle", gpus={})])
    assert held == {
        "id-a": Holding(
            holder=Holder.ACTOR,
            id="id-a",
            parts=(Part(node="node-1", device=1, milli_gpu=250),),
            owner=USER,
            submission="train-1",
            name="a",
            namespace="user",
            pid=7,
            since_ms=5,
        )
    }


def test_an_entrypoints_own_gpus_are_its_jobs() -> None:
    supervisor = raw(
        "_ray_internal_job_actor_train-1", job="09000000", namespace="SUPERVISOR_ACTOR_RAY_NAMESPACE"
    )
    (held,) = read(actors=[supervisor]).values()
    assert held.submission == "train-1" and not held.owner_dead
    (forged,) = read(actors=[raw("_ray_internal_job_actor_train-1", job="09000000")]).values()
    assert forged.submission == "", "the name alone, in a namespace of one's own"


def test_replicas_and_what_they_make_are_their_deployers() -> None:
    replica = raw("SERVE_REPLICA::app#D#x1", job=AGENT, namespace="serve", detached=True)
    child = raw("", job=AGENT, owner_worker="worker-SERVE_REPLICA::app#D#x1")
    other = raw("", job=AGENT, id="id-else")
    held = read(actors=[replica, child, other], deployers={"app": USER})
    assert held[replica.id].submission == "train-1" and held[replica.id].holder is Holder.REPLICA
    assert held["id-"].app == "app" and held["id-"].submission == "train-1"
    assert held["id-else"].own and not held["id-else"].app
    unsaid = read(actors=[replica], deployers=None)[replica.id]
    assert unsaid.own and unsaid.app == "app", "Serve did not answer: judged by who published it only"
    forged = read(actors=[raw("SERVE_REPLICA::app#D#x1", namespace="serve")], deployers={"app": "09"})
    assert forged[replica.id].holder is Holder.ACTOR, "Serve's replicas are made by the agent's job"


@pytest.mark.parametrize(
    ("name", "namespace", "app"),
    [
        ("SERVE_REPLICA::app#D#x1", "serve", "app"),
        ("SERVE_REPLICA::D#x1", "serve", ""),
        ("SERVE_REPLICA::app#D#x1", "user", ""),
        ("SERVE_CONTROLLER_ACTOR", "serve", ""),
    ],
)
def test_the_application_in_a_replicas_name(name: str, namespace: str, app: str) -> None:
    assert app_of(name, namespace) == app


def test_groups_count_once_and_tasks_as_one_per_job() -> None:
    group = RawGroup(
        id="g",
        job="03000000",
        name="leak",
        namespace="user",
        detached=True,
        since_ms=1,
        bundles=(("n1", 1.0), ("n1", 0.5), ("n1", 0.0)),
    )
    inside = raw("in", gpus={}, group="g")
    workers = {
        "n1": [
            RawWorker(job=USER, actor="", pid=1, gpus={2: 1.0}),
            RawWorker(job=USER, actor="", pid=2, gpus={3: 0.5}),
            RawWorker(job=USER, actor="id-known", pid=3, gpus={0: 1.0}),
            RawWorker(job=USER, actor="id-young", pid=4, gpus={1: 1.0}),
        ]
    }
    held = read(actors=[raw("known"), inside], groups=[group], workers=workers)
    assert {name: one.milli_gpu for name, one in held.items()} == {
        "id-known": 1000,
        "g": 1500,
        "id-young": 1000,
        USER: 1500,
    }
    assert held["g"].owner_dead, "the GCS has forgotten its job"
    assert held[USER].holder is Holder.TASKS and held["id-young"].holder is Holder.ACTOR


def test_an_entrypoint_that_starts_is_its_jobs_already() -> None:
    """Its supervisor is an actor of Ray's dashboard: as such it had no lease until its constructor returned."""
    name = f"{SUPERVISOR_NAME}sub-7"
    young = replace(raw("young", gpus={}, name=name, namespace=SUPERVISOR_NAMESPACE), node="", job="01000000")
    workers = {"n1": [RawWorker(job="01000000", actor="id-young", pid=4, gpus={1: 0.7})]}
    (held,) = read(starting=[young], workers=workers).values()
    assert (held.submission, held.milli_gpu, held.pid) == ("sub-7", 700, 4)
    assert [(part.node, part.device) for part in held.parts] == [("node-1", 1)]


def test_only_ones_are_no_id() -> None:
    """Ray's nil; of ids that are drawn, one of 256 begins with eight of them."""
    from moorage.cluster import rayapi

    assert rayapi._named(b"\xff" * 16) == rayapi._named(b"") == ""
    assert rayapi._named(b"\xff" + b"\x0a" * 3) == "ff0a0a0a"


def test_what_nobody_explains_is_told_by_node() -> None:
    group = RawGroup(
        id="g", job=USER, name="", namespace="", detached=False, since_ms=1, bundles=(("n2", 1.0),)
    )
    rest = unexplained({"n1": 2500, "n2": 1000, "n3": 0}, [raw("a")], [group])
    assert rest == {"n1": 1500}
    workers = {"n1": [RawWorker(job=USER, actor="", pid=1, gpus={2: 1.0})]}
    records = Records(nodes={"n1": "node-1"}, drivers={}, own_job=AGENT, workers=workers)
    assert dict(assemble(records, 0, True, rest).unexplained) == {"node-1": 500}
