"""A thin client of the front door, for jobs and for the command line. httpx only: no Ray, no database.

    with moorage.lease(gpus=1, timeout=120) as room:
        ...   # room.workers says which devices on which nodes

Times are nanoseconds since 1970 and seconds for timeouts; GPUs are given as Ray gives them (0.5, 1, 2).
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from uuid import uuid4

import httpx

from moorage.cluster.binding import LeaseView, decode
from moorage.errors import (
    InvalidRequest,
    LeaseTimeout,
    MoorageError,
    NotFound,
    Unavailable,
)
from moorage.runtime import answers
from moorage.runtime.asking import (
    HOME_VARIABLE,
    TOKEN_VARIABLE,
    URL_VARIABLE,
    error_of,
    front_door,
    segment,
)
from moorage.runtime.asking import token as read_token

log = logging.getLogger("moorage.client")


class Client:
    """One connection to a front door. Not for use from several threads at once."""

    def __init__(self, url: str, token: str, *, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            trust_env=False,
        )

    @classmethod
    def from_env(cls, home: Path | None = None, principal: str = "admin") -> Self:
        """From MOORAGE_URL and MOORAGE_TOKEN (a job has both), else from the pool's folder.

        An explicit `home` (or a `principal` other than admin) beats the environment.
        Raises `NotFound` (code `pool-not-up`) when there is neither, `Unauthenticated` without a token.
        """
        url, token = os.environ.get(URL_VARIABLE), os.environ.get(TOKEN_VARIABLE)
        explicit = home is not None or principal != "admin"
        if url and token and not explicit:
            return cls(url, token)
        where = Path(os.path.expanduser(home or os.environ.get(HOME_VARIABLE) or "~/.moorage"))
        found = (url if home is None else None) or front_door(where)
        return cls(found, (token if not explicit else None) or read_token(where, principal))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The JSON answer; the `MoorageError` that the front door's problem document stands for otherwise."""
        limit = httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s, connect=5.0)
        try:
            answer = self._http.request(
                method, path, json=body, params=dict(query or {}), headers=dict(headers or {}), timeout=limit
            )
        except httpx.TimeoutException as error:
            raise Unavailable(
                f"The front door at {self.url} did not answer in time", why=type(error).__name__
            ) from error
        except httpx.HTTPError as error:
            raise Unavailable(
                f"The front door at {self.url} cannot be reached",
                why=str(error) or type(error).__name__,
                todo="start the pool with `moorage up`, or correct MOORAGE_URL",
                code="front-door-unreachable",
            ) from error
        if answer.is_error:
            raise error_of(answer)
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise Unavailable(f"{self.url} does not answer like a front door") from error

    def status(self) -> dict[str, Any]:
        return _object(self.request("GET", "/moorage/v1/status"))

    def metrics(self) -> str:
        """The pool's metrics in Prometheus' text format."""
        try:
            answer = self._http.get("/metrics")
        except httpx.HTTPError as error:
            raise Unavailable(f"The front door at {self.url} cannot be reached", why=str(error)) from error
        if answer.is_error:
            raise error_of(answer)
        return answer.text

    def whoami(self) -> answers.WhoAmI:
        """Whose token this client has."""
        return cast(answers.WhoAmI, _object(self.request("GET", "/moorage/v1/whoami")))

    def jobs(self, state: str | None = None, limit: int = 200) -> list[answers.Job]:
        """Of the caller's teams, newest first."""
        query: dict[str, str | int] = {"limit": limit} | ({"state": state} if state else {})
        return cast(list[answers.Job], _objects(self.request("GET", "/moorage/v1/jobs", query=query)))

    def job(self, job_id: str) -> answers.Job:
        """With its attempts. `NotFound` also for other teams' jobs."""
        return cast(answers.Job, _object(self.request("GET", f"/moorage/v1/jobs/{segment(job_id)}")))

    def why(self, job_id: str) -> answers.Why:
        """The job, why it waits, what would start it now, and what it holds."""
        return cast(answers.Why, _object(self.request("GET", f"/moorage/v1/jobs/{segment(job_id)}/why")))

    def events(
        self, job_id: str | None = None, after: int = 0, limit: int = 100, last: int = 0
    ) -> list[answers.Event]:
        """The oldest `limit` events after `after`; with `last` the newest so many of them instead. In order."""
        path = "/moorage/v1/events" if job_id is None else f"/moorage/v1/jobs/{segment(job_id)}/events"
        query = {"after": after} | ({"last": last} if last else {"limit": limit})
        return cast(list[answers.Event], _objects(self.request("GET", path, query=query)))

    def quotas(self) -> answers.Quotas:
        """`version` and `file`: the tree of teams in force, as a teams file says it."""
        return cast(answers.Quotas, _object(self.request("GET", "/moorage/v1/quotas")))

    def put_quotas(
        self, text: str, base: int | None = None, force: bool = False, dry_run: bool = False
    ) -> answers.QuotasPut:
        """Put a teams file (YAML) in force: `version`, `applied`, `changes`. `base`: only if that version still is."""
        body = {"file": text, "base": base, "force": force, "dry_run": dry_run}
        return cast(answers.QuotasPut, _object(self.request("PUT", "/moorage/v1/quotas", body=body)))

    def drain(self, node: str, why: str = "") -> answers.Drained:
        """Let a node take nothing new; `jobs` are those that still hold a part of it."""
        path = f"/moorage/v1/nodes/{segment(node)}/drain"
        return cast(answers.Drained, _object(self.request("POST", path, body={"why": why})))

    def undrain(self, node: str) -> answers.Drained:
        path = f"/moorage/v1/nodes/{segment(node)}/drain"
        return cast(answers.Drained, _object(self.request("DELETE", path)))

    def usage(self, minutes: int = 60, points: int = 60) -> answers.Usage:
        """GPUs held by each team over the last `minutes`, as means over `points` equal parts of them."""
        query = {"minutes": minutes, "points": points}
        return cast(answers.Usage, _object(self.request("GET", "/moorage/v1/usage", query=query)))

    def cost(self) -> dict[str, Any]:
        return _object(self.request("GET", "/moorage/v1/cost"))

    def guard(self) -> answers.GuardReport:
        """What the guard found, and what it does about it."""
        return cast(answers.GuardReport, _object(self.request("GET", "/moorage/v1/guard")))

    def ray_dashboard(self) -> answers.RayView:
        """A view of Ray's dashboard; the cookie that opens it stays with this client."""
        return cast(answers.RayView, _object(self.request("POST", "/moorage/v1/ray-dashboard")))

    def openapi(self) -> dict[str, Any]:
        """The description of these routes."""
        return _object(self.request("GET", "/moorage/v1/openapi.json"))

    def submit(self, body: Mapping[str, Any], idempotency_key: str | None = None) -> str:
        """`body` is that of Ray's `POST /api/jobs/`; the job id."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return str(self.request("POST", "/api/jobs/", body=body, headers=headers)["submission_id"])

    def stop(self, job_id: str) -> bool:
        return bool(self.request("POST", f"/api/jobs/{segment(job_id)}/stop")["stopped"])

    def logs(self, job_id: str) -> str:
        return str(self.request("GET", f"/api/jobs/{segment(job_id)}/logs", timeout_s=600)["logs"])

    def has_package(self, name: str) -> bool:
        """Whether this caller has uploaded the package of that name."""
        try:
            self.request("GET", f"/api/packages/gcs/{segment(name)}")
        except NotFound:
            return False
        return True

    def upload(self, name: str, archive: Path) -> None:
        """Send an archive; streamed from the disk."""
        with open(archive, "rb") as body:
            size = str(archive.stat().st_size)
            try:
                answer = self._http.put(
                    f"/api/packages/gcs/{segment(name)}",
                    content=iter(lambda: body.read(1 << 20), b""),
                    headers={"Content-Length": size},
                    timeout=600,
                )
            except httpx.HTTPError as error:
                raise Unavailable("The upload broke off", why=str(error) or type(error).__name__) from error
        if answer.is_error:
            raise error_of(answer)

    def notice(self, job_id: str, wait_s: int = 0) -> answers.Notice | None:
        """The notice to leave that a job was given; waits up to `wait_s` seconds (60 at most) for one."""
        path = f"/moorage/v1/jobs/{segment(job_id)}/notice"
        found = self.request("GET", path, query={"wait_s": wait_s}, timeout_s=wait_s + 30)
        return cast(answers.Noticed, _object(found))["notice"]

    def lease_now(self, job_id: str, after: str = "", wait_s: int = 0) -> answers.HeldLease | None:
        """A running job's lease as it is now, None while it holds nothing. With `after`, its last `version`: when it is
        another, or after `wait_s` seconds (60 at most)."""
        path = f"/moorage/v1/jobs/{segment(job_id)}/lease"
        query: dict[str, str | int] = {"wait_s": wait_s} | ({"after": after} if after else {})
        found = self.request("GET", path, query=query, timeout_s=wait_s + 30)
        return cast(answers.LeaseAnswer, _object(found))["now"]

    def follow_lease(
        self, job_id: str, *, follows: bool = True, workers: int | None = None, wants: int | None = None
    ) -> bool:
        """Say that a running job follows its lease, holds no more than its first `workers`, has use for `wants`.
        Whether the lease is that small now."""
        body = {"follows": follows, "workers": workers, "wants": wants}
        path = f"/moorage/v1/jobs/{segment(job_id)}/lease"
        return bool(self.request("POST", path, body=body)["resized"])

    def answer_notice(self, job_id: str, said: str, step: int | None = None) -> bool:
        """Record that a job `checkpointed` or is `leaving` on its notice; False when it has none."""
        body = {"said": said} | ({} if step is None else {"step": step})
        path = f"/moorage/v1/jobs/{segment(job_id)}/notice"
        return bool(self.request("POST", path, body=body)["recorded"])

    def publish_endpoint(
        self, name: str, app: str, route: str, job_id: str | None = None
    ) -> answers.Endpoint:
        """Publish the caller's Serve application under `/endpoints/<name>/`."""
        body = {"name": name, "app": app, "route": route} | ({"job_id": job_id} if job_id else {})
        return cast(answers.Endpoint, _object(self.request("POST", "/moorage/v1/endpoints", body=body)))

    def report_replicas(self, name: str, said: Mapping[str, Any]) -> answers.Reported:
        """Say what there is of the replicas of an endpoint of the caller's; the endpoint, with why more wait."""
        path = f"/moorage/v1/endpoints/{segment(name)}/replicas"
        return cast(answers.Reported, _object(self.request("PUT", path, body=said)))

    def endpoints(self) -> list[answers.Endpoint]:
        return cast(list[answers.Endpoint], _objects(self.request("GET", "/moorage/v1/endpoints")))

    def grow(
        self,
        *,
        workers: int = 1,
        gpus: float = 0,
        gpu_memory_mib: int = 0,
        cpus: float = 1,
        timeout_s: float = 60,
        job_id: str | None = None,
        name: str = "",
    ) -> LeaseView:
        """Wait for `workers` equal pieces, each with `gpus` and `cpus` on one node; hold none while waiting.

        Raises `LeaseTimeout` with the reason it waited, `Infeasible` when it can never come, `InvalidRequest`.
        While the front door restarts it is asked again until the timeout is over.
        """
        deadline = time.monotonic() + timeout_s
        body = {
            "workers": workers,
            "milli_gpu": milli("gpus", gpus),
            "gpu_mib": gpu_memory_mib,
            "milli_cpu": milli("cpus", cpus),
            "name": name or f"ask-{uuid4().hex}",  # asked again after a lost answer, it is the same ask
        } | ({"job_id": job_id} if job_id else {})
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                answer = self.request(
                    "POST", "/moorage/v1/leases", body={**body, "timeout_s": left}, timeout_s=left + 30
                )
                return decode(json.dumps(answer["lease"]))
            except Unavailable as error:
                if time.monotonic() + 1.0 >= deadline:
                    raise LeaseTimeout("No lease was granted", why=str(error)) from error
                time.sleep(1.0)

    def withdraw(self, job_id: str, name: str) -> bool:
        """End the named ask of a `grow` that waits elsewhere, or was just granted; False when there is none."""
        path = f"/moorage/v1/jobs/{segment(job_id)}/asks/{segment(name)}"
        return bool(self.request("DELETE", path)["released"])

    def release(self, lease_id: str) -> bool:
        return bool(self.request("DELETE", f"/moorage/v1/leases/{segment(lease_id)}")["released"])


@contextmanager
def lease(
    *,
    gpus: float = 0,
    gpu_memory_mib: int = 0,
    cpus: float = 1,
    workers: int = 1,
    timeout: float = 60,
    name: str = "",
    client: Client | None = None,
) -> Iterator[LeaseView]:
    """Grow this job's lease for the length of a `with` block.

    `workers` pieces come together or not at all, each with `gpus` (0.5, 1, 2, ...), `gpu_memory_mib` per device
    and `cpus` on one node. Yields the placements (`moorage.cluster.binding.LeaseView`). Gives them back at the
    end, whatever happens; should that fail, they end with the job. Raises `LeaseTimeout` after `timeout` seconds.
    """
    own = Client.from_env() if client is None else client
    try:
        view = own.grow(
            workers=workers, gpus=gpus, gpu_memory_mib=gpu_memory_mib, cpus=cpus, timeout_s=timeout, name=name
        )
        try:
            yield view
        finally:
            try:
                own.release(view.lease_id)
            except MoorageError as error:
                log.warning("lease %s was not given back now; it ends with the job: %s", view.lease_id, error)
    finally:
        if client is None:
            own.close()


def milli(what: str, amount: float) -> int:
    """Thousandths; refuses what is not a finite amount with at most three decimals."""
    if (
        isinstance(amount, bool)
        or not isinstance(amount, int | float)
        or not math.isfinite(amount)
        or amount < 0
    ):
        raise InvalidRequest(
            f"{what}={amount!r} is not an amount", todo="give a number from 0", code="bad-amount"
        )
    whole = round(amount * 1000)
    if abs(amount * 1000 - whole) > 1e-6:
        raise InvalidRequest(f"{what}={amount!r} has more than three decimals", code="bad-amount")
    return whole


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unavailable("The front door's answer is not an object")
    return value


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise Unavailable("The front door's answer is not a list")
    return value
