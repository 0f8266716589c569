"""Replicas follow the load, on leases: asked for, started, drained, given back (V4).

Serve and the pool are stand-ins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.cluster.binding import LeaseView, WorkerView
from moorage.errors import Infeasible, LeaseTimeout, Unavailable
from moorage.serve import autoscale
from moorage.serve.autoscale import AGAIN_S, BACK_OFF_S, DRAIN_S, FORGOTTEN_S, REPLACE_S, Autoscaler
from moorage.serve.load import Reading
from moorage.serve.replicas import Ask, Replica
from moorage.serve.scaling import ScalePolicy

POLICY = ScalePolicy(max_replicas=4, target_ongoing=10, upscale_delay_s=0, downscale_delay_s=0)


def worker(device: int) -> WorkerView:
    return WorkerView(
        node=f"node-{device // 4}",
        ray_node_id=f"id-{device // 4}",
        devices=(device,),
        milli_gpu=1000,
        gpu_mib=0,
        milli_cpu=0,
    )


@dataclass
class Serving:
    """Serve: `apps` by status, `busy` by the rows in flight of each."""

    clock: list[float]
    apps: dict[str, str] = field(default_factory=dict)
    where: dict[str, WorkerView] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    row_seconds: dict[str, float] = field(default_factory=dict)
    quiet: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    refuses: bool = False

    def start(self, app: str, worker: WorkerView) -> None:
        if self.refuses:
            raise Unavailable("Serve is away")
        self.apps[app], self.where[app] = "DEPLOYING", worker

    def states(self) -> Mapping[str, str]:
        return dict(self.apps)

    def answers(self, app: str) -> bool:
        return app not in self.quiet

    def reading(self, app: str) -> Reading | None:
        if app in self.deaf or app not in self.apps:
            return None
        ongoing, place = self.busy.get(app, 0), self.where[app]
        return Reading(
            at_s=self.clock[0],
            ongoing=ongoing,
            row_seconds=self.row_seconds.get(app, 0),
            rows=0,
            latency_ms=None,
            node=place.ray_node_id,
            devices=place.devices,
        )

    def remove(self, app: str) -> None:
        self.apps[app] = "DELETING"

    def all_run(self) -> None:
        self.apps = {app: "RUNNING" if state == "DEPLOYING" else state for app, state in self.apps.items()}


@dataclass
class Giving:
    """The pool: what was asked, what was given back, what was said last."""

    asks: dict[str, Ask] = field(default_factory=dict)
    withdrawn: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)
    under_way: dict[str, int] = field(default_factory=dict)
    away: bool = False

    def ask(self, name: str) -> Ask:
        self.asks[name] = Ask(name, lambda one: self.withdrawn.append(one.name))
        return self.asks[name]

    def waiting(self) -> list[Ask]:
        return [
            one
            for one in self.asks.values()
            if one.lease is None and one.error is None and one.name not in self.withdrawn
        ]

    def grant(self, device: int) -> None:
        one = self.waiting()[0]
        one.lease = LeaseView(lease_id=f"s-{device}", epoch=device, head=None, workers=(worker(device),))

    def release(self, lease_id: str) -> None:
        if self.away:
            raise Unavailable("the front door is away")
        self.released.append(lease_id)

    def report(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.away:
            raise Unavailable("the front door is away")
        self.said = dict(said)
        return {"under_way": self.under_way}


@dataclass
class Scene:
    policy: ScalePolicy = POLICY
    clock: list[float] = field(default_factory=lambda: [0.0])
    serve: Serving = field(init=False)
    pool: Giving = field(default_factory=Giving)
    scaler: Autoscaler = field(init=False)

    def __post_init__(self) -> None:
        self.serve = Serving(self.clock)
        self.scaler = Autoscaler(
            "trips",
            "ops-trips",
            self.policy,
            [("l-1", worker(0))],
            self.serve,
            self.pool,
            lambda: self.clock[0],
        )
        self.go(0)
        self.go()

    def go(self, seconds: float = 1.0, *, runs: bool = True) -> None:
        if runs:
            self.serve.all_run()
        for app in self.serve.apps:
            before = self.serve.row_seconds.get(app, 0)
            self.serve.row_seconds[app] = before + seconds * self.serve.busy.get(app, 0)
        self.clock[0] += seconds
        self.scaler.step()
        told = [
            (one["app"], one["state"], one["lease_id"], one["devices"]) for one in self.pool.said["replicas"]
        ]
        assert len({app for app, *_ in told}) == len(told)

    def states(self) -> dict[str, str]:
        return {one["app"]: one["state"] for one in self.pool.said["replicas"]}

    def load(self, **rows: int) -> None:
        self.serve.busy = {name.replace("_", "-"): count for name, count in rows.items()}

    def grown(self, devices: int) -> None:
        """`devices` replicas beside the first one, all serving."""
        self.load(ops_trips=10 * (devices + 1))
        self.go()
        for device in range(1, devices + 1):
            self.pool.grant(device)
        self.go()
        self.go()
        assert self.states() == {
            "ops-trips": "SERVING",
            **{f"ops-trips-r{n}": "SERVING" for n in range(1, devices + 1)},
        }


def test_a_replica_starts_only_when_its_lease_was_granted_and_where_it_says() -> None:
    scene = Scene()
    scene.load(ops_trips=35)
    scene.go()
    assert scene.pool.said["wanted"] == 4 and len(scene.pool.waiting()) == 3
    scene.go(60)
    assert set(scene.serve.apps) == {"ops-trips"}, "while it waits the endpoint goes on as it is"
    assert len(scene.pool.asks) == 3, "what waits is not asked for again"
    scene.pool.grant(6)
    scene.go(runs=False)
    assert scene.serve.where["ops-trips-r1"] == worker(6)
    assert scene.states() == {"ops-trips": "SERVING", "ops-trips-r1": "STARTING"}
    scene.serve.quiet.add("ops-trips-r1")
    scene.go()
    assert scene.states()["ops-trips-r1"] == "STARTING", "running, and its route is not there yet"
    scene.serve.quiet.clear()
    scene.go()
    assert scene.states()["ops-trips-r1"] == "SERVING" and len(scene.pool.waiting()) == 2
    assert scene.pool.said["replicas"][1]["lease_id"] == "s-6"


def test_who_goes_is_left_out_first_then_answers_what_it_has_then_ends_then_gives_back() -> None:
    scene = Scene()
    scene.grown(2)
    scene.load(ops_trips=1, ops_trips_r2=3)
    scene.go()
    assert scene.states() == {"ops-trips": "SERVING", "ops-trips-r1": "DRAINING", "ops-trips-r2": "DRAINING"}
    scene.go(FORGOTTEN_S - 0.5)
    assert "DELETING" not in scene.serve.apps.values(), "the front door may still send to them"
    scene.go(1)
    assert scene.serve.apps == {"ops-trips": "RUNNING", "ops-trips-r1": "DELETING", "ops-trips-r2": "RUNNING"}
    scene.go(5)
    assert not scene.pool.released, "Serve has not let it go"
    del scene.serve.apps["ops-trips-r1"]
    scene.go()
    assert scene.pool.released == ["s-1"] and set(scene.states()) == {"ops-trips", "ops-trips-r2"}
    scene.load(ops_trips=1)
    scene.go()
    assert scene.serve.apps["ops-trips-r2"] == "DELETING", "it has answered what it had"
    del scene.serve.apps["ops-trips-r2"]
    scene.go()
    assert scene.pool.released == ["s-1", "s-2"] and set(scene.states()) == {"ops-trips"}
    scene.go(100)
    assert scene.pool.released == ["s-1", "s-2"]


def test_who_never_ends_what_it_has_goes_after_a_while() -> None:
    scene = Scene()
    scene.grown(1)
    scene.load(ops_trips_r1=1)
    scene.go()
    scene.go(DRAIN_S)
    assert scene.serve.apps["ops-trips-r1"] == "RUNNING"
    scene.go(1)
    assert scene.serve.apps["ops-trips-r1"] == "DELETING"


def test_who_the_front_door_still_waits_for_stays() -> None:
    """The replica has nothing in flight: the request is on its way, or waits in Serve."""
    scene = Scene()
    scene.grown(1)
    scene.load(ops_trips=1)
    scene.pool.under_way = {"/ops-trips-r1": 1}
    scene.go()
    scene.go(FORGOTTEN_S + 5)
    assert scene.serve.apps["ops-trips-r1"] == "RUNNING"
    scene.pool.under_way = {"/ops-trips": 1}
    scene.go()
    scene.go()
    assert scene.serve.apps["ops-trips-r1"] == "DELETING"


def test_load_that_comes_back_in_time_keeps_who_was_to_go() -> None:
    scene = Scene()
    scene.grown(1)
    scene.load(ops_trips=1)
    scene.go()
    assert scene.states()["ops-trips-r1"] == "DRAINING"
    scene.load(ops_trips=20)
    scene.go()
    assert scene.states()["ops-trips-r1"] == "SERVING" and not scene.pool.waiting()
    scene.go(FORGOTTEN_S + 1)
    assert scene.serve.apps["ops-trips-r1"] == "RUNNING"


def test_what_is_not_wanted_any_more_is_withdrawn_before_anybody_goes() -> None:
    scene = Scene()
    scene.grown(1)
    scene.load(ops_trips=40)
    scene.go()
    assert [one.name for one in scene.pool.waiting()] == ["endpoint:trips:2", "endpoint:trips:3"]
    scene.load(ops_trips=30)
    scene.go()
    assert scene.pool.withdrawn == ["endpoint:trips:3"] and set(scene.states().values()) == {"SERVING"}
    scene.load()
    scene.go()
    assert scene.pool.withdrawn == ["endpoint:trips:3", "endpoint:trips:2"]
    assert scene.states()["ops-trips-r1"] == "DRAINING"


def test_who_never_served_goes_before_who_serves() -> None:
    scene = Scene()
    scene.grown(1)
    scene.load(ops_trips=30)
    scene.go()
    scene.pool.grant(2)
    scene.go(runs=False)
    scene.load(ops_trips=20)
    scene.go(runs=False)
    assert scene.states() == {"ops-trips": "SERVING", "ops-trips-r1": "SERVING", "ops-trips-r2": "DRAINING"}
    scene.load(ops_trips=30)
    scene.go(runs=False)
    assert scene.states()["ops-trips-r2"] == "STARTING", "wanted again, and it does not serve for that"


def test_a_refusal_is_told_and_not_repeated_at_once() -> None:
    scene = Scene()
    scene.load(ops_trips=20)
    scene.go()
    scene.pool.waiting()[0].error = Infeasible("more than the limit of team ops")
    scene.go()
    scene.go()
    assert "limit of team ops" in scene.pool.said["note"] and len(scene.pool.asks) == 1
    scene.go(BACK_OFF_S)
    assert len(scene.pool.asks) == 2
    scene.pool.waiting()[0].error = LeaseTimeout("an hour is over")
    scene.go()
    assert len(scene.pool.waiting()) == 1, "asked again at once: it only waited long"
    scene.pool.grant(1)
    scene.go()
    assert scene.pool.said["note"] == ""


def test_a_replica_that_is_lost_is_replaced_on_a_lease_of_its_own() -> None:
    """Its node may be gone for good; one on the job's own lease has no other place."""
    scene = Scene()
    scene.grown(1)
    scene.serve.apps["ops-trips-r1"] = "UNHEALTHY"
    scene.serve.apps["ops-trips"] = "UNHEALTHY"
    scene.go()
    assert set(scene.states().values()) == {"UNHEALTHY"}
    scene.go(REPLACE_S + 1)
    assert scene.serve.apps == {"ops-trips": "UNHEALTHY", "ops-trips-r1": "DELETING"}
    del scene.serve.apps["ops-trips-r1"]
    scene.serve.apps["ops-trips"] = "RUNNING"
    scene.go()
    scene.load(ops_trips=20)
    scene.go()
    assert not scene.pool.waiting(), "not at once: what broke it may break the next"
    assert scene.pool.released == ["s-1"] and scene.states() == {"ops-trips": "SERVING"}
    scene.go(BACK_OFF_S)
    assert len(scene.pool.waiting()) == 1


def test_while_the_front_door_is_away_nobody_is_ended_and_nothing_is_forgotten() -> None:
    """The control plane was killed: requests may still be sent to who is to go."""
    scene = Scene()
    scene.grown(1)
    scene.load(ops_trips=1)
    scene.pool.away = True
    for _ in range(5):
        scene.clock[0] += FORGOTTEN_S
        with pytest.raises(Unavailable):
            scene.scaler.step()
    assert scene.serve.apps["ops-trips-r1"] == "RUNNING"
    scene.pool.away = False
    scene.go()
    scene.go(FORGOTTEN_S + 1)
    del scene.serve.apps["ops-trips-r1"]
    scene.pool.away = True
    scene.clock[0] += 1
    with pytest.raises(Unavailable):
        scene.scaler.step()
    scene.pool.away = False
    scene.go()
    assert scene.pool.released == ["s-1"]


def test_an_application_that_serve_does_not_have_is_given_again() -> None:
    scene = Scene()
    scene.load(ops_trips=20)
    scene.go()
    scene.pool.grant(1)
    scene.serve.refuses = True
    scene.clock[0] += 1
    with pytest.raises(Unavailable):
        scene.scaler.step()
    scene.serve.refuses = False
    scene.go(1)
    assert "ops-trips-r1" not in scene.serve.apps
    scene.go(AGAIN_S)
    scene.go()
    assert scene.states()["ops-trips-r1"] == "SERVING" and not scene.pool.waiting()


def test_an_application_that_somebody_deleted_is_given_again() -> None:
    scene = Scene()
    del scene.serve.apps["ops-trips"]
    scene.go()
    assert scene.states() == {"ops-trips": "UNHEALTHY"}
    scene.go(AGAIN_S + 1, runs=False)
    assert scene.states() == {"ops-trips": "STARTING"} and scene.serve.apps == {"ops-trips": "DEPLOYING"}
    scene.go()
    assert scene.states() == {"ops-trips": "SERVING"}


def test_a_silent_replica_counts_as_it_last_was_and_is_not_drained_on_old_news() -> None:
    scene = Scene()
    scene.grown(1)
    scene.load(ops_trips=1)
    scene.serve.deaf.add("ops-trips-r1")
    scene.go()
    assert scene.states()["ops-trips-r1"] == "DRAINING"
    scene.go(FORGOTTEN_S + 5)
    assert scene.serve.apps["ops-trips-r1"] == "RUNNING", (
        "idle as of before it was left out: it may have more now"
    )
    scene.go(DRAIN_S)
    assert scene.serve.apps["ops-trips-r1"] == "DELETING"


def test_devices_are_compared_with_what_the_raylets_say() -> None:
    scene = Scene()
    scene.grown(2)
    assert scene.scaler.devices_differ() == ""
    swapped = scene.serve.where
    swapped["ops-trips-r1"], swapped["ops-trips-r2"] = swapped["ops-trips-r2"], swapped["ops-trips-r1"]
    scene.go()
    assert scene.scaler.devices_differ() == "", "equal shares of one node are interchangeable"
    swapped["ops-trips-r1"] = worker(3)
    scene.go()
    assert "('id-0', (3,))" in scene.scaler.devices_differ()
    assert scene.pool.said["replicas"][1]["devices"] == [3], "told is what is held"


def test_devices_are_not_compared_while_a_replica_comes_or_goes() -> None:
    """Two that start at once may hold each other's: the one that tells first is no reason for a warning."""
    scene = Scene()
    scene.grown(1)
    scene.serve.where["ops-trips-r1"] = worker(2)
    scene.load(ops_trips=20, ops_trips_r1=10)
    scene.go()
    scene.pool.grant(2)
    scene.go()
    assert scene.states()["ops-trips-r2"] == "STARTING"
    assert scene.scaler.devices_differ() == ""
    scene.serve.where["ops-trips-r2"] = worker(1)
    scene.serve.all_run()
    scene.go()
    scene.go()
    assert scene.states()["ops-trips-r2"] == "SERVING"
    assert scene.scaler.devices_differ() == ""
    scene.serve.where["ops-trips-r2"] = worker(3)
    scene.load(ops_trips=1)
    scene.go()
    assert scene.scaler.devices_differ()
    scene.go(FORGOTTEN_S + 1)
    assert scene.serve.apps["ops-trips-r2"] == "DELETING"
    assert scene.scaler.devices_differ() == "", "it is about to end"


def test_a_replica_that_holds_what_its_lease_names_gives_that_back() -> None:
    """Halves: one of another lease holds a part of the same device."""
    scene = Scene()
    scene.grown(2)
    scene.serve.where["ops-trips"] = worker(2)
    scene.serve.where["ops-trips-r2"] = worker(1)
    scene.go()
    for app in ("ops-trips-r2", "ops-trips-r1"):
        one = next(one for one in scene.scaler.replicas if one.app == app)
        one.enter("DRAINING", scene.clock[0])
    first = next(one for one in scene.scaler.replicas if one.app == "ops-trips-r1")
    scene.scaler._exchange(first)
    assert first.lease_id == "s-1"


def test_a_difference_of_devices_is_warned_of_once_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.grown(1)
    scene.serve.where["ops-trips-r1"] = worker(3)
    scene.go()
    scene.scaler._tell_difference()
    scene.go(autoscale.DIFFERS_S - 1)
    scene.scaler._tell_difference()
    assert not caplog.messages
    scene.go(2)
    scene.scaler._tell_difference()
    scene.scaler._tell_difference()
    assert [one for one in caplog.messages if "('id-0', (3,))" in one] == caplog.messages
    scene.serve.where["ops-trips-r1"] = worker(1)
    scene.go()
    scene.scaler._tell_difference()
    assert len(caplog.messages) == 2 and caplog.messages[1].endswith("of their leases again")


def test_the_lease_of_a_replica_that_never_told_is_exchanged_too() -> None:
    """It was given up before it said what it holds; the other of its node says that it has its device."""
    scene = Scene()
    scene.grown(1)
    scene.serve.where["ops-trips-r1"] = worker(2)
    scene.load(ops_trips=20, ops_trips_r1=10)
    scene.go()
    scene.pool.grant(2)
    scene.serve.deaf.add("ops-trips-r2")
    scene.go()
    scene.serve.apps["ops-trips-r2"] = "DEPLOY_FAILED"
    scene.go()
    scene.go(FORGOTTEN_S + 1)
    assert scene.serve.apps.pop("ops-trips-r2") == "DELETING"
    scene.go()
    assert scene.pool.released == ["s-1"]
    assert scene.scaler.devices_differ() == ""


@pytest.mark.parametrize("turned", [(2, 1, 3), (3, 1, 2), (2, 3, 1)])
def test_the_lease_that_names_what_became_free_is_given_back(turned: tuple[int, ...]) -> None:
    """Three replicas hold each other's devices; each stays on the lease of what it holds as the others go."""
    scene = Scene()
    scene.grown(3)
    for n, device in enumerate(turned, 1):
        scene.serve.where[f"ops-trips-r{n}"] = worker(device)
    scene.go()
    scene.load(ops_trips=1)
    scene.go()
    scene.go(FORGOTTEN_S + 1)
    assert scene.scaler.devices_differ() == ""
    for n, device in enumerate(turned, 1):
        assert scene.serve.apps.pop(f"ops-trips-r{n}") == "DELETING"
        scene.go()
        assert scene.pool.released[-1] == f"s-{device}"
        stay = {one.app: one for one in scene.scaler.replicas}
        assert {app: one.worker.devices for app, one in stay.items()} == {
            app: scene.serve.where[app].devices for app in stay
        }
    assert len(scene.pool.released) == 3


def test_stopping_withdraws_what_waits() -> None:
    scene = Scene()
    scene.load(ops_trips=20)
    scene.go()
    scene.scaler.stop()
    assert scene.pool.withdrawn == ["endpoint:trips:1"]


def test_a_front_door_that_is_away_while_the_first_replicas_start_ends_no_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MOORAGE_LEASE", raising=False)
    monkeypatch.setattr(autoscale, "ServeHosts", lambda *_: None)
    rounds: list[int] = []

    def step(self: Autoscaler) -> None:
        rounds.append(1)
        if len(rounds) == 1:
            raise Unavailable("away")
        self.replicas = [Replica(app="a", lease_id="", worker=worker(0), own=False, state="SERVING")]

    monkeypatch.setattr(Autoscaler, "step", step)
    made = autoscale.autoscaled(None, "ops", SimpleNamespace(endpoint="trips"), ScalePolicy(max_replicas=1))
    made.stop()
    assert made.serving == 1
