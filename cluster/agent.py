"""The child process that holds the pool's one Ray driver connection, and answers for it on a Unix socket.

Run as `python -m moorage.cluster.agent --home H`. The control plane must not be a Ray driver (a driver dies
with the GCS); this process is one, keeps nothing of its own, and may die at any time: its supervisor starts
it again.

    GET  /health       200 {"ray_address", "ray_version"} while Ray answers, 503 otherwise
    GET  /observe      {"at_ns", "nodes": [ObservedNode as JSON]}
    GET  /serve        {"state": "starting"|"running"|"failed", "url", "error"}
    POST /serve/start  the same, after asking for Serve once more
    GET  /holdings     who holds GPUs: scheduling.guard.Seen as JSON, 503 otherwise; ?devices=yes: and which
                       processes are on the nodes' devices
    POST /end          {"target", "id", "owner"}: end exactly that; 200 also when it is gone
    POST /unbegun      {"submission_id"}: end that attempt if Ray has not begun it
    POST /scale        backend.ScaleAsk as JSON: what Ray's autoscaler shall make of the cluster

Serve is started here, in the background, so that Ray books its controller and replicas under this driver and
not under the first team that deploys something.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web

from moorage.cluster.backend import ObservedNode
from moorage.cluster.binding import DEVICE_MIB_LABEL, GPU_MODEL_LABEL, NODE_LABEL
from moorage.cluster.paths import ClusterPaths, read_json, write_json
from moorage.cluster.probing import Probe
from moorage.cluster.watching import Watcher
from moorage.scheduling.guard import Target

LOG = logging.getLogger("moorage.cluster.agent")
NAMESPACE = "moorage"
ANSWER_WITHIN_S = 5.0
GIVE_UP_AFTER_S = 20.0
CLUSTER_WITHIN_S = 120.0
ACCELERATOR_LABEL = "ray.io/accelerator-type"
HEAD_RESOURCE = "node:__internal_head__"
MIB = 1024 * 1024


def observed_node(raw: Mapping[str, Any], free: Mapping[str, float]) -> ObservedNode:
    """One entry of `ray.nodes()` with what is free on it, in our integers."""
    labels, resources = dict(raw.get("Labels") or {}), raw.get("Resources") or {}
    memory = labels.get(DEVICE_MIB_LABEL, "0")
    return ObservedNode(
        name=labels.get(NODE_LABEL) or f"ray-{raw['NodeID'][:12]}",
        ray_node_id=raw["NodeID"],
        address=raw.get("NodeManagerAddress") or "",
        alive=bool(raw["Alive"]),
        is_head=HEAD_RESOURCE in resources,
        gpu_model=labels.get(GPU_MODEL_LABEL) or labels.get(ACCELERATOR_LABEL, ""),
        devices=int(resources.get("GPU", 0)),
        device_mib=int(memory) if memory.isdigit() else 0,
        milli_cpu=round(resources.get("CPU", 0) * 1000),
        mib=int(resources.get("memory", 0)) // MIB,
        labels=labels,
        free_milli_gpu=round(free.get("GPU", 0) * 1000),
        free_milli_cpu=round(free.get("CPU", 0) * 1000),
    )


def one_per_name(nodes: Sequence[ObservedNode]) -> list[ObservedNode]:
    """Ray remembers dead incarnations: of nodes with one name keep the living, else the last. Sorted by
    name."""
    chosen: dict[str, ObservedNode] = {}
    for node in nodes:
        if node.alive or not (node.name in chosen and chosen[node.name].alive):
            chosen[node.name] = node
    return [chosen[name] for name in sorted(chosen)]


class Agent:
    """Calls to Ray run in one thread, so a GCS that hangs can hold up only that thread; answers then are
    503."""

    def __init__(self, paths: ClusterPaths, serve_port: int | None) -> None:
        self._paths, self._serve_port = paths, serve_port
        self._calls = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray")
        self._serve_calls = ThreadPoolExecutor(max_workers=1, thread_name_prefix="serve")
        self._guard_calls = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guard")
        self._package_calls = ThreadPoolExecutor(max_workers=1, thread_name_prefix="package")
        self._watcher = Watcher()
        self._probe = Probe()
        self._serve: dict[str, str] = {"state": "starting", "url": "", "error": ""}
        self._ray_address = self._ray_version = ""
        self._last_answer = time.monotonic()

    def connect(self, address: str) -> None:
        """Join Ray as a driver; raises what Ray raises. Completes ray.json when the cluster is not ours."""
        import ray

        from moorage.cluster import rayapi

        self._ray_version = rayapi.check_version()
        context = ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=False,
        )
        # Ray's own handler would wait for calls in flight, for ever when the GCS is gone. Nothing here needs
        # an orderly end: the kernel may end this process at once.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._ray_address = address
        known = read_json(self._paths.ray_json) or {}
        if not known.get("dashboard"):
            known |= {"ray_address": address, "ray_version": self._ray_version}
            known["dashboard"] = rayapi.dashboard_url(context)
            write_json(self._paths.ray_json, known)

    def _observe(self) -> dict[str, Any]:
        import ray

        from moorage.cluster import rayapi

        at_ns = time.time_ns()
        free, rows = rayapi.available_per_node(), ray.nodes()
        gone = self._probe.gone(
            {
                row["NodeID"]: (row["NodeManagerAddress"], row["NodeManagerPort"])
                for row in rows
                if row["Alive"]
            }
        )
        rows = [{**row, "Alive": row["Alive"] and row["NodeID"] not in gone} for row in rows]
        nodes = [observed_node(raw, free.get(raw["NodeID"], {})) for raw in rows]
        return {"at_ns": at_ns, "nodes": [asdict(node) for node in one_per_name(nodes)]}

    def _start_serve(self) -> None:
        from ray import serve

        from moorage.cluster import rayapi

        if self._serve_port is None:
            self._serve = {"state": "failed", "url": "", "error": "no --serve-port was given"}
            return
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": "127.0.0.1", "port": self._serve_port},
                logging_config={"enable_access_log": False},
            )
            self._serve = {"state": "running", "url": rayapi.serve_url(), "error": ""}
            LOG.info("Serve answers at %s", self._serve["url"])
        except Exception as error:
            LOG.exception("Serve did not start")
            self._serve = {"state": "failed", "url": "", "error": f"{type(error).__name__}: {error}"}

    async def _ask(self, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        answer = await asyncio.wait_for(loop.run_in_executor(self._calls, call), ANSWER_WITHIN_S)
        self._last_answer = time.monotonic()
        return answer

    async def observe(self, _: web.Request) -> web.Response:
        try:
            return web.json_response(await self._ask(self._observe))
        except Exception as error:
            LOG.warning("Ray does not answer: %r", error)
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=503)

    async def health(self, request: web.Request) -> web.Response:
        answer = await self.observe(request)
        if answer.status != 200:
            return answer
        return web.json_response({"ray_address": self._ray_address, "ray_version": self._ray_version})

    async def serve_state(self, _: web.Request) -> web.Response:
        return web.json_response(self._serve)

    async def serve_start(self, _: web.Request) -> web.Response:
        if self._serve["state"] != "running":
            self._serve = {"state": "starting", "url": "", "error": ""}
            await asyncio.get_running_loop().run_in_executor(self._serve_calls, self._start_serve)
        return web.json_response(self._serve, status=200 if self._serve["state"] == "running" else 503)

    async def holdings(self, request: web.Request) -> web.Response:
        devices = request.query.get("devices") == "yes"
        return await self._guarded(lambda: self._watcher.look(devices))

    async def end(self, request: web.Request) -> web.Response:
        asked = await request.json()
        target, key, owner = Target(asked["target"]), str(asked["id"]), str(asked["owner"])

        def end() -> dict[str, Any]:
            self._watcher.end(target, key, owner)
            return {}

        return await self._guarded(end)

    async def unbegun(self, request: web.Request) -> web.Response:
        from moorage.cluster import rayjobs

        key = str((await request.json())["submission_id"])
        return await self._guarded(lambda: {"ended": rayjobs.end_unbegun(key)})

    async def package(self, request: web.Request) -> web.Response:
        """Hand a package to Ray: 413 when it is more than Ray takes, 503 when Ray does not take it now."""
        from moorage.cluster import rayapi

        asked = await request.json()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(
                self._package_calls, rayapi.store_package, str(asked["uri"]), Path(asked["path"])
            )
        except Exception as error:
            LOG.warning("a package was not stored: %r", error)
            status = 413 if isinstance(error, ValueError) else 503
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=status)
        return web.json_response({})

    async def scale(self, request: web.Request) -> web.Response:
        asked = await request.json()

        def scale() -> dict[str, Any]:
            from moorage.cluster import rayscale

            rayscale.want(asked["nodes"])
            for node in asked["release"]:
                rayscale.release(node)
            return {}

        return await self._guarded(scale)

    async def _guarded(self, call: Callable[[], dict[str, Any]]) -> web.Response:
        loop = asyncio.get_running_loop()
        try:
            answer = await asyncio.wait_for(loop.run_in_executor(self._guard_calls, call), ANSWER_WITHIN_S)
        except Exception as error:
            LOG.warning("the guard got no answer from Ray: %r", error)
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=503)
        return web.json_response(answer)

    async def _watch(self) -> None:
        """End the process when Ray has not answered for long: a fresh one connects afresh."""
        while True:
            await asyncio.sleep(GIVE_UP_AFTER_S / 4)
            try:
                await self._ask(self._observe)
            except Exception as error:
                LOG.warning("Ray does not answer: %r", error)
            if time.monotonic() - self._last_answer > GIVE_UP_AFTER_S:
                LOG.error("Ray has not answered for %.0f s: leaving", GIVE_UP_AFTER_S)
                os._exit(3)  # the Ray thread may hang in the core worker: an orderly exit would wait for it

    async def run(self) -> None:
        """Answer until the process is told to end."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/health", self.health),
                web.get("/observe", self.observe),
                web.get("/serve", self.serve_state),
                web.post("/serve/start", self.serve_start),
                web.get("/holdings", self.holdings),
                web.post("/end", self.end),
                web.post("/unbegun", self.unbegun),
                web.post("/package", self.package),
                web.post("/scale", self.scale),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._paths.agent_sock.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(self._paths.agent_sock)).start()
        finally:
            os.umask(before)
        LOG.info("connected to %s, answering on %s", self._ray_address, self._paths.agent_sock.name)
        serving = asyncio.get_running_loop().run_in_executor(self._serve_calls, self._start_serve)
        try:
            await asyncio.gather(self._watch(), serving)
        finally:
            await runner.cleanup()


def _await_address(paths: ClusterPaths) -> str:
    """The GCS of the cluster that is being started beside us; "" when it does not come."""
    deadline = time.monotonic() + CLUSTER_WITHIN_S
    while time.monotonic() < deadline:
        address = str((read_json(paths.ray_json) or {}).get("ray_address") or "")
        if address:
            return address
        time.sleep(0.1)
    return ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m moorage.cluster.agent")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--address", help="the GCS, host:port; default: what H/ray.json says")
    parser.add_argument("--serve-port", type=int)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    paths = ClusterPaths(options.home)
    import ray  # noqa: F401 - takes seconds, and the raylets are starting meanwhile

    address = options.address or _await_address(paths)
    if not address:
        LOG.error("no --address, and no cluster has written %s", paths.ray_json.name)
        return 2
    agent = Agent(paths, options.serve_port)
    agent.connect(address)
    asyncio.run(agent.run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
