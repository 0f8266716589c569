"""S9: what counts as the same launch, and how Ray's words become ours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moorage.cluster.agent import observed_node, one_per_name
from moorage.cluster.backend import DIGEST_KEY, Launch, PackageRef, digest
from moorage.cluster.client import RayBackend

LAUNCH = Launch(
    submission_id="job-1",
    entrypoint="python train.py",
    runtime_env={"env_vars": {"A": "1", "MOORAGE_TOKEN": "first"}, "working_dir": "gcs://p.zip"},
    metadata={"team": "ops"},
    entrypoint_num_cpus=1,
)
RAW = {
    "NodeID": "abcdef0123456789",
    "Alive": True,
    "NodeManagerAddress": "10.0.0.4",
    "Resources": {"CPU": 8.0, "GPU": 4.0, "memory": 2.0**30, "node:__internal_head__": 1.0},
    "Labels": {"moorage.io/node": "node-0", "moorage.io/gpu-model": "L4", "moorage.io/device-mib": "24576"},
}


def test_a_new_token_is_the_same_content(tmp_path) -> None:
    other = {**LAUNCH.runtime_env, "env_vars": {"A": "1", "MOORAGE_TOKEN": "second"}}
    assert digest(replace(LAUNCH, runtime_env=other)) == digest(LAUNCH)
    assert digest(replace(LAUNCH, metadata={"team": "ops", DIGEST_KEY: "forged"})) == digest(LAUNCH)
    assert digest(replace(LAUNCH, packages=(PackageRef(uri="gcs://p.zip", path=tmp_path),))) == digest(
        replace(LAUNCH, packages=(PackageRef(uri="gcs://p.zip", path=tmp_path / "moved"),))
    )


@pytest.mark.parametrize(
    "change",
    [
        {"submission_id": "job-2"},
        {"entrypoint": "python other.py"},
        {"runtime_env": {"env_vars": {"A": "2"}}},
        {"metadata": {"team": "research"}},
        {"entrypoint_num_gpus": 1},
        {"entrypoint_label_selector": {"ray.io/node-id": "aa"}},
        {"packages": (PackageRef(uri="gcs://q.zip", path=None),)},
    ],
)
def test_anything_else_is_other_content(change) -> None:
    assert digest(replace(LAUNCH, **change)) != digest(LAUNCH)


def test_a_node_in_integers() -> None:
    node = observed_node(RAW, {"GPU": 3.7499999, "CPU": 7.9})
    assert (node.name, node.gpu_model, node.devices, node.device_mib) == ("node-0", "L4", 4, 24576)
    assert (node.milli_cpu, node.mib, node.free_milli_gpu, node.free_milli_cpu) == (8000, 1024, 3750, 7900)
    assert node.is_head and node.alive and node.address == "10.0.0.4"


def test_a_node_that_is_not_ours() -> None:
    foreign = {
        **RAW,
        "Labels": {"ray.io/accelerator-type": "A100", "moorage.io/device-mib": "lots"},
        "Resources": {},
    }
    node = observed_node(foreign, {})
    assert (node.name, node.gpu_model, node.devices, node.device_mib) == ("ray-abcdef012345", "A100", 0, 0)
    assert not node.is_head


def test_of_one_name_the_living_incarnation_counts() -> None:
    dead, alive = observed_node({**RAW, "Alive": False}, {}), observed_node({**RAW, "NodeID": "ff"}, {})
    assert one_per_name([dead, alive]) == one_per_name([alive, dead]) == [alive]
    assert one_per_name([dead]) == [dead]


def test_without_a_pool_the_backend_says_what_is_missing(tmp_path) -> None:
    from moorage.cluster.backend import BackendUnavailable

    backend = RayBackend(tmp_path)
    with pytest.raises(BackendUnavailable):
        backend.observe()
    with pytest.raises(BackendUnavailable):
        backend.stop("job-1")
    backend.close()
