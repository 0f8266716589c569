"""/healthz and /metrics: the control plane's samples and the front door's own request counts."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from moorage.runtime.control.measures import CATALOG, Distribution, Samples
from moorage.runtime.frontdoor.context import context


class _Fixed:
    """A collector over samples that were taken before the scrape's text is made."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        for name, values in sorted(self._samples.items()):
            labels = sorted({key for labelled in values for key, _ in labelled})
            about = CATALOG.get(name, name)
            shown: list[tuple[list[str], float]] = []
            histogram = HistogramMetricFamily(name, about, labels=labels)
            for labelled, value in values.items():
                present = [dict(labelled).get(key, "") for key in labels]
                if isinstance(value, Distribution):
                    histogram.add_metric(present, value.cumulative(), value.total)
                else:
                    shown.append((present, value))
            if histogram.samples:
                yield histogram
                continue
            family: CounterMetricFamily | GaugeMetricFamily
            if name.endswith("_total"):
                family = CounterMetricFamily(name.removesuffix("_total"), about, labels=labels)
            else:
                family = GaugeMetricFamily(name, about, labels=labels)
            for present, number in shown:
                family.add_metric(present, number)
            yield family


class RequestMetrics:
    """Counts and times of requests by route template (never by raw path: that would be unbounded)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.count = Counter(
            "moorage_http_requests",
            CATALOG["moorage_http_requests_total"],
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "moorage_http_request_seconds",
            CATALOG["moorage_http_request_seconds"],
            ["method", "route"],
            registry=self.registry,
        )

    def middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        @web.middleware
        async def measure(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            began = time.monotonic()
            response = await handler(request)
            resource = request.match_info.route.resource
            route = resource.canonical if resource is not None else "-"
            method = (
                request.method
                if request.method in ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH")
                else "other"
            )
            self.count.labels(method, route, str(response.status)).inc()
            self.seconds.labels(method, route).observe(time.monotonic() - began)
            return response

        return measure

    async def metrics(self, request: web.Request) -> web.Response:
        ours = context(request)
        fresh = CollectorRegistry(auto_describe=False)
        fresh.register(_Fixed(await ours.call(ours.control.metrics)))
        text = generate_latest(fresh) + generate_latest(self.registry)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def healthz(request: web.Request) -> web.Response:
    """200 when the control plane ticks, 503 when it does not. Says nothing that needs a token."""
    ours = context(request)
    found = await ours.call(ours.control.health)
    return web.json_response(found, status=200 if found.get("ok") else 503)


async def readyz(request: web.Request) -> web.Response:
    """200 where submissions are taken: for what shares requests out among a leader and its standbys."""
    ours = context(request)
    return web.json_response(await ours.call(ours.control.ready))
