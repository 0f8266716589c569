"""What an endpoint tells Prometheus (through Ray's metrics agent). First form: traffic, latency, batches.

Names appear with Ray's prefix: `ray_moorage_endpoint_requests_total` and so on, each tagged endpoint, model,
version.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

LATENCY_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024]
_TAGS = ("endpoint", "model", "version")


class EndpointMetrics:
    """The meters of one replica. `outcome` is ok, invalid (422) or failed (500): few values, never the user's
    text.
    """

    def __init__(self, endpoint: str, model: str, version: str) -> None:
        tags = {"endpoint": endpoint, "model": model, "version": version}
        self._requests = Counter(
            "moorage_endpoint_requests", "requests answered, by outcome", tag_keys=(*_TAGS, "outcome")
        )
        self._latency = Histogram(
            "moorage_endpoint_latency_seconds",
            "from parsed request to answer",
            boundaries=LATENCY_S,
            tag_keys=_TAGS,
        )
        self._rows = Histogram(
            "moorage_endpoint_batch_rows", "rows in a batch", boundaries=ROWS, tag_keys=_TAGS
        )
        for meter in (self._requests, self._latency, self._rows):
            meter.set_default_tags(tags)

    def request(self, outcome: str, seconds: float | None = None) -> None:
        """Count one answer; `seconds` when it got as far as the model."""
        self._requests.inc(1, {"outcome": outcome})
        if seconds is not None:
            self._latency.observe(seconds)

    def batch(self, rows: int) -> None:
        self._rows.observe(rows)
