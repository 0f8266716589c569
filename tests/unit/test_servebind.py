"""What a job's own code deploys on Serve stays within its lease (V4 S9)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from moorage.cluster import autobind, joining, leasegroup, servebind
from moorage.cluster.binding import LeaseView, WorkerView, encode
from moorage.cluster.holdings import RawDriver
from moorage.cluster.servebind import free_names, within
from moorage.errors import Conflict, InvalidRequest


def lease(*workers: tuple[str, int, int]) -> LeaseView:
    """Workers of (node, device, milli-GPU)."""
    return LeaseView(
        lease_id="l-1",
        epoch=1,
        head=None,
        workers=tuple(
            WorkerView(
                node=node, ray_node_id=node, devices=(device,), milli_gpu=milli, gpu_mib=0, milli_cpu=1000
            )
            for node, device, milli in workers
        ),
    )


@dataclass(frozen=True)
class Deployment:
    """As much of Serve's as is looked at."""

    ray_actor_options: dict[str, Any] | None
    most: int = 1
    scales: bool = False
    first: int | None = None
    name: str = "Model"
    bundles: Any = None
    per_node: int | None = None

    @property
    def _deployment_config(self) -> Any:
        bounds = SimpleNamespace(min_replicas=1, initial_replicas=self.first, max_replicas=self.most)
        bounds.model_copy = lambda update: SimpleNamespace(**update)
        count, scaling = (None, bounds) if self.scales else (self.most, None)
        return SimpleNamespace(num_replicas=count, autoscaling_config=scaling, gang_scheduling_config=None)

    @property
    def _replica_config(self) -> Any:
        return SimpleNamespace(placement_group_bundles=self.bundles, max_replicas_per_node=self.per_node)

    def options(
        self, *, max_replicas_per_node: int | None = None, autoscaling_config: Any = None, **given: Any
    ) -> Deployment:
        most = self.most if autoscaling_config is None else autoscaling_config.max_replicas
        return replace(self, per_node=max_replicas_per_node or self.per_node, most=most, **given)


@dataclass(frozen=True)
class App:
    deployments: list[Deployment] = field(default_factory=list)
    name: str = "default"


def bound(held: LeaseView, *deployments: Deployment) -> list[tuple[str, int | None]]:
    """(selector, bound per node) of each; "" where none was set."""
    (app,), _ = within(held, [App(list(deployments))])
    found = []
    for one in app.deployments:
        selector = (one.ray_actor_options or {}).get("label_selector") or {}
        found.append((selector.get("ray.io/node-id", ""), one.per_node))
    return found


ONE, HALF = {"num_gpus": 1}, {"num_gpus": 0.5}
TWO_NODES = lease(("a", 0, 1000), ("a", 1, 1000), ("b", 0, 1000))


def test_replicas_go_to_the_nodes_of_the_lease_and_no_more_than_it_has_there() -> None:
    assert bound(lease(("a", 0, 1000)), Deployment(ONE)) == [("a", None)]
    assert bound(TWO_NODES, Deployment(ONE, most=3)) == [("in(a,b)", 2)]
    assert bound(TWO_NODES, Deployment(ONE, most=3, scales=True, per_node=1)) == [("in(a,b)", 1)]
    halves = lease(("a", 0, 500), ("a", 0, 500))
    assert bound(halves, Deployment(HALF), Deployment(HALF)) == [("a", None)] * 2


def test_what_replicas_may_hold_is_told_of_each_application() -> None:
    two = (
        App([Deployment(ONE), Deployment({"num_cpus": 1}, most=3)], name="one"),
        App([Deployment(ONE, most=2)], name="two"),
    )
    _, held = within(TWO_NODES, two)
    assert sorted(node for node, _ in held["one"] + held["two"]) == ["a", "a", "b"]
    assert (len(held["one"]), len(held["two"])) == (1, 2) and {gpus for _, gpus in held["two"]} == {1.0}
    assert within(TWO_NODES, [App([Deployment({"num_cpus": 1})])])[1] == {"default": []}


def test_more_replicas_than_the_lease_has_workers_are_refused_at_once() -> None:
    alone = lease(("a", 0, 1000))
    for one in (Deployment(ONE, most=2), Deployment(ONE, most=9, scales=True, first=2)):
        with pytest.raises(InvalidRequest, match="replicas of Model do not fit") as refused:
            within(alone, [App([one])])
        assert refused.value.code == "lease-too-small"
    with pytest.raises(InvalidRequest, match="4 of them take 4 GPUs, and the lease has 3 in 3 workers"):
        within(TWO_NODES, [App([Deployment(ONE, most=2)]), App([Deployment(ONE, most=2)])])


def test_autoscaling_stops_where_the_lease_does(capsys: pytest.CaptureFixture[str]) -> None:
    """`num_replicas="auto"` says at most 100, as many of Ray's own examples do."""

    def most(held: LeaseView, *deployments: Deployment) -> list[int]:
        return [one.most for app in within(held, [App(list(deployments))])[0] for one in app.deployments]

    auto = Deployment(ONE, most=100, scales=True)
    assert most(TWO_NODES, auto) == [3]
    assert "Model: max_replicas 100 becomes 3" in capsys.readouterr().err
    assert most(TWO_NODES, auto, Deployment(ONE, most=1)) == [2, 1]
    assert most(TWO_NODES, auto, Deployment(HALF, most=2, scales=True)) == [2, 2]
    assert most(lease(("a", 0, 600), ("a", 1, 600)), Deployment(HALF, most=8, scales=True)) == [2]
    capsys.readouterr()
    assert most(TWO_NODES, Deployment(ONE, most=3, scales=True)) == [3]
    assert not capsys.readouterr().err


def test_the_accelerator_type_of_a_replica_is_that_of_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [{"NodeID": "a", "Resources": {}, "Labels": {"moorage.io/gpu-model": "L4"}}]
    monkeypatch.setattr(joining, "nodes", lambda held: there)
    (app,), _ = within(lease(("a", 0, 1000)), [App([Deployment({**ONE, "accelerator_type": "L4"})])])
    assert app.deployments[0].ray_actor_options == {**ONE, "label_selector": {"ray.io/node-id": "a"}}
    with pytest.raises(InvalidRequest, match="A100") as refused:
        within(lease(("a", 0, 1000)), [App([Deployment({**ONE, "accelerator_type": "A100"})])])
    assert refused.value.code == "not-in-the-lease"


def test_what_says_where_it_runs_or_takes_no_gpu_is_left_alone() -> None:
    there = Deployment({**ONE, "label_selector": {"ray.io/node-id": "z"}}, most=9)
    group = Deployment(ONE, most=9, bundles=[{"GPU": 1}])
    for one in (there, group, Deployment(None, most=50), Deployment({"num_cpus": 1}, most=50)):
        (app,), _ = within(lease(("a", 0, 1000)), [App([one])])
        assert app.deployments == [one]


def kept(monkeypatch: pytest.MonkeyPatch, me: str = "a1", dead: tuple[str, ...] = ()) -> dict[str, bytes]:
    """The keys in the GCS, as the process `me` finds them."""
    from moorage.cluster import rayapi

    keys: dict[str, bytes] = {}
    monkeypatch.setattr(rayapi, "own_id", lambda: me)
    monkeypatch.setattr(rayapi, "kv_claim", lambda key, value: keys.setdefault(key, value) is value)
    monkeypatch.setattr(rayapi, "kv_get", keys.get)
    monkeypatch.setattr(rayapi, "kv_delete", lambda key: keys.pop(key, None))
    monkeypatch.setattr(rayapi, "has_ended", lambda user: user in dead)
    monkeypatch.setattr(servebind, "LOOKS_EVERY_S", 0)
    return keys


def test_of_two_that_deploy_a_name_at_once_the_second_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = kept(monkeypatch, dead=("b2",))
    seen: list[dict[str, str]] = [{}, {}, {"default": "0a"}]
    drivers = {"0a": RawDriver(submission="theirs-1", dead=False)}
    monkeypatch.setattr(servebind, "_records", lambda: (seen.pop(0), drivers))
    keys["serve-name/default"] = b"c3"  # it deploys just now, and Serve does not list it yet
    with pytest.raises(Conflict) as refused, servebind.claimed(["flights", "default"]):
        pytest.fail("it must not deploy")
    assert refused.value.code == "app-name-in-use" and not seen
    assert keys == {"serve-name/default": b"c3"}, "what it had claimed itself is let go"
    monkeypatch.setattr(servebind, "_records", lambda: ({}, {}))
    keys["serve-name/default"] = b"b2"  # it ended in the middle
    with servebind.claimed(["default"]):
        assert keys == {"serve-name/default": b"a1"}
    assert not keys
    keys["serve-name/default"] = b"c3"
    monkeypatch.setattr(servebind, "CLAIMS_S", 0)
    with pytest.raises(Conflict), servebind.claimed(["default"]):
        pytest.fail("nor after a while")
    monkeypatch.setenv("MOORAGE_TEAM", "ops")
    keys["serve-name/ops-flights"] = b"c3"
    with servebind.claimed(["ops-flights"]):
        assert len(keys) == 2, "names of one's own team are replaced"


def test_a_job_is_bound_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def deploy_applications(self, built_apps: Any, **options: Any) -> tuple[Any, Any]:
            return built_apps, options

    module = ModuleType("ray.serve._private.client")
    module.ServeControllerClient = Client  # type: ignore[attr-defined]
    autobind.patch(module)
    apps = [App([Deployment(ONE)])]
    monkeypatch.delenv("MOORAGE_LEASE", raising=False)
    assert Client().deploy_applications(apps, wait_for_applications_running=False) == (
        apps,
        {"wait_for_applications_running": False},
    )
    monkeypatch.setenv("MOORAGE_LEASE", encode(lease(("a", 0, 1000))))
    monkeypatch.setattr(joining, "here", lambda held: True)
    monkeypatch.setattr(servebind, "_records", lambda: ({}, {}))
    monkeypatch.setattr(leasegroup, "served", {})
    keys = kept(monkeypatch)
    (app,), _ = Client().deploy_applications(apps)
    assert app.deployments[0].ray_actor_options["label_selector"] == {"ray.io/node-id": "a"}
    assert leasegroup.served == {"default": [("a", 1.0)]}, "no room for others"
    theirs = {"default": "0a"}, {"0a": RawDriver(submission="theirs-1", dead=False)}
    monkeypatch.setattr(servebind, "_records", lambda: theirs)
    with pytest.raises(Conflict):
        Client().deploy_applications(apps)
    assert not keys
    monkeypatch.setattr(joining, "here", lambda held: False)
    assert Client().deploy_applications(apps) == (apps, {}), "on a cluster of its own no node is the lease's"


def test_what_serve_itself_builds_is_understood() -> None:
    """Its classes are not public API: as the version that is installed has them."""
    from ray import serve
    from ray.serve._private.build_app import build_app

    @serve.deployment(
        ray_actor_options={"num_gpus": 1}, autoscaling_config={"min_replicas": 1, "max_replicas": 3}
    )
    class Model:
        pass

    (app,), _ = within(TWO_NODES, [build_app(Model.bind(), name="app", default_runtime_env={})])
    (one,) = app.deployments
    assert one.ray_actor_options["label_selector"] == {"ray.io/node-id": "in(a,b)"}
    assert one._replica_config.max_replicas_per_node == 2
    assert one._deployment_config.autoscaling_config.max_replicas == 3
    (app,), _ = within(lease(("a", 0, 1000)), [build_app(Model.bind(), name="app", default_runtime_env={})])
    scaling = app.deployments[0]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 1)
    auto = Model.options(num_replicas="auto", autoscaling_config=None).bind()
    (app,), _ = within(TWO_NODES, [build_app(auto, name="app", default_runtime_env={})])
    assert app.deployments[0]._deployment_config.autoscaling_config.max_replicas == 3


def test_a_name_that_another_running_job_serves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both said `serve.run(app)` without a name: the second would replace the first."""
    monkeypatch.setenv("MOORAGE_JOB_ID", "job-7")
    monkeypatch.setenv("MOORAGE_TEAM", "ops")
    drivers = {
        "01": RawDriver(submission="job-7-1", dead=False),  # another driver of this job's
        "02": RawDriver(submission="job-7-12-1", dead=False),
        "03": RawDriver(submission="gone-1", dead=True),
        "04": RawDriver(submission="", dead=False),  # past the front door
    }
    for free in ({}, {"default": "01"}, {"default": "03"}, {"default": "99"}, {"flights": "02"}):
        free_names(["default"], free, drivers)
    free_names(["ops-flights"], {"ops-flights": "02"}, drivers)  # the team's own: a newer version
    for taken in ("02", "04"):
        with pytest.raises(Conflict, match="named 'flights'") as refused:
            free_names(["default", "flights"], {"default": "01", "flights": taken}, drivers)
        assert refused.value.code == "app-name-in-use"


def test_a_job_that_needs_serve_waits_for_the_pool_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts Serve chooses its port for all."""
    import ray

    from moorage.cluster import rayapi

    told: list[str] = []
    there = iter([False, False, False, True])
    api: Any = ModuleType("ray.serve._private.api")
    api.serve_start = lambda **options: told.append(f"started {options}")
    servebind.wrap_start(api)
    monkeypatch.setattr(servebind, "LOOKS_EVERY_S", 0)
    monkeypatch.setattr(ray, "is_initialized", lambda: "connected" in told)
    monkeypatch.setattr(ray, "init", lambda namespace: told.append("connected"))

    def serve_is_there() -> bool:
        told.append("looked")
        return next(there)

    monkeypatch.setattr(rayapi, "serve_is_there", serve_is_there)
    monkeypatch.setattr(joining, "here", lambda held: True)
    monkeypatch.delenv("MOORAGE_LEASE", raising=False)
    api.serve_start(a=1)
    assert told == ["started {'a': 1}"], "no job of a pool: nobody else will start it"
    monkeypatch.setenv("MOORAGE_LEASE", encode(lease(("a", 0, 1000))))
    api.serve_start(a=2)
    assert told[1:] == ["connected", *["looked"] * 4, "started {'a': 2}"]
    monkeypatch.setattr(rayapi, "serve_is_there", lambda: False)
    monkeypatch.setattr(servebind, "STARTS_S", 0)
    api.serve_start(a=3)
    assert told[-1] == "started {'a': 3}", "the pool could not start it"
    monkeypatch.setattr(joining, "here", lambda held: False)
    monkeypatch.setattr(rayapi, "serve_is_there", lambda: 1 / 0)
    api.serve_start(a=4)
    assert told[-1] == "started {'a': 4}", "on a cluster of its own"
