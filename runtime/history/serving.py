"""A placement of models under made-up requests: what was predicted, and what a simulation of each request shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moorage.runtime.history.figures import plain
from moorage.scheduling.serving.model import Model, Placement
from moorage.scheduling.simulator.requests import latencies

F64 = npt.NDArray[np.float64]
Draw = tuple[F64, F64, npt.NDArray[np.int64]]


def draw(models: Sequence[Model], seconds: float, seed: int) -> Draw:
    """(arrival ms, service ms, model row) of every request. Gamma times between requests and of service, of the mean
    and variability that each model says."""
    rng = np.random.default_rng(seed)
    columns = []
    for row, model in enumerate(models):
        count = int(model.rate * seconds * 1.2 + 10 * (model.rate * seconds * model.burst_scv) ** 0.5) + 10
        gaps = _gamma(rng, 1000 / model.rate if model.rate else np.inf, model.burst_scv, count)
        come = np.cumsum(gaps)
        come = come[come < seconds * 1000]
        work = _gamma(rng, model.service_ms, model.service_scv, len(come))
        columns.append((come, work, np.full(len(come), row)))
    arrival, service, of = (np.concatenate(c) for c in zip(*columns, strict=True))
    return arrival, service, of.astype(np.int64)


def _gamma(rng: np.random.Generator, mean: float, scv: float, count: int) -> F64:
    if scv <= 0 or not np.isfinite(mean):
        return np.full(count, mean)
    return np.asarray(rng.gamma(1 / scv, mean * scv, count), np.float64)


def attained(models: Sequence[Model], where: Mapping[str, Sequence[int]], drawn: Draw, seed: int) -> F64:
    """[M] the share of each model's requests that met its target; each goes to one of its replicas by chance."""
    arrival, service, of = drawn
    rng = np.random.default_rng((seed, 1))
    chance = rng.random(len(of))
    device = np.full(len(of), -1, np.int64)
    for row, model in enumerate(models):
        at = np.array(where.get(model.name, ()), np.int64)
        mine = of == row
        if len(at):
            device[mine] = at[(chance[mine] * len(at)).astype(np.int64)]
    took = latencies(arrival, service, device)
    target = np.array([m.target_ms for m in models])[of]
    count = np.bincount(of, minlength=len(models))
    good = np.bincount(of[took <= target], minlength=len(models))
    return np.asarray(np.where(count > 0, good / np.maximum(count, 1), 1.0), np.float64)


def report(
    models: Sequence[Model], devices: Sequence[int], placed: Placement, seconds: float, seeds: Sequence[int]
) -> dict[str, Any]:
    """The placement, beside what the requests of each seed met."""
    where: dict[str, list[int]] = {}
    for replica in placed.replicas:
        where.setdefault(replica.model, []).append(replica.device)
    runs = np.array([attained(models, where, draw(models, seconds, seed), seed) for seed in seeds])
    rate = np.array([m.rate for m in models])
    total = max(float(rate.sum()), 1e-12)
    predicted = np.array([placed.attained[m.name] for m in models])
    simulated = runs.mean(axis=0)
    return {
        "devices": len(devices),
        "devices_used": placed.devices,
        "replicas": [
            {
                "model": r.model,
                "device": r.device,
                "milli_gpu": r.milli_gpu,
                "mib": r.mib,
                "rate": plain(r.rate),
                "latency_ms": plain(r.latency_ms),
            }
            for r in placed.replicas
        ],
        "load": [plain(x) for x in placed.load],
        "attained_predicted": plain(float((rate * predicted).sum()) / total),
        "attained_simulated": plain(float((rate * simulated).sum()) / total),
        "models": {
            m.name: {
                "replicas": len(where.get(m.name, ())),
                "attained_predicted": plain(p),
                "attained_simulated": plain(s),
            }
            for m, p, s in zip(models, predicted, simulated, strict=True)
        },
        "unplaced": [{"model": u.model, "reason": u.reason} for u in placed.unplaced],
    }
