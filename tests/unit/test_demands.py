"""S4, S9: what a task with GPUs asks for beside them, against what the leased nodes are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from moorage.cluster import autobind, binding, demands, joining, leasegroup
from moorage.cluster.binding import LeaseView, WorkerView, encode
from moorage.errors import InvalidRequest

REAL = {"NodeID": "a", "Resources": {"GPU": 4.0, "accelerator_type:A100": 1.0, "disk": 2.0}, "Labels": {}}
LOGICAL = {"NodeID": "b", "Resources": {"GPU": 4.0}, "Labels": {"moorage.io/gpu-model": "L4"}}
LABELLED = {
    "NodeID": "c",
    "Resources": {"GPU": 1.0, "disk": 9.0},
    "Labels": {"ray.io/accelerator-type": "L4"},
}
POOL: list[dict[str, Any]] = [REAL, LOGICAL, LABELLED]


def lease(*nodes: str) -> LeaseView:
    return LeaseView(
        lease_id="l",
        epoch=1,
        head=None,
        workers=tuple(
            WorkerView(node=node, ray_node_id=node, devices=(0,), milli_gpu=1000, gpu_mib=0, milli_cpu=1000)
            for node in nodes
        ),
    )


def test_the_accelerator_type_of_the_lease_is_no_further_demand() -> None:
    """By Ray's resource, or by a label where nothing stands behind a logical GPU."""
    for nodes, model in (("a", "A100"), ("b", "L4"), ("bc", "L4")):
        found = demands.of(lease(*nodes), {"accelerator_type": model}, POOL)
        assert found == demands.Demands({"accelerator_type": None}, None)


@pytest.mark.parametrize("nodes", ["a", "ab", "x"])
def test_another_accelerator_type_is_refused_at_once(nodes: str) -> None:
    with pytest.raises(InvalidRequest, match="accelerator_type='L4'") as refused:
        demands.of(lease(*nodes), {"accelerator_type": "L4"}, POOL)
    assert refused.value.code == "not-in-the-lease" and "gpu_model: L4" in refused.value.todo


def test_memory_is_left_out_and_custom_resources_say_where() -> None:
    held = lease("a", "b", "c")
    assert demands.of(held, {"memory": 10**9, "resources": {}}, POOL) == demands.Demands(
        {"memory": None}, None
    )
    assert demands.of(held, {"resources": {"disk": 1}}, POOL).nodes == ("a", "c")
    assert demands.of(held, {"resources": {"disk": 3, "none": 0}}, POOL).nodes == ("c",)
    for custom in ({"disk": 10}, {"tpu": 1}):
        with pytest.raises(InvalidRequest, match="No node of this job's lease has them") as refused:
            demands.of(held, {"resources": custom}, POOL)
        assert refused.value.code == "not-in-the-lease"


def test_a_task_of_the_lease_asks_its_group_for_gpus_and_cpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses what asks a bundle for anything else: `@ray.remote(num_gpus=1, accelerator_type="L4")` failed."""
    from moorage.cluster import rayapi

    monkeypatch.setenv("MOORAGE_LEASE", encode(lease("b", "c")))
    monkeypatch.setattr(joining, "here", lambda held: True)
    monkeypatch.setattr(joining, "nodes", lambda held: POOL)
    monkeypatch.setattr(rayapi, "children_stay_in_group", lambda: False)
    monkeypatch.setattr(rayapi, "current_task", lambda: "driver")

    @contextmanager
    def using(held: LeaseView, gpus: float, cpus: float) -> Iterator[Any]:
        yield SimpleNamespace(group=SimpleNamespace(id="group"), note=lambda parent, started: None), 1.0

    monkeypatch.setattr(leasegroup, "using", using)
    monkeypatch.setattr(leasegroup, "make_room", lambda: True)
    module: Any = ModuleType("ray.remote_function")
    module.RemoteFunction = type(
        "RemoteFunction", (), {"_remote": lambda self, a=None, k=None, **given: given}
    )
    module.parse_runtime_env_for_task_or_actor = dict
    autobind.patch(module)
    remote = module.RemoteFunction()._remote
    given = remote(num_gpus=1, accelerator_type="L4", memory=10**9)
    assert given.pop("scheduling_strategy").placement_group.id == "group"
    assert given == {"num_gpus": 1, "accelerator_type": None, "memory": None}
    custom = {"num_gpus": 1, "resources": {"disk": 1}}
    assert remote(**custom) == {**custom, "label_selector": {binding.NODE_ID_LABEL: "in(c)"}}
    assert remote(resources={"tpu": 1}) == {"resources": {"tpu": 1}}, "without a GPU it is Ray's"
