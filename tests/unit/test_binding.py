"""S4, S9: a lease as its job reads it."""

from __future__ import annotations

import json

import pytest

from moorage.cluster import binding
from moorage.cluster.binding import LeaseView, Place, WorkerView
from moorage.errors import InvalidRequest

LEASE = LeaseView(
    lease_id="lease-1",
    epoch=7,
    head=Place(node="node-0", ray_node_id="aa"),
    workers=(
        WorkerView(
            node="node-1", ray_node_id="bb", devices=(0, 2), milli_gpu=1000, gpu_mib=0, milli_cpu=1000
        ),
        WorkerView(node="node-0", ray_node_id="aa", devices=(3,), milli_gpu=250, gpu_mib=512, milli_cpu=500),
        WorkerView(node="node-0", ray_node_id="aa", devices=(), milli_gpu=0, gpu_mib=0, milli_cpu=2000),
    ),
)


def test_round_trip() -> None:
    assert binding.decode(binding.encode(LEASE)) == LEASE
    assert binding.current({"MOORAGE_LEASE": binding.encode(LEASE)}) == LEASE
    assert binding.current({}) is None


def test_the_text_is_what_the_contract_says() -> None:
    raw = json.loads(binding.encode(LEASE))
    assert raw["head"] == {"node": "node-0", "ray_node_id": "aa"}
    assert raw["workers"][1] == {
        "node": "node-0",
        "ray_node_id": "aa",
        "devices": [3],
        "milli_gpu": 250,
        "gpu_mib": 512,
        "milli_cpu": 500,
    }


def test_ray_terms() -> None:
    assert [worker.resources() for worker in LEASE.workers] == [
        {"CPU": 1.0, "GPU": 2.0},
        {"CPU": 0.5, "GPU": 0.25},
        {"CPU": 2.0},
    ]
    assert LEASE.gpus == 2.25
    assert binding.worker_selectors(LEASE) == [
        {"ray.io/node-id": "bb"},
        {"ray.io/node-id": "aa"},
        {"ray.io/node-id": "aa"},
    ]
    assert binding.head_selector(LEASE) == {"ray.io/node-id": "aa"}


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "7"},
        {"epoch": -1},
        {"epoch": True},
        {"head": {}},
        {"head": "node-0"},
        {"workers": None},
        {"workers": [{"node": "n"}]},
    ],
)
def test_a_malformed_lease_is_refused(change) -> None:
    raw = json.loads(binding.encode(LEASE)) | change
    with pytest.raises(InvalidRequest) as refused:
        binding.current({"MOORAGE_LEASE": json.dumps(raw)})
    assert refused.value.code == "lease-malformed"


@pytest.mark.parametrize("text", ["{", "[]", "1", '"x"'])
def test_what_is_no_lease_is_refused(text) -> None:
    with pytest.raises(InvalidRequest):
        binding.decode(text)
