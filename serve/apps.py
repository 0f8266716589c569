"""Applications of a job in Serve: deploy, wait, and take them away again, whatever ends the job.

Serve's applications outlive the driver that deployed them. `Deployed` removes them when the script ends or is
stopped (Ray sends a stopped job SIGTERM, 3 s before SIGKILL). What a SIGKILLed driver leaves is removed by
its replicas: each one asks the GCS every few seconds whether the driver that deployed it still lives
(`host.watch_owner`). By hand: `python -m moorage.serve.apps remove <application> ...` from a driver on the
cluster.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import httpx
import ray
from ray import serve

from moorage.errors import Unavailable
from moorage.serve.host import HostSpec, application

_LOG = logging.getLogger(__name__)
_GOOD, _OVER = "RUNNING", ("DEPLOY_FAILED", "UNHEALTHY")
PROXY_WITHIN_S = 10.0
REMOVE_WITHIN_S = 2.5  # Ray kills a stopped driver after 3 s


def app_name(team: str, endpoint: str) -> str:
    """The application's name: replicas are booked to who started Serve, so the team must be in the name."""
    return f"{team}-{endpoint}"


class Deployed:
    """The applications this process put into Serve. `remove` is idempotent and safe in an exit handler."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._put: set[str] = set()
        self._stop = threading.Event()
        atexit.register(self.remove)

    def deploy(
        self,
        team: str,
        endpoints: Sequence[tuple[HostSpec, Mapping[str, Any]]],
        *,
        ready_within_s: float = 120,
    ) -> list[str]:
        """Run endpoints side by side and wait until all answer: their application names; the route is
        `/<name>`.

        `endpoints` pairs a spec with its `placement`. An application of the same name is replaced in place.
        Raises `Unavailable` (code `endpoint-not-ready`) with Serve's own words, and then leaves none of them
        behind.
        """
        owner = ray.get_runtime_context().get_job_id()
        names = [app_name(team, spec.endpoint) for spec, _ in endpoints]
        self._names += names
        targets = [
            _target(name, replace(spec, owner=owner), options)
            for name, (spec, options) in zip(names, endpoints, strict=True)
        ]
        serve.run_many(targets, wait_for_applications_running=False)
        deadline = time.monotonic() + ready_within_s
        for name in names:
            self._wait(name, deadline)
        return names

    def put(self, name: str, spec: HostSpec, options: Mapping[str, Any]) -> None:
        """Run one application more under exactly this name, and do not wait for it. Whoever puts it there
        looks after it (`until_stopped` does not); `remove` takes it away."""
        owner = ray.get_runtime_context().get_job_id()
        self._put.add(name)
        serve.run_many(
            [_target(name, replace(spec, owner=owner), options)], wait_for_applications_running=False
        )

    def drop(self, name: str) -> None:
        """Have one application ended by Serve, which lets it answer what it has first; does not wait."""
        self._put.discard(name)
        serve.delete(name, _blocking=False)

    def _wait(self, name: str, deadline: float) -> None:
        status, message = "not there", ""
        while time.monotonic() < deadline and not self._stop.is_set():
            status, message = _state(name)
            if status == _GOOD:
                self._await_proxy(name)
                return
            if status in _OVER:
                break
            self._stop.wait(0.1)
        self.remove()
        raise Unavailable(
            f"application {name} is {status}, not {_GOOD}",
            why=message[-2000:] or "it did not start in time",
            todo="the replica's log has the traceback",
            code="endpoint-not-ready",
        )

    def _await_proxy(self, name: str) -> None:
        """Serve's proxy hears of a route after the controller calls it running. From another machine than the proxy's
        it cannot be asked: then the controller's word counts."""
        from moorage.cluster import rayapi

        if not rayapi.serve_has_proxy():
            return
        url, deadline = f"{rayapi.serve_url()}/{name}/healthz", time.monotonic() + PROXY_WITHIN_S
        while time.monotonic() < deadline and not self._stop.is_set():
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, timeout=PROXY_WITHIN_S, trust_env=False).status_code == 200:
                    return
            self._stop.wait(0.1)
        _LOG.warning("application %s runs, and %s does not answer from here", name, url)

    def until_stopped(self, *, look_every_s: float = 5) -> None:
        """Wait for SIGTERM or SIGINT. Raises `Unavailable` when an application was taken away meanwhile."""
        with self.stopping():
            while not self._stop.wait(look_every_s):
                gone = set(self._names) - set(serve.status().applications)
                if gone:
                    raise Unavailable(f"Serve no longer has {', '.join(sorted(gone))}", code="endpoint-gone")

    @contextlib.contextmanager
    def stopping(self) -> Iterator[threading.Event]:
        """SIGTERM and SIGINT set the event instead of ending the process, so that `remove` runs with time to
        spare.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            self._stop.set()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self._stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def remove(self) -> list[str]:
        """Take the applications out of Serve; the names it asked to remove."""
        names, self._names, self._put = [*self._names, *sorted(self._put)], [], set()
        return remove(names) if names and ray.is_initialized() else []


def _target(name: str, spec: HostSpec, options: Mapping[str, Any]) -> serve.RunTarget:
    return serve.RunTarget(
        target=application(spec, options),
        name=name,
        route_prefix=f"/{name}",
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )


def _state(name: str) -> tuple[str, str]:
    found = serve.status().applications.get(name)
    if found is None:
        return "not there", ""
    told = [found.message, *(deployment.message for deployment in found.deployments.values())]
    return str(found.status.value), " ".join(text for text in told if text)


def remove(names: list[str], *, within_s: float = REMOVE_WITHIN_S) -> list[str]:
    """Remove applications by name, all at once; waits up to `within_s` until Serve has let them go."""
    for name in names:
        serve.delete(name, _blocking=False)
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and set(names) & set(serve.status().applications):
        time.sleep(0.05)  # polling with a deadline: Serve offers no event for it
    return names


def main() -> None:
    """`python -m moorage.serve.apps list | remove NAME ...`, as a driver on the cluster of RAY_ADDRESS."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("verb", choices=("list", "remove"))
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    ray.init(log_to_driver=False)
    if arguments.verb == "remove":
        remove(arguments.names, within_s=30)
    for name, found in serve.status().applications.items():
        print(f"{name}\t{found.status.value}")


if __name__ == "__main__":
    main()
