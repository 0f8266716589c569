"""From the lease to Ray's terms, without a cluster (S3, T1, T3)."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.cluster.binding import LEASE_VARIABLE, LeaseView, WorkerView, encode
from moorage.errors import InvalidRequest
from moorage.train import (
    LeasedSearch,
    sample_configs,
    scaling_config,
    tune_config,
    tune_resources,
    tune_slots,
)
from moorage.train.scaling import SLOT


def worker(node: str, device: int = 0, milli_gpu: int = 500, milli_cpu: int = 1000) -> WorkerView:
    return WorkerView(
        node=node,
        ray_node_id=f"id-{node}",
        devices=(device,),
        milli_gpu=milli_gpu,
        gpu_mib=0,
        milli_cpu=milli_cpu,
    )


def lease(*workers: WorkerView) -> LeaseView:
    return LeaseView(lease_id="l", epoch=1, head=None, workers=workers)


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LEASE_VARIABLE, raising=False)


def test_each_training_worker_is_pinned_to_its_node() -> None:
    config = scaling_config(lease=lease(worker("a"), worker("a", 1), worker("b")))
    assert config.num_workers == 3 and config.use_gpu
    assert config.resources_per_worker == {"CPU": 1.0, "GPU": 0.5}
    assert config.label_selector == [{"ray.io/node-id": f"id-{n}"} for n in "aab"]


def test_the_lease_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, encode(lease(worker("a"), worker("b"))))
    assert scaling_config().num_workers == 2 and tune_slots() == 2


def test_fewer_workers_than_the_lease_is_fine_and_more_is_refused() -> None:
    two = lease(worker("a"), worker("b"))
    assert scaling_config(1, lease=two).label_selector == [{"ray.io/node-id": "id-a"}]
    with pytest.raises(InvalidRequest) as caught:
        scaling_config(3, lease=two)
    assert caught.value.code == "lease-too-small"


def test_a_lease_without_gpus_trains_on_cpus() -> None:
    config = scaling_config(lease=lease(worker("a", milli_gpu=0)))
    assert not config.use_gpu and config.resources_per_worker == {"CPU": 1.0}


def test_uneven_and_empty_leases_are_refused_with_the_reason() -> None:
    for bad, code in (
        (lease(worker("a"), worker("b", milli_gpu=700)), "lease-uneven"),
        (lease(), "lease-without-workers"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            scaling_config(lease=bad)
        assert caught.value.code == code


def test_outside_moorage_a_script_runs_on_cpus() -> None:
    config = scaling_config(2)
    assert config.num_workers == 2 and config.label_selector is None and not config.use_gpu
    assert tune_resources()({}).bundles == [{"CPU": 1.0}]


def test_a_trial_asks_for_its_slot_where_the_slot_is() -> None:
    request = tune_resources(lease(worker("a", 0), worker("b", 1, milli_gpu=250)))
    assert request({SLOT: 1}).bundles == [{"CPU": 1.0, "GPU": 0.25}]
    assert request({SLOT: 0})._kwargs == {"bundle_label_selector": [{"ray.io/node-id": "id-a"}]}
    with pytest.raises(InvalidRequest) as caught:
        request({})
    assert caught.value.code == "trial-without-slot"


def test_running_trials_never_share_a_slot() -> None:
    search = LeasedSearch([{"i": i} for i in range(5)], slots=2)
    first, second = search.suggest("a"), search.suggest("b")
    assert isinstance(first, dict) and isinstance(second, dict)
    assert {first[SLOT], second[SLOT]} == {0, 1} and search.suggest("c") is None
    search.on_trial_complete("a", error=True)
    third = search.suggest("c")
    assert isinstance(third, dict) and (third["i"], third[SLOT]) == (2, first[SLOT])


def test_the_search_ends_and_survives_a_restart(tmp_path: Any) -> None:
    search = LeasedSearch([{"i": i} for i in range(3)], slots=1)
    search.suggest("a")
    search.save(str(tmp_path / "state"))
    again = LeasedSearch([{"i": 9}], slots=3)
    again.restore(str(tmp_path / "state"))
    assert again.suggest("b") is None  # the trial that runs still holds the only slot
    again.on_trial_complete("a")
    assert again.suggest("b") == {"i": 1, SLOT: 0, "trial_index": 1}
    again.on_trial_complete("b")
    again.suggest("c")
    assert again.suggest("d") == "FINISHED"


def test_concurrency_is_the_number_of_workers() -> None:
    config = tune_config([{"x": 1}] * 4, metric="loss", lease=lease(worker("a"), worker("a"), worker("b")))
    assert config.search_alg.slots == 3 and config.num_samples == 4


def test_sampling_is_a_function_of_the_seed() -> None:
    from ray import tune

    space = {"lr": tune.loguniform(1e-4, 1e-2), "hidden": tune.choice([[1], [2]]), "fixed": 3}
    assert sample_configs(space, 5, 1) == sample_configs(space, 5, 1)
    assert sample_configs(space, 5, 1) != sample_configs(space, 5, 2)
    assert all(c["fixed"] == 3 and 1e-4 <= c["lr"] <= 1e-2 for c in sample_configs(space, 5, 1))
