"""The demo's endpoint against the same model on bare Ray Serve, with Serve's own proxy and with HAProxy.

A real pool per mode; endpoint and peers run side by side on it and are measured in turn by the same client in a process
of its own, closed loop. The peer is the better of two settings of its batches' wait, figure by figure. The weights are
random: they cost what trained ones cost.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import httpx
import ray
from _frame import HERE, Figure, main

EXAMPLE = HERE.parent / "examples" / "flights"
TWO_ON_ONE = {"workers": "2", "gpus_per_worker": "0.5", "gpu_memory_mib": "8192", "cpus_per_worker": "1"}
CPU_ONLY = {"workers": "2", "gpus_per_worker": "0", "cpus_per_worker": "1"}
MODES = ("python", "haproxy")
PEER = f"bare Ray Serve {ray.__version__}, {{mode}} proxy, FastAPI + @serve.batch, {{wait}}"
PEERS = {"peer": "wait 10 ms", "peer-no-wait": "wait 0"}
WAYS = {"straight to Serve": 0.9, "through the front door": None}  # the least ratio, and what only is told


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Pool:
    """A pool of this benchmark's own."""

    home: Path
    url: str
    serve: str

    @property
    def token(self) -> str:
        return (self.home / "tokens" / "default.token").read_text(encoding="utf-8").strip()

    @property
    def features(self) -> Path:
        return self.home / "data" / "features" / "flights" / "v001"

    def submit(self, name: str, folder: Path, metadata: dict[str, str], *command: str) -> None:
        """The stock CLI, then wait for the job's `ready`, or for its end when it has none."""
        ray = str(Path(sys.executable).with_name("ray"))
        options = ["--no-wait", "--submission-id", name, "--working-dir", str(folder)]
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        subprocess.run(
            [
                *(ray, "job", "submit", "--address", self.url, *options),
                *("--metadata-json", json.dumps(metadata), "--", "python", *command),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )

    def wait(self, name: str, within_s: float = 240) -> None:
        """Until the job said `ready` or ended well."""
        headers = {"Authorization": f"Bearer {self.token}"}
        deadline, logs = time.monotonic() + within_s, ""
        with httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False) as http:
            while time.monotonic() < deadline:
                status = http.get(f"/api/jobs/{name}").json()["status"]
                logs = http.get(f"/api/jobs/{name}/logs").json()["logs"]
                if '"event": "ready"' in logs or status == "SUCCEEDED":
                    return
                if status in ("FAILED", "STOPPED"):
                    break
                time.sleep(0.5)
        raise SystemExit(f"job {name} is not ready: {logs[-2000:]}")


@contextlib.contextmanager
def pool(mode: str) -> Iterator[Pool]:
    """`moorage up` in a folder of its own, then `down`. `mode` is what `--serve-proxy` gets."""
    home = Path(tempfile.mkdtemp(prefix="mrgb-", dir="/tmp"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MOORAGE_"))}
    command = [sys.executable, "-P", "-m", "moorage.cli"]
    up = [*command, "up", "--home", str(home), "--port", str(free_port()), "--json", "--nodes", "1"]
    up += ["--serve-proxy", mode]
    try:
        done = subprocess.run(up, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd="/tmp")
        record = json.loads(done.stdout)
        serve = f"http://127.0.0.1:{record['settings']['serve_port']}"
        yield Pool(home, record["front_door"], serve)
    finally:
        subprocess.run(
            [*command, "down", "--home", str(home)], stdout=subprocess.DEVNULL, cwd="/tmp", check=False
        )
        shutil.rmtree(home, ignore_errors=True)


def prepared(pool: Pool, kept: Path) -> tuple[Path, list[str]]:
    """Features (made once by the features job), a registered model, July's requests: the bodies and the artifact."""
    if kept.is_dir():
        shutil.copytree(kept / "features", pool.home / "data" / "features")
    else:
        pool.submit("features", EXAMPLE, {}, "features.py")
        pool.wait("features")
        shutil.copytree(pool.home / "data" / "features", kept / "features")
    sys.path.insert(0, str(EXAMPLE))
    import flights_model
    from load import july

    from moorage.runtime.registry import Registry

    manifest = flights_model.read_manifest(pool.features)
    model = flights_model.build(manifest)
    flights_model.save(model, flights_model.card_of(model, manifest, {}, "v001", 0.2), pool.home / "model")
    registry = Registry(pool.home / "data")
    made = registry.register(
        "flights", pool.home / "model", metrics={}, data_version="v001", code_version="benchmark"
    )
    bodies = pool.home / "bodies.jsonl"
    bodies.write_bytes(b"\n".join(july(pool.features, 2000)[1]))
    return bodies, [made.name, str(made.version), str(made.path), made.sha256, str(pool.features)]


def figure(pool: Pool, bodies: Path, requests: int, concurrency: int, url: str) -> float:
    """One run of the client: p50 in milliseconds for one caller, requests/s for many. No failed request is accepted."""
    done = subprocess.run(
        [sys.executable, str(HERE / "_serve_client.py"), url, str(bodies), str(requests), str(concurrency)],
        env={**os.environ, "MOORAGE_TOKEN": pool.token},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    if found["errors"]:
        raise SystemExit(f"{url}: {found['failures']}")
    print(f"{url}: {found}", file=sys.stderr)
    return float(found["latency_ms"]["p50"] if concurrency == 1 else found["requests_per_s"])


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int, *, warm: int) -> dict[str, float]:
    """Each side's median of `rounds` runs, all asked in each round: what else the machine does falls on all."""
    seen: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(warm + rounds):
        for side, run in sides.items():
            found = run()
            if number >= warm:
                seen[side].append(found)
    return {side: statistics.median(found) for side, found in seen.items()}


def compare(pool: Pool, mode: str, bodies: Path, quick: bool) -> list[Figure]:
    """Ours, straight and through the front door, beside the better of the peers: which one that is, the name says."""
    requests, rounds = (300, 1) if quick else (2000, 3)
    urls = {
        "straight to Serve": f"{pool.serve}/default-flights",
        "through the front door": f"{pool.url}/endpoints/flights",
        **{peer: f"{pool.serve}/{peer}" for peer in PEERS},
    }
    better: Literal["higher", "lower"]
    found = []
    for metric, better, count, clients in (
        ("p50 ms, 1 client", "lower", requests // 5, 1),
        ("requests/s, 16 clients", "higher", requests, 16),
    ):
        runs = {side: partial(figure, pool, bodies, count, clients, url) for side, url in urls.items()}
        median = in_turn(runs, rounds, warm=0 if quick else 1)
        print(f"{mode}: {metric}: {median}", file=sys.stderr)
        best = (min if better == "lower" else max)(PEERS, key=median.__getitem__)
        for way, target in WAYS.items():
            found.append(
                Figure(
                    metric=f"{mode}, {way}: {metric}",
                    ours=median[way],
                    peer=median[best],
                    better=better,
                    peer_name=PEER.format(mode=mode, wait=PEERS[best]),
                    target=target,
                )
            )
    return found


def measure(quick: bool) -> list[Figure]:
    found: list[Figure] = []
    kept = Path(tempfile.mkdtemp(prefix="mrgb-")) / "kept"
    try:
        for mode in MODES:
            with pool(mode) as running:
                bodies, artifact = prepared(running, kept)
                both = f"models:/flights/{artifact[1]}"
                options = ("--champion", both, "--challenger", both)
                running.submit("serve", EXAMPLE, TWO_ON_ONE, "serve_models.py", *options)
                folder = running.home / "peer"
                shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
                shutil.copy(HERE / "_serve_peer.py", folder)
                running.submit("peer", folder, CPU_ONLY, "_serve_peer.py", *artifact)
                running.wait("serve")
                running.wait("peer")
                found += compare(running, mode, bodies, quick)
    finally:
        shutil.rmtree(kept.parent, ignore_errors=True)
    return found


if __name__ == "__main__":
    raise SystemExit(main(measure, "the flights endpoint beside the same model on bare Ray Serve"))
