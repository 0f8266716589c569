"""S9: what Ray's libraries are told when a lease has another size: trials are parked, actors drained, runs resized."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from moorage.cluster import following, raydata
from moorage.cluster.binding import LeaseView, WorkerView
from moorage.cluster.following import Asked, Now

WORKERS = tuple(
    WorkerView(
        node=f"n{d // 2}", ray_node_id=f"r{d // 2}", devices=(d,), milli_gpu=1000, gpu_mib=0, milli_cpu=1000
    )
    for d in range(4)
)


@dataclass
class Pool:
    """As much of Ray Data's actor pool as is used."""

    tasks: dict[str, int]
    """Running actor -> tasks in flight."""
    pending: int = 0
    gpus: float = 1.0
    released: list[str] = field(default_factory=list)
    map_worker_cls_name: str = "Model"

    def __post_init__(self) -> None:
        self._running_actors = {
            name: SimpleNamespace(num_tasks_in_flight=n) for name, n in self.tasks.items()
        }
        self.barred: set[str] = set()

    def per_actor_resource_usage(self) -> Any:
        return SimpleNamespace(gpu=self.gpus)

    def current_size(self) -> int:
        return len(self._running_actors) + self.pending

    def _try_remove_pending_actor(self) -> bool:
        self.pending, had = max(0, self.pending - 1), self.pending > 0
        return had

    def _release_running_actor(self, actor: str) -> None:
        assert not self._running_actors[actor].num_tasks_in_flight, "its tasks would be lost"
        del self._running_actors[actor]
        self.released.append(actor)

    def _update_rank(self, actor: str, state: Any, died: bool) -> None:
        self.barred.add(actor)

    def finish(self) -> None:
        for state in self._running_actors.values():
            state.num_tasks_in_flight = 0


def test_busy_actors_are_let_go_when_they_are_done_and_not_before() -> None:
    pool = Pool({"a": 4, "b": 2, "c": 3})
    raydata.fit([pool], 1)
    assert pool.released == [] and pool.barred == {"b", "c"}, (
        "those with the least to do, and no new task for them"
    )
    raydata.fit([pool], 1)
    assert pool.released == [] and len(raydata._drained(pool)) == 2, "told once"
    pool.finish()
    raydata.fit([pool], 1)
    assert sorted(pool.released) == ["b", "c"] and raydata.held([pool]) == 1


def test_a_lease_that_grows_again_takes_them_back_and_pending_ones_go_first() -> None:
    pool = Pool({"a": 4, "b": 2}, pending=1)
    raydata.fit([pool], 1)
    assert pool.pending == 0 and raydata._drained(pool) == {"b"}
    raydata.fit([pool], 2)
    assert raydata._drained(pool) == set() and raydata.held([pool]) == 2


@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=3),
    st.lists(st.integers(0, 8), min_size=1, max_size=6),
)
def test_pools_end_within_the_lease_with_one_actor_each_at_least(
    shapes: list[tuple[int, float]], leases: list[int]
) -> None:
    pools = [
        Pool({f"{n}.{i}": i + 1 for i in range(count)}, gpus=gpus) for n, (count, gpus) in enumerate(shapes)
    ]
    for allowed in leases:
        raydata.fit(pools, allowed)  # type: ignore[arg-type]
        for pool in pools:
            pool.finish()
    raydata.fit(pools, leases[-1])  # type: ignore[arg-type]
    least = sum(gpus for _, gpus in shapes)
    assert raydata.held(pools) <= max(leases[-1], least) or all(pool.current_size() == 1 for pool in pools)
    assert all(pool.current_size() >= 1 for pool in pools)
    if least <= min(leases):
        assert raydata.held(pools) <= min(leases), "who was let go does not come back by itself"


def now(workers: int) -> Now:
    lease = LeaseView(lease_id="l", epoch=1, head=None, workers=WORKERS)
    return Now(version="1", lease=lease, workers=workers, least=1, most=4, follows=True)


@pytest.fixture
def lease(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A feed whose `now` the test sets."""
    heard = SimpleNamespace(now=now(3), over=False)
    monkeypatch.setenv("MOORAGE_ELASTIC", "1,4")
    monkeypatch.setattr(following, "_feed", heard)
    return heard


def test_the_coordinator_sees_the_leases_gpus_and_nobody_elses(
    lease: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    nodes = [{"NodeID": f"r{n}", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}} for n in range(3)]
    monkeypatch.setattr(
        ray, "nodes", lambda: [{**node, "Resources": dict(node["Resources"])} for node in nodes]
    )
    assert [node["Resources"].get("GPU") for node in raydata.lease_nodes()] == [2.0, 1.0, None]
    lease.now = now(1)
    assert [node["Resources"].get("GPU") for node in raydata.lease_nodes()] == [1.0, None, None]
    assert {node["Resources"]["CPU"] for node in raydata.lease_nodes()} == {8.0}


def test_a_scaling_config_that_follows_is_the_lease_of_now(lease: SimpleNamespace) -> None:
    pytest.importorskip("ray.train")
    import copy

    from moorage.train import scaling_config

    found = scaling_config(follow=True)
    assert found.num_workers == 3 and found.use_gpu and found._resources_per_worker_not_none["GPU"] == 1
    assert [one["ray.io/node-id"] for one in found._label_selector_per_worker(3)] == ["r0", "r0", "r1"]
    sent = copy.copy(found)  # as it is sent to the controller: by its state
    lease.now = replace(now(1))
    assert (found.num_workers, sent.num_workers, sent.max_workers) == (1, 1, 1)
    assert len(sent._label_selector_per_worker(3)) == 3, "as many as were asked for"
    assert scaling_config(1, follow=True).num_workers == 1, "a size of its own stays"
    import os

    assert os.environ["RAY_TRAIN_CALLBACKS"] == "moorage.cluster.raytrain.FollowLease"
    del os.environ["RAY_TRAIN_CALLBACKS"]


def test_a_run_is_told_once_and_restarted_when_all_have_saved(lease: SimpleNamespace) -> None:
    pytest.importorskip("ray.train")
    from moorage.cluster.raytrain import HANDED_OVER, MARGIN_S, FollowLease, LeaseScaling

    said: list[int] = []
    marks: list[float] = []
    lease.follow, lease.say = (lambda: None), (lambda workers: said.append(workers))
    lease.wait = lambda version, timeout: (threading.Event().wait(0.01), lease.now)[1]
    run = FollowLease()
    other = FollowLease()
    other.after_controller_start(SimpleNamespace(scaling_config=object()))
    other.after_report(SimpleNamespace(checkpoint="c"), [{HANDED_OVER: 1}])
    assert not other._active, "a run with a size of its own"
    run.after_controller_start(SimpleNamespace(scaling_config=LeaseScaling(use_gpu=True)))
    actor = SimpleNamespace(
        mark_preempt=SimpleNamespace(remote=lambda info: marks.append(info.deadline_ms / 1000))
    )

    def starts(count: int) -> None:
        run.before_worker_group_start(SimpleNamespace(num_workers=count))
        workers = [
            SimpleNamespace(
                actor=actor,
                metadata=SimpleNamespace(node_id="r0"),
                distributed_context=SimpleNamespace(world_rank=rank),
            )
            for rank in range(count)
        ]
        run.after_worker_group_start(SimpleNamespace(get_workers=lambda: workers))

    starts(3)
    run.after_report(SimpleNamespace(checkpoint="c"), [{}])
    assert marks == [] and said == []
    asked = Asked(reason="", rule="reclaim", for_job="own", deadline=time.time() + 60)
    lease.now = replace(now(1), asked=asked)
    until(lambda: len(marks) == 3, 60, "every worker to be told")
    assert all(abs(mark - (asked.deadline - MARGIN_S)) < 1 for mark in marks), "before its grace is over"
    run.after_report(SimpleNamespace(checkpoint=None), [{"loss": 1.0}])
    assert len(marks) == 3, "nothing was saved"
    run.after_report(SimpleNamespace(checkpoint="c"), [{}])
    assert len(marks) == 6 and all(mark <= time.time() for mark in marks[3:]), "now"
    run.before_worker_group_shutdown(None)
    starts(1)
    until(lambda: said == [1], 60, "the pool to be told")
    run.after_report(SimpleNamespace(checkpoint=None), [{HANDED_OVER: 7}])
    assert len(marks) == 7, "handed over is saved"
    run.before_worker_group_shutdown(None)
    starts(3)  # it was decided when the lease had three
    until(lambda: len(marks) == 10, 60, "a run that is too large to be told")
    assert said == [1]
    lease.over = True


def test_a_run_that_may_grow_is_told_again_when_it_is_asked_for_workers_meanwhile(
    lease: SimpleNamespace,
) -> None:
    """The grace is shorter than what a run has to grow in: after it all of the job would have to leave."""
    pytest.importorskip("ray.train")
    from moorage.cluster.raytrain import GROWS_WITHIN_S, MARGIN_S, FollowLease, LeaseScaling

    marks: list[float] = []
    lease.follow, lease.say = (lambda: None), (lambda workers: None)
    lease.wait = lambda version, timeout: (threading.Event().wait(0.01), lease.now)[1]
    run = FollowLease()
    run.after_controller_start(SimpleNamespace(scaling_config=LeaseScaling(use_gpu=True)))
    actor = SimpleNamespace(
        mark_preempt=SimpleNamespace(remote=lambda info: marks.append(info.deadline_ms / 1000))
    )
    worker = SimpleNamespace(
        actor=actor,
        metadata=SimpleNamespace(node_id="r0"),
        distributed_context=SimpleNamespace(world_rank=0),
    )
    run.before_worker_group_start(SimpleNamespace(num_workers=3))
    run.after_worker_group_start(SimpleNamespace(get_workers=lambda: [worker]))
    lease.now = now(4)
    until(lambda: marks, 60, "the growth to be told")
    assert marks[0] > time.time() + GROWS_WITHIN_S - 10
    asked = Asked(reason="", rule="reclaim", for_job="own", deadline=time.time() + 60)
    lease.now = replace(now(1), asked=asked)
    until(lambda: len(marks) == 2, 60, "the ask to be told")
    assert abs(marks[1] - (asked.deadline - MARGIN_S)) < 1
    threading.Event().wait(0.1)
    assert len(marks) == 2, "once"
    lease.over = True


def test_trials_that_are_too_many_are_parked_and_go_on_before_new_ones_begin() -> None:
    pytest.importorskip("ray.tune")
    from moorage.train.search import LeasedSearch

    slots = 3
    search = LeasedSearch([{"n": n} for n in range(6)], lambda: slots)
    for name in "abc":
        found = search.suggest(name)
        assert isinstance(found, dict)
    assert search.suggest("d") is None and not any(search.must_park(name) for name in "abc")
    slots = 1
    assert [search.must_park(name) for name in "abc"] == [False, True, True]
    assert search.parked == ["b", "c"] and search.unpark("b") is None
    slots = 2
    assert search.unpark("b") == 1 and search.suggest("d") is None, "c comes first"
    slots = 3
    assert search.unpark("c") == 2
    search.on_trial_complete("a")
    following_one = search.suggest("d")
    assert isinstance(following_one, dict) and (following_one["n"], following_one["moorage_slot"]) == (3, 0)


def test_the_wrapped_scheduler_decides_but_for_what_the_lease_takes() -> None:
    pytest.importorskip("ray.tune")
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    from moorage.train.search import LeasedSearch, ParkTrials

    class Stops(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
            return str(TrialScheduler.STOP if result["bad"] else TrialScheduler.CONTINUE)

    slots = 2
    search = LeasedSearch([{}, {}], lambda: slots)
    trials = [
        SimpleNamespace(trial_id=name, status=Trial.RUNNING, config=search.suggest(name), resources=None)
        for name in "ab"
    ]
    for trial in trials:
        trial.update_resources = lambda found, trial=trial: setattr(trial, "resources", found)
    controller = SimpleNamespace(get_trials=lambda: trials)
    scheduler = ParkTrials(search, lambda config: ("slot", config["moorage_slot"]), Stops())
    assert scheduler.on_trial_result(controller, trials[1], {"bad": True}) == TrialScheduler.STOP
    slots = 1
    assert scheduler.on_trial_result(controller, trials[0], {"bad": False}) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(controller, trials[1], {"bad": False}) == TrialScheduler.PAUSE
    trials[1].status = Trial.PAUSED
    assert scheduler.choose_trial_to_run(controller) is None, "there is no slot for it"
    search.on_trial_complete("a")
    assert scheduler.choose_trial_to_run(controller) is trials[1]
    assert trials[1].config["moorage_slot"] == 0 and trials[1].resources == ("slot", 0)
