"""Model packing for serving: requests that meet their latency target, beside one model per device and round robin.

Every placement meets the same requests, drawn with bursts (gamma times between requests, squared coefficient of
variation 4) and simulated one by one; the simulation knows nothing of the formula that predicted them. Each request
goes to one of its model's replicas by chance. The peers are placements, not systems:

- one model per device: each model alone, the largest load first; devices left over go to the most loaded models, and
  where devices run out models are not served;
- round robin: each model in turn gets a replica on the next device that has the memory, until nothing fits.

Models are made up (deterministic): 4 to 20 GiB, 5 to 40 ms a request, targets of 5 to 12 times that.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from _frame import Figure, main

from moorage.runtime.history.serving import attained, draw
from moorage.scheduling.serving.model import Model
from moorage.scheduling.serving.search import pack

GIB = 1024
DEVICE = 40 * GIB
Placed = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Set:
    """`count` models on `devices` devices; their rates are such that all devices together are loaded to `load`."""

    name: str
    count: int
    devices: int
    load: float


SETS = (
    Set("as many models as devices", 16, 16, 0.3),
    Set("more models than devices", 24, 8, 0.4),
    Set("fewer models than devices", 6, 12, 0.4),
    Set("more models than devices, heavily loaded", 24, 8, 0.65),
)


def models_of(given: Set) -> tuple[Model, ...]:
    rng = np.random.default_rng(given.count)
    share = rng.pareto(1.5, given.count) + 0.2
    share *= given.load * given.devices / share.sum()
    found = []
    for i in range(given.count):
        service = float(rng.choice((5, 10, 20, 40)))
        target = service * float(rng.choice((5, 8, 12)))
        found.append(
            Model(
                name=f"m{i:02d}",
                mib=int(rng.choice((4, 8, 12, 20))) * GIB,
                service_ms=service,
                rate=min(float(share[i]), given.devices * 0.6) * 1000 / service,
                target_ms=target,
                burst_scv=4.0,
            )
        )
    return tuple(found)


def ours(models: Sequence[Model], devices: int) -> Placed:
    where: Placed = {}
    for replica in pack(models, [DEVICE] * devices).replicas:
        where.setdefault(replica.model, []).append(replica.device)
    return where


def alone(models: Sequence[Model], devices: int) -> Placed:
    """One model per device."""
    order = sorted(models, key=lambda m: -m.load)[:devices]
    where: Placed = {m.name: [d] for d, m in enumerate(order)}
    for d in range(len(order), devices):
        name = max(order, key=lambda m: m.load / len(where[m.name])).name
        where[name].append(d)
    return where


def round_robin(models: Sequence[Model], devices: int) -> Placed:
    where: Placed = {m.name: [] for m in models}
    left, at, idle = [DEVICE] * devices, 0, 0
    for model in itertools.cycle(models):
        free = [
            d
            for k in range(devices)
            if left[d := (at + k) % devices] >= model.mib and d not in where[model.name]
        ]
        idle = 0 if free else idle + 1
        if free:
            where[model.name].append(free[0])
            left[free[0]] -= model.mib
            at = free[0] + 1
        if idle == len(models):
            return where


def met(models: Sequence[Model], where: Placed, seconds: float, seeds: range) -> float:
    """Percent of all requests that met their target."""
    rate = np.array([m.rate for m in models])
    runs = [attained(models, where, draw(models, seconds, seed), seed) for seed in seeds]
    return 100 * float((np.mean(runs, axis=0) * rate).sum() / rate.sum())


def bearable(
    models: Sequence[Model],
    devices: int,
    how: Callable[[Sequence[Model], int], Placed],
    seconds: float,
    seeds: range,
) -> float:
    """The greatest multiple of the rates, by tenths, at which 99 percent meet their target: AlpaServe's measure."""
    best = 0.0
    for tenth in range(1, 31):
        scaled = [replace(m, rate=m.rate * tenth / 10) for m in models]
        if met(scaled, how(scaled, devices), seconds, seeds) >= 99:
            best = tenth / 10
    return best


def measure(quick: bool) -> list[Figure]:
    seconds, seeds = (20.0, range(1)) if quick else (120.0, range(3))
    figures = []
    for given in SETS[:1] if quick else SETS:
        models = models_of(given)
        begun = time.perf_counter()
        placed = pack(models, [DEVICE] * given.devices)
        took = time.perf_counter() - begun
        rate = sum(m.rate for m in models)
        predicted = 100 * sum(m.rate * placed.attained[m.name] for m in models) / rate
        got = met(models, ours(models, given.devices), seconds, seeds)
        others = {
            "one model per device": met(models, alone(models, given.devices), seconds, seeds),
            "round robin": met(models, round_robin(models, given.devices), seconds, seeds),
        }
        what = f"{given.name} ({given.count} on {given.devices}, load {given.load:g})"
        print(f"{what}: ours {got:.2f} (predicted {predicted:.2f}), {others}, {took:.2f} s", file=sys.stderr)
        best = max(others, key=lambda name: others[name])
        figures.append(
            Figure(
                metric=f"{what}: requests within target %",
                ours=got,
                better="higher",
                peer=others[best],
                peer_name=f"{best}; " + ", ".join(f"{k} {v:.2f}" for k, v in others.items() if k != best),
                target=1.0,
            )
        )
        figures.append(
            Figure(
                metric=f"{what}: predicted less simulated, points",
                ours=abs(predicted - got),
                better="lower",
                peer_name=f"predicted {predicted:.2f}; packed in {took:.2f} s",
                target=2.0,
            )
        )
    given = SETS[0]
    models = models_of(given)
    scale = [
        bearable(models, given.devices, how, seconds / 2, seeds[:1]) for how in (ours, alone, round_robin)
    ]
    figures.append(
        Figure(
            metric=f"{given.name}: multiple of the rates at which 99 % are met",
            ours=scale[0],
            better="higher",
            peer=max(scale[1:]),
            peer_name=f"one model per device {scale[1]:g}, round robin {scale[2]:g}",
            target=1.0,
        )
    )
    return figures


if __name__ == "__main__":
    raise SystemExit(main(measure, "requests that meet their latency target, by how models are placed"))
