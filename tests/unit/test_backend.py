"""S9: what counts as the same launch, and how Ray's words become ours."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from moorage.cluster import client
from moorage.cluster.agent import observed_node, one_per_name
from moorage.cluster.backend import DIGEST_KEY, BackendUnavailable, Launch, LaunchRefused, PackageRef, digest
from moorage.cluster.client import RayBackend
from moorage.errors import Unavailable

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
    backend = RayBackend(tmp_path)
    with pytest.raises(BackendUnavailable):
        backend.observe()
    with pytest.raises(BackendUnavailable):
        backend.stop("job-1")
    backend.close()


class _Cluster:
    """A dashboard and an agent that write down what they are asked."""

    def __init__(self, tmp_path, agent: int = 200) -> None:
        (tmp_path / "ray.json").write_text('{"dashboard": "http://ray"}')
        self.asked: list[tuple[str, str, bytes]] = []
        self.backend = RayBackend(tmp_path)
        self.backend._ray = httpx.Client(transport=httpx.MockTransport(self.answer))
        self.backend._agent = httpx.Client(
            base_url="http://agent",
            transport=httpx.MockTransport(lambda ask: self.answer(ask, agent)),
        )

    def answer(self, ask: httpx.Request, status: int = 200) -> httpx.Response:
        self.asked.append((ask.method, ask.url.path, ask.read()))
        if ask.method == "GET":
            return httpx.Response(404)
        if ask.method == "PUT":
            assert ask.headers["Content-Length"] == str(len(ask.content)), (
                "Ray's server is told how much comes"
            )
            assert "Transfer-Encoding" not in ask.headers
        return httpx.Response(status, json={"error": "ValueError: too much"})


def test_a_package_goes_to_the_dashboard_or_past_it(tmp_path, monkeypatch) -> None:
    """S9: more than the dashboard reads is handed over by the agent, from the disk."""
    package = PackageRef(uri="gcs://p.zip", path=tmp_path / "p.zip")
    package.path.write_bytes(b"x" * 3_000_000)
    cluster = _Cluster(tmp_path)
    cluster.backend._put(package)
    assert cluster.asked[1] == ("PUT", "/api/packages/gcs/p.zip", b"x" * 3_000_000)
    monkeypatch.setattr(client, "DASHBOARD_TAKES", 2_999_999)
    cluster.backend._put(package)
    method, path, body = cluster.asked[-1]
    assert (method, path) == ("POST", "/package") and str(package.path).encode() in body


@pytest.mark.parametrize("takes", [1, 100])
def test_who_may_not_act_any_more_brings_no_package(tmp_path, monkeypatch, takes) -> None:
    package = PackageRef(uri="gcs://p.zip", path=tmp_path / "p.zip")
    package.path.write_bytes(b"xx")
    monkeypatch.setattr(client, "DASHBOARD_TAKES", takes)
    cluster = _Cluster(tmp_path)

    def refuse() -> None:
        raise Unavailable("fenced")

    cluster.backend.permit = refuse
    with pytest.raises(Unavailable, match="fenced"):
        cluster.backend.stage(package)
    assert [method for method, _, _ in cluster.asked] == ["GET"]


def test_a_package_that_ray_never_takes_ends_the_launch(tmp_path, monkeypatch) -> None:
    """It would be tried for ever otherwise, and hold its lease."""
    package = PackageRef(uri="gcs://p.zip", path=tmp_path / "p.zip")
    package.path.write_bytes(b"xx")
    monkeypatch.setattr(client, "DASHBOARD_TAKES", 1)
    with pytest.raises(LaunchRefused, match="too much"):
        _Cluster(tmp_path, agent=413).backend._put(package)
    with pytest.raises(BackendUnavailable):
        _Cluster(tmp_path, agent=503).backend._put(package)
    package.path.unlink()
    with pytest.raises(LaunchRefused, match="is gone"):
        _Cluster(tmp_path).backend._put(package)
