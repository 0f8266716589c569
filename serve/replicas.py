"""Replicas of one endpoint, each an application of its own on one worker of a lease, and what is asked of Serve and of
the pool for them.

Why an application each: Serve has one label selector per deployment, and a changed one restarts all its replicas; which
of several replicas it stops is its own choice. A replica by itself starts on exactly the node that its worker is
leased on, and what is given back is exactly what it held. The front door spreads requests over them.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import httpx

from moorage.cluster.binding import LeaseView, WorkerView
from moorage.errors import LeaseTimeout, MoorageError, Unavailable
from moorage.runtime.client import Client
from moorage.serve.load import Reading

log = logging.getLogger("moorage.serve")
ASK_S = 3600.0
STARTING, SERVING, UNHEALTHY, DRAINING = "STARTING", "SERVING", "UNHEALTHY", "DRAINING"


@dataclass(slots=True, kw_only=True)
class Replica:
    """`own`: on a lease that was grown for it, to be given back with it. `since_s` is when it got its state, `listed`
    whether requests are still sent to it as far as we told. `removed`: Serve was told to end it."""

    app: str
    lease_id: str
    worker: WorkerView
    own: bool
    state: str = STARTING
    served: bool = False
    since_s: float = 0.0
    unlisted_s: float | None = None
    removed: bool = False
    reading: Reading | None = None
    heard_s: float = 0.0
    ongoing: float = 0.0

    @property
    def route(self) -> str:
        return f"/{self.app}"

    @property
    def devices(self) -> tuple[int, ...]:
        """Those it holds by the raylet's book; those of its worker while it has not said."""
        told = self.reading is not None and self.reading.node == self.worker.ray_node_id
        return self.reading.devices if told and self.reading else self.worker.devices

    def enter(self, state: str, now_s: float) -> None:
        if state != self.state:
            self.state, self.since_s = state, now_s

    def to_json(self) -> dict[str, Any]:
        return {
            "app": self.app,
            "route": self.route,
            "lease_id": self.lease_id,
            "node": self.worker.node,
            "devices": list(self.devices),
            "state": self.state,
        }


class Hosts(Protocol):
    """Serve, as the autoscaler needs it."""

    def start(self, app: str, worker: WorkerView) -> None:
        """Deploy the application on its worker; returns before it runs."""

    def states(self) -> Mapping[str, str]:
        """Serve's status of every application it has."""

    def answers(self, app: str) -> bool:
        """Whether a request to the application's route is answered by it."""

    def reading(self, app: str) -> Reading | None:
        """What the replica last told of its load."""

    def remove(self, app: str) -> None:
        """Have the application ended; returns before it is."""


class Pool(Protocol):
    """The front door, as the autoscaler needs it. Methods raise `MoorageError`."""

    def ask(self, name: str) -> Ask: ...

    def release(self, lease_id: str) -> None: ...

    def report(self, said: Mapping[str, Any]) -> Mapping[str, Any]: ...


@dataclass(slots=True)
class Ask:
    """One worker more that the pool was asked for: `lease` once it was granted, `error` once it was refused."""

    name: str
    end: Callable[[Ask], None]
    lease: LeaseView | None = None
    error: MoorageError | None = None
    withdrawn: bool = False
    late: str = ""
    """The lease that came after it was withdrawn, to be given back."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def withdraw(self) -> None:
        """It is not wanted any more; what it still gets is given back."""
        self.end(self)


class JobPool:
    """The pool of the job that this process belongs to. An ask waits in a thread of its own, at most an hour."""

    def __init__(self, endpoint: str, job_id: str, worker: WorkerView, connect: Callable[[], Client]) -> None:
        self._endpoint, self._job, self._connect = endpoint, job_id, connect
        self._like = worker
        self._client = connect()
        self._withdrawn: list[Ask] = []
        """Those that the pool may still wait to grant: it did not answer, or had not heard of them yet."""

    def ask(self, name: str) -> Ask:
        one = Ask(name, self._withdraw)
        threading.Thread(target=self._wait, args=(one,), name=name, daemon=True).start()
        return one

    def _wait(self, one: Ask) -> None:
        like = self._like
        try:
            with self._connect() as client:
                found = client.grow(
                    gpus=like.gpus,
                    gpu_memory_mib=like.gpu_mib,
                    cpus=like.cpus,
                    timeout_s=ASK_S,
                    job_id=self._job,
                    name=one.name,
                )
                with one.lock:
                    if one.withdrawn:
                        one.late = found.lease_id
                    else:
                        one.lease = found
                if one.late:
                    client.release(one.late)
        except MoorageError as error:
            one.error = error
        except Exception as error:  # whatever else it is, the ask must not look as if it still waited
            log.exception("the ask %s failed", one.name)
            one.error = Unavailable(str(error))

    def _withdraw(self, one: Ask) -> None:
        if not self._ended(one):
            self._withdrawn.append(one)

    def _ended(self, one: Ask) -> bool:
        """Tell the pool that an ask is not wanted any more. False while it may be granted none the less, and room made
        for it: a pool that does not answer now is asked by the ask's own thread as soon as it does."""
        with one.lock:
            one.withdrawn, granted = True, one.lease.lease_id if one.lease else one.late
        if not granted and one.error is not None:
            return True
        try:
            if not granted:
                return self._client.withdraw(self._job, one.name)
            self._client.release(granted)
            return True
        except MoorageError as error:
            log.warning("the ask %s was not withdrawn; tried again: %s", one.name, error)
            return False

    def release(self, lease_id: str) -> None:
        self._client.release(lease_id)

    def report(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        found = self._client.report_replicas(self._endpoint, said)
        self._withdrawn = [one for one in self._withdrawn if not self._ended(one)]
        return found


class NoPool:
    """Bare Ray: nobody to ask, nothing to give back."""

    def ask(self, name: str) -> Ask:
        refused = LeaseTimeout("there is no pool to ask", todo="submit the script to a Moorage pool")
        return Ask(name, lambda one: None, error=refused)

    def release(self, lease_id: str) -> None:
        """Nothing was leased."""

    def report(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}


class ServeHosts:
    """Serve on the cluster that this process has joined. `deployed` removes what is left when the process ends."""

    def __init__(self, deployed: Any, spec: Any, options: Callable[[WorkerView], Mapping[str, Any]]) -> None:
        self._deployed, self._spec, self._options = deployed, spec, options
        self._http = httpx.Client(timeout=5.0, trust_env=False)
        self._url = ""

    def start(self, app: str, worker: WorkerView) -> None:
        self._deployed.put(app, replace(self._spec, tells=self._spec.tells or 0.5), self._options(worker))

    def states(self) -> Mapping[str, str]:
        from ray import serve

        return {name: str(found.status.value) for name, found in serve.status().applications.items()}

    def answers(self, app: str) -> bool:
        from moorage.cluster.rayapi import serve_url

        self._url = self._url or serve_url()
        try:
            return self._http.get(f"{self._url}/{app}/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    def reading(self, app: str) -> Reading | None:
        from moorage.cluster.rayapi import kv_get
        from moorage.serve.host import load_key

        told = kv_get(load_key(app))
        return None if told is None else Reading.of(json.loads(told))

    def remove(self, app: str) -> None:
        from moorage.cluster.rayapi import kv_delete
        from moorage.serve.host import load_key

        self._deployed.drop(app)
        kv_delete(load_key(app))
