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
from typing import Any, Self
from uuid import uuid4

import httpx

from moorage.cluster.binding import LeaseView, decode
from moorage.errors import (
    Conflict,
    Forbidden,
    Infeasible,
    InvalidRequest,
    LeaseTimeout,
    MoorageError,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

log = logging.getLogger("moorage.client")
URL_VARIABLE, TOKEN_VARIABLE, HOME_VARIABLE = "MOORAGE_URL", "MOORAGE_TOKEN", "MOORAGE_HOME"
_BY_STATUS: dict[int, type[MoorageError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    408: LeaseTimeout,
    409: Conflict,
    413: TooLarge,
    422: Infeasible,
    503: Unavailable,
}


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
        found = (url if home is None else None) or _front_door(where)
        return cls(found, (token if not explicit else None) or _token(where, principal))

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

    def jobs(self, state: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
        query: dict[str, str | int] = {"limit": limit} | ({"state": state} if state else {})
        return _objects(self.request("GET", "/moorage/v1/jobs", query=query))

    def job(self, job_id: str) -> dict[str, Any]:
        return _object(self.request("GET", f"/moorage/v1/jobs/{_segment(job_id)}"))

    def why(self, job_id: str) -> dict[str, Any]:
        """The job, why it waits, what would start it now, and what it holds."""
        return _object(self.request("GET", f"/moorage/v1/jobs/{_segment(job_id)}/why"))

    def events(
        self, job_id: str | None = None, after: int = 0, limit: int = 100, last: int = 0
    ) -> list[dict[str, Any]]:
        """The oldest `limit` events after `after`; with `last` the newest so many of them instead. In order."""
        path = "/moorage/v1/events" if job_id is None else f"/moorage/v1/jobs/{_segment(job_id)}/events"
        return _objects(
            self.request("GET", path, query={"after": after} | ({"last": last} if last else {"limit": limit}))
        )

    def quotas(self) -> dict[str, Any]:
        """`version` and `file`: the tree of teams in force, as a teams file says it."""
        return _object(self.request("GET", "/moorage/v1/quotas"))

    def put_quotas(
        self, text: str, base: int | None = None, force: bool = False, dry_run: bool = False
    ) -> dict[str, Any]:
        """Put a teams file (YAML) in force: `version`, `applied`, `changes`. `base`: only if that version still is."""
        body = {"file": text, "base": base, "force": force, "dry_run": dry_run}
        return _object(self.request("PUT", "/moorage/v1/quotas", body=body))

    def drain(self, node: str, why: str = "") -> dict[str, Any]:
        """Let a node take nothing new; `jobs` are those that still hold a part of it."""
        return _object(self.request("POST", f"/moorage/v1/nodes/{_segment(node)}/drain", body={"why": why}))

    def undrain(self, node: str) -> dict[str, Any]:
        return _object(self.request("DELETE", f"/moorage/v1/nodes/{_segment(node)}/drain"))

    def cost(self) -> dict[str, Any]:
        return _object(self.request("GET", "/moorage/v1/cost"))

    def guard(self) -> dict[str, Any]:
        """What the guard found, and what it does about it."""
        return _object(self.request("GET", "/moorage/v1/guard"))

    def submit(self, body: Mapping[str, Any], idempotency_key: str | None = None) -> str:
        """`body` is that of Ray's `POST /api/jobs/`; the job id."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return str(self.request("POST", "/api/jobs/", body=body, headers=headers)["submission_id"])

    def stop(self, job_id: str) -> bool:
        return bool(self.request("POST", f"/api/jobs/{_segment(job_id)}/stop")["stopped"])

    def logs(self, job_id: str) -> str:
        return str(self.request("GET", f"/api/jobs/{_segment(job_id)}/logs", timeout_s=600)["logs"])

    def has_package(self, name: str) -> bool:
        """Whether this caller has uploaded the package of that name."""
        try:
            self.request("GET", f"/api/packages/gcs/{_segment(name)}")
        except NotFound:
            return False
        return True

    def upload(self, name: str, archive: Path) -> None:
        """Send an archive; streamed from the disk."""
        with open(archive, "rb") as body:
            size = str(archive.stat().st_size)
            try:
                answer = self._http.put(
                    f"/api/packages/gcs/{_segment(name)}",
                    content=iter(lambda: body.read(1 << 20), b""),
                    headers={"Content-Length": size},
                    timeout=600,
                )
            except httpx.HTTPError as error:
                raise Unavailable("The upload broke off", why=str(error) or type(error).__name__) from error
        if answer.is_error:
            raise error_of(answer)

    def notice(self, job_id: str, wait_s: int = 0) -> dict[str, Any] | None:
        """The notice to leave that a job was given; waits up to `wait_s` seconds (60 at most) for one."""
        path = f"/moorage/v1/jobs/{_segment(job_id)}/notice"
        found = _object(self.request("GET", path, query={"wait_s": wait_s}, timeout_s=wait_s + 30))["notice"]
        return None if found is None else _object(found)

    def answer_notice(self, job_id: str, said: str, step: int | None = None) -> bool:
        """Record that a job `checkpointed` or is `leaving` on its notice; False when it has none."""
        body = {"said": said} | ({} if step is None else {"step": step})
        path = f"/moorage/v1/jobs/{_segment(job_id)}/notice"
        return bool(self.request("POST", path, body=body)["recorded"])

    def publish_endpoint(self, name: str, app: str, route: str, job_id: str | None = None) -> dict[str, Any]:
        """Publish the caller's Serve application under `/endpoints/<name>/`."""
        body = {"name": name, "app": app, "route": route} | ({"job_id": job_id} if job_id else {})
        return _object(self.request("POST", "/moorage/v1/endpoints", body=body))

    def endpoints(self) -> list[dict[str, Any]]:
        return _objects(self.request("GET", "/moorage/v1/endpoints"))

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

    def release(self, lease_id: str) -> bool:
        return bool(self.request("DELETE", f"/moorage/v1/leases/{_segment(lease_id)}")["released"])


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


def error_of(answer: httpx.Response) -> MoorageError:
    """The error behind a problem document; of the plain kind when the body is none."""
    kind = _BY_STATUS.get(answer.status_code, MoorageError)
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("title"), str):
        error = kind(f"The front door answered {answer.status_code}", why=answer.text[:200])
    else:
        error = kind(
            found["title"],
            why=str(found.get("why", "")),
            todo=str(found.get("todo", "")),
            code=str(found.get("code", "")) or None,
            **{k: v for k, v in found.items() if k in ("errors", "reason")},
        )
    error.http_status = answer.status_code
    return error


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


def _segment(text: str) -> str:
    """A path segment; what would change the path is refused instead of sent."""
    if not text or text in (".", "..") or any(mark in text for mark in "/?#\\%") or not text.isprintable():
        raise InvalidRequest(f"{text[:80]!r} is not an id", code="bad-id")
    return text


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unavailable("The front door's answer is not an object")
    return value


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise Unavailable("The front door's answer is not a list")
    return value


def _front_door(home: Path) -> str:
    try:
        found = json.loads((home / "pool.json").read_text(encoding="utf-8"))["front_door"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFound(
            f"No pool is up in {home}",
            todo=f"start one with `moorage up`, or set {URL_VARIABLE} and {TOKEN_VARIABLE}",
            code="pool-not-up",
        ) from error
    return str(found) if "://" in str(found) else f"http://{found}"


def _known_tokens(home: Path) -> str:
    names = sorted(path.stem for path in (home / "tokens").glob("*.token"))
    return f"set {TOKEN_VARIABLE}" + (f", or say one of: {', '.join(names)}" if names else "")


def _token(home: Path, principal: str) -> str:
    try:
        return (home / "tokens" / f"{_segment(principal)}.token").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Unauthenticated(
            f"There is no token for {principal!r} that you can read",
            why=f"{home}/tokens/{principal}.token: {error.strerror}",
            todo=_known_tokens(home),
        ) from error
