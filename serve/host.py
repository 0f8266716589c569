"""The model host: one Serve deployment that answers one model over HTTP, with typed contracts and dynamic
batches.

A replica is its own ingress (no hop between web and model). Its event loop parses, validates and queues; one
worker thread runs the batches, so the next batch fills while the present one computes. Nothing here knows
what a flight is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import ray
from fastapi import FastAPI
from ray import serve

from moorage.cluster.rayapi import driver_is_dead, kv_put, resource_ids
from moorage.errors import InvalidRequest
from moorage.serve.batching import BatchLimits, BatchWorker, Failed
from moorage.serve.contract import Answer, ModelRef, Request
from moorage.serve.load import LoadMeter
from moorage.serve.monitors import EndpointMetrics
from moorage.serve.web import endpoint_app

_LOG = logging.getLogger("ray.serve")
OWNER_CHECK_S = 5.0
_ROUTER_QUEUE = 64


class Predictor(Protocol):
    """What a host serves. `load` of the spec makes one, in the thread that later calls `predict`."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def data_version(self) -> str: ...

    def predict(self, rows: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
        """One mapping of the answer's own fields per row, in order: one transform and one forward for all
        rows.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """Everything a replica needs to become an endpoint. `load` and the types must be importable on the
    worker.

    `owner` is the Ray job id (hex) of the driver whose end takes the application away; "" for none. `tells`: a replica
    tells its load every so many seconds (`cluster.rayapi.kv_get(load_key(app))`); 0 for never.
    """

    endpoint: str
    load: Callable[[], Predictor]
    request: type[Request]
    answer: type[Answer]
    limits: BatchLimits = field(default_factory=BatchLimits)
    max_waiting: int = 2048
    owner: str = ""
    tells: float = 0.0

    def __post_init__(self) -> None:
        if not self.endpoint.replace("-", "").replace("_", "").isalnum():
            raise InvalidRequest(f"endpoint name {self.endpoint!r} may hold letters, digits, - and _ only")


def load_key(app: str) -> str:
    """Where the one replica of an application tells its load."""
    return f"load:{app}"


class ModelFailed(Exception):
    """The model raised on this one row; the replica and the other rows live on."""


class ModelHost:
    """One replica. The model belongs to the worker's thread; everything else to the event loop's."""

    async def __init__(self, spec: HostSpec) -> None:  # type: ignore[misc]  # Serve awaits it
        self.spec = spec
        self._worker = BatchWorker[Predictor](spec.limits, self._computed)
        model = await self._worker.start(spec.load)
        self.model_ref = ModelRef(name=model.name, version=model.version)
        self.data_version = model.data_version
        self._metrics = EndpointMetrics(spec.endpoint, self.model_ref.name, self.model_ref.version)
        self._devices = sorted(resource_ids().get("GPU", {}).items())
        self._meter = LoadMeter()
        self._telling = asyncio.create_task(self._tell()) if spec.tells else None
        self._watch = asyncio.create_task(self._watch_owner()) if spec.owner else None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return endpoint_app(self)

    async def answer(self, row: Request, request_id: str) -> Answer:
        """The typed answer of one row; raises `ModelFailed` when the model cannot answer this row."""
        started, began = time.perf_counter(), self._meter.begin()
        try:
            outcome = await self._worker.submit(row)
        finally:
            self._meter.end(began)
        if isinstance(outcome, Failed):
            self._metrics.request("failed")
            raise ModelFailed(f"{type(outcome.error).__name__} in the model") from outcome.error
        answer = self.spec.answer(
            **outcome, model=self.model_ref, data_version=self.data_version, request_id=request_id
        )
        self._metrics.request("ok", time.perf_counter() - started)
        return answer

    def refused(self) -> None:
        """Count a request that did not match the contract."""
        self._metrics.request("invalid")

    def info(self) -> dict[str, Any]:
        """Who answers and from where; `devices` (indexes) and `shares` of them are the raylet's own book."""
        return {
            "endpoint": self.spec.endpoint,
            "model": self.model_ref.model_dump(),
            "data_version": self.data_version,
            "ray_node_id": ray.get_runtime_context().get_node_id(),
            "devices": [index for index, _ in self._devices],
            "shares": [share for _, share in self._devices],
            "pid": os.getpid(),
            "limits": {"max_rows": self.spec.limits.max_rows, "wait_ms": self.spec.limits.wait_ms},
            "batching": self._worker.stats.as_dict(),
        }

    async def _tell(self) -> None:
        """Through the GCS and not as an answer: a replica that is too busy to answer is the one to hear from."""
        loop = asyncio.get_running_loop()
        key = load_key(serve.get_replica_context().app_name)
        node, devices = ray.get_runtime_context().get_node_id(), tuple(at for at, _ in self._devices)
        while True:
            told = json.dumps(asdict(self._meter.read(node, devices))).encode()
            try:
                await loop.run_in_executor(None, kv_put, key, told)
            except Exception:
                _LOG.warning("could not tell the load", exc_info=True)
            await asyncio.sleep(self.spec.tells)

    async def _watch_owner(self) -> None:
        """Take the application out of Serve when the driver that deployed it is gone (a SIGKILL gave it no
        chance to).

        An unreachable GCS decides nothing: only its word that the driver is dead does.
        """
        loop = asyncio.get_running_loop()
        name = serve.get_replica_context().app_name
        while True:
            await asyncio.sleep(OWNER_CHECK_S)
            try:
                if await loop.run_in_executor(None, driver_is_dead, self.spec.owner):
                    _LOG.warning("driver %s of application %s is dead: removing it", self.spec.owner, name)
                    await loop.run_in_executor(None, lambda: serve.delete(name, _blocking=False))
                    return
            except Exception:
                _LOG.warning("could not ask whether driver %s lives", self.spec.owner, exc_info=True)

    def _computed(self, outcomes: Sequence[object]) -> None:
        """After each batch, in the worker's thread."""
        self._metrics.batch(len(outcomes))
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                _LOG.error("the model failed on a row", exc_info=outcome.error)


def application(spec: HostSpec, options: Mapping[str, Any], *, replicas: int = 1) -> serve.Application:
    """A Serve application of one deployment; `options` comes from `moorage.serve.placement.placement`.

    Requests wait in the replica, not in Serve's router: there the load meter sees them, the batches take all of them,
    and a replica that has nothing in flight has nothing waiting either. What comes beyond `max_waiting` (and a few
    that the router keeps) is answered 503 at once instead of piling up.
    """
    deployment = serve.deployment(serve.ingress()(ModelHost)).options(
        name=spec.endpoint,
        num_replicas=replicas,
        ray_actor_options=dict(options),
        max_ongoing_requests=max(64, 4 * spec.limits.max_rows, spec.max_waiting),
        max_queued_requests=_ROUTER_QUEUE,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=5,
    )
    return deployment.bind(spec)
