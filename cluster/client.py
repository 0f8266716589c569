"""The backend on a real cluster: nodes from the agent's Unix socket, jobs from Ray's Jobs HTTP API. No Ray
import.

Effects are idempotent by the attempt's submission id *and* a digest of what was launched. Ray answers a
duplicate id with HTTP 500 and a traceback in the body, so after any answer that is not plain success the job
itself is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import httpx

from moorage.cluster.backend import (
    DIGEST_KEY,
    BackendUnavailable,
    DeviceRule,
    Launch,
    LaunchRefused,
    Observation,
    ObservedJob,
    ObservedNode,
    PackageRef,
    ScaleAsk,
    allowed,
    digest,
    seen_from,
)
from moorage.cluster.paths import ClusterPaths, read_json
from moorage.scheduling.guard import Seen, Target

AGENT_TIMEOUT = httpx.Timeout(8.0)
RAY_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
PACKAGE_TIMEOUT = httpx.Timeout(180.0, connect=5.0)
DASHBOARD_TAKES = 100 << 20
"""Bytes of one request that Ray's dashboard reads (`DASHBOARD_CLIENT_MAX_SIZE`); larger packages go past it."""
_CHUNK = 1 << 20
_BAD_REQUEST_MARKS = ("status code 400", "ValueError", "TypeError", "RuntimeEnvSetupError")


class RayBackend:
    """For one thread, but for `stage`. `home` is the pool's home; addresses are read from its ray.json when
    needed."""

    device_rule = DeviceRule.RAYLET

    def __init__(self, home: Path) -> None:
        self.permit: Callable[[], None] = allowed
        self._paths = ClusterPaths(home)
        transport = httpx.HTTPTransport(uds=str(self._paths.agent_sock))
        self._agent = httpx.Client(transport=transport, base_url="http://agent", timeout=AGENT_TIMEOUT)
        self._ray = httpx.Client(timeout=RAY_TIMEOUT, trust_env=False)

    def close(self) -> None:
        self._agent.close()
        self._ray.close()

    # -- what the protocol asks for

    def observe(self) -> Observation:
        seen = self._ask_agent("GET", "/observe")
        jobs = self._ask_ray("GET", "/api/jobs/")
        if jobs.status_code != 200:
            self._unavailable(jobs)
        return Observation(
            at_ns=int(seen["at_ns"]),
            nodes=tuple(ObservedNode(**node) for node in seen["nodes"]),
            jobs=tuple(_observed_job(raw) for raw in jobs.json() if raw.get("submission_id")),
        )

    def stage(self, package: PackageRef) -> None:
        self._put(package)  # httpx's clients may be shared by threads

    def launch(self, launch: Launch) -> None:
        for package in launch.packages:
            self._put(package)
        content = digest(launch)
        body = {
            "entrypoint": launch.entrypoint,
            "submission_id": launch.submission_id,
            "runtime_env": dict(launch.runtime_env),
            "metadata": {**launch.metadata, DIGEST_KEY: content},
            "entrypoint_num_cpus": launch.entrypoint_num_cpus,
            "entrypoint_num_gpus": launch.entrypoint_num_gpus,
            "entrypoint_memory": launch.entrypoint_memory,
            "entrypoint_resources": _plain(launch.entrypoint_resources),
            "entrypoint_label_selector": _plain(launch.entrypoint_label_selector),
        }
        self.permit()
        answer = self._ask_ray("POST", "/api/jobs/", json=body)
        if answer.status_code == 200:
            return
        existing = self._job(launch.submission_id)
        if existing is not None:
            self._same_content(launch.submission_id, existing, content)
            return
        if answer.status_code < 500 or any(mark in answer.text for mark in _BAD_REQUEST_MARKS):
            raise LaunchRefused(
                f"Ray refuses attempt {launch.submission_id}",
                why=_last_line(answer.text),
                todo="correct the job's runtime_env or entrypoint resources and submit it again",
            )
        self._unavailable(answer)

    def stop(self, submission_id: str) -> None:
        self.permit()
        answer = self._ask_ray("POST", f"/api/jobs/{submission_id}/stop")
        if answer.status_code not in (200, 404):
            self._unavailable(answer)
        if (self._job(submission_id) or {}).get("status") == "PENDING":  # nobody there to hear it
            self._ask_agent("POST", "/unbegun", json={"submission_id": submission_id})

    def forget(self, submission_id: str) -> None:
        self.permit()
        answer = self._ask_ray("DELETE", f"/api/jobs/{submission_id}")
        if answer.status_code not in (200, 404):
            self._unavailable(answer)

    def holdings(self, devices: bool = False) -> Seen:
        return seen_from(self._ask_agent("GET", "/holdings", params={"devices": "yes"} if devices else None))

    def end(self, target: Target, key: str, owner: str) -> None:
        body = {"target": str(target), "id": key, "owner": owner}
        self.permit()
        self._ask_agent("POST", "/end", json=body)

    def scale(self, ask: ScaleAsk) -> None:
        self.permit()
        self._ask_agent("POST", "/scale", json=asdict(ask))

    # -- beyond the protocol

    def dashboard(self) -> str:
        """The dashboard's URL without a trailing slash; raises `BackendUnavailable` while no cluster is
        known."""
        known = read_json(self._paths.ray_json) or {}
        url = str(known.get("dashboard") or "")
        if not url:
            raise BackendUnavailable("the Ray cluster is not up yet", todo="try again in a few seconds")
        return url

    def headers(self) -> dict[str, str]:
        """What authenticates to Ray itself. Never to be handed to a user."""
        try:
            token = self._paths.ray_token.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return {}
        return {"Authorization": f"Bearer {token}"}

    def serve(self) -> dict[str, str]:
        """Serve as the agent knows it: `state` (starting, running, failed), `url`, `error`."""
        return {key: str(value) for key, value in self._ask_agent("GET", "/serve").items()}

    # -- wires

    def _put(self, package: PackageRef) -> None:
        """Upload unless Ray has it: unreferenced packages expire there, so this comes before every launch."""
        path = "/api/packages/" + package.uri.replace("://", "/", 1)
        if self._ask_ray("GET", path).status_code == 200:
            return
        self.permit()
        try:
            size = package.path.stat().st_size
            if size > DASHBOARD_TAKES:
                self._put_large(package)
                return
            with open(package.path, "rb") as body:  # streamed: this process never holds a package
                answer = self._ask_ray(
                    "PUT",
                    path,
                    content=iter(lambda: body.read(_CHUNK), b""),
                    headers={"Content-Length": str(size)},
                    timeout=PACKAGE_TIMEOUT,
                )
        except FileNotFoundError as error:
            raise LaunchRefused(
                f"the spooled package {package.uri} is gone", todo="submit the job again"
            ) from error
        if answer.status_code != 200:
            self._unavailable(answer)

    def _put_large(self, package: PackageRef) -> None:
        body = {"uri": package.uri, "path": str(package.path)}
        answer = self._to_agent("POST", "/package", json=body, timeout=PACKAGE_TIMEOUT)
        if answer.status_code == 413:
            raise LaunchRefused(
                f"Ray does not take the package {package.uri}",
                why=str(answer.json()["error"])[:300],
                todo="leave data out (.rayignore, runtime_env excludes) and read it from shared storage",
            )
        if answer.status_code != 200:
            self._unavailable(answer)

    def _job(self, submission_id: str) -> dict[str, Any] | None:
        answer = self._ask_ray("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            self._unavailable(answer)
        raw: dict[str, Any] = answer.json()
        return raw

    @staticmethod
    def _same_content(submission_id: str, existing: dict[str, Any], content: str) -> None:
        if (existing.get("metadata") or {}).get(DIGEST_KEY) != content:
            raise LaunchRefused(
                f"Ray has another job under the id {submission_id}",
                why="its content differs from what this pool would launch",
                todo="delete that job on Ray, or submit under another id",
            )

    def _to_agent(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return self._agent.request(method, path, **more)
        except httpx.TransportError as error:
            raise BackendUnavailable(
                "the agent does not answer", why=f"{type(error).__name__}: {error}", todo="see logs/agent.log"
            ) from error

    def _ask_agent(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        answer = self._to_agent(method, path, **more)
        if answer.status_code != 200:
            self._unavailable(answer)
        found: dict[str, Any] = answer.json()
        return found

    def _ask_ray(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        named = {**(headers or {}), **self.headers()}
        try:
            return self._ray.request(method, self.dashboard() + path, headers=named, **more)
        except httpx.TransportError as error:
            raise BackendUnavailable(
                "Ray's dashboard does not answer",
                why=f"{type(error).__name__}: {error}",
                todo="see logs/ray.log",
            ) from error

    @staticmethod
    def _unavailable(answer: httpx.Response) -> NoReturn:
        raise BackendUnavailable(
            f"{answer.request.method} {answer.request.url.path} answered {answer.status_code}",
            why=_last_line(answer.text),
            todo="it is tried again",
        )


def _plain(mapping: Any) -> dict[str, Any] | None:
    return None if mapping is None else dict(mapping)


def _last_line(text: str) -> str:
    """The end of a traceback says what was wrong; at most 500 characters."""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _observed_job(raw: dict[str, Any]) -> ObservedJob:
    return ObservedJob(
        submission_id=raw["submission_id"],
        status=raw["status"],
        # A job that could not start carries a traceback; its first sentence already quotes the error.
        message=(raw.get("message") or "").partition(" Full traceback:")[0],
        start_ms=raw.get("start_time"),
        end_ms=raw.get("end_time"),
        driver_exit_code=raw.get("driver_exit_code"),
    )
