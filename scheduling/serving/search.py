"""The search for a placement: greedy, then better by one change at a time, all of it undone where it does not help."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from moorage.scheduling.model import WHOLE
from moorage.scheduling.serving.model import Goal, Model, Placement, Replica, Unplaced
from moorage.scheduling.serving.queue import wait

_ROUNDS = 50
"""Improvements that the local search makes at most, per replica."""
_STEP = 1e-6
"""An improvement, as a part of all requests: less is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Replicas (model, device) that go, and come."""

    gone: tuple[tuple[int, int], ...] = ()
    come: tuple[tuple[int, int], ...] = ()


def pack(models: Sequence[Model], devices: Sequence[int], goal: Goal | None = None) -> Placement:
    """Place replicas of `models` on devices of so many MiB each.

    Never more memory than a device has, never a load beyond the goal's. Deterministic. Raises ValueError when two
    models share a name.
    """
    if len({m.name for m in models}) != len(models):
        raise ValueError("two models have the same name")
    search = Search(tuple(models), tuple(devices), goal or Goal())
    search.place()
    search.improve()
    return search.placement()


@dataclass(slots=True)
class Search:
    """The working copy: which model has a replica where. At most one of a model on a device."""

    models: tuple[Model, ...]
    devices: tuple[int, ...]
    goal: Goal
    on: list[set[int]] = field(default_factory=list)
    """By device: rows of its models."""
    where: list[set[int]] = field(default_factory=list)
    """By model: its devices."""

    def __post_init__(self) -> None:
        self.on = [set() for _ in self.devices]
        self.where = [set() for _ in self.models]

    # --- what a placement is worth ---

    def streams(self, device: int) -> list[tuple[Model, int]]:
        return [(self.models[m], len(self.where[m])) for m in sorted(self.on[device])]

    def sound(self, devices: Sequence[int] | set[int]) -> bool:
        """Whether these devices hold their memory and load."""
        for d in devices:
            rows = self.on[d]
            if sum(self.models[m].mib for m in rows) > self.devices[d]:
                return False
            if sum(self.models[m].load / len(self.where[m]) for m in rows) > self.goal.most_load + 1e-12:
                return False
        return True

    def attained(self) -> list[float]:
        """By model: the share of its requests that meet their target."""
        waits = [wait(self.streams(d)) if rows else None for d, rows in enumerate(self.on)]
        found = []
        for model, at in zip(self.models, self.where, strict=True):
            shares = [
                queue.within(model.target_ms - model.service_ms)
                for d in sorted(at)
                if (queue := waits[d]) is not None
            ]
            found.append(sum(shares) / len(shares) if shares else 0.0)
        return found

    def worth(self) -> tuple[float, int, float]:
        """To be made greatest: requests that meet their target, as far as asked for; fewer devices; then all."""
        got, total = self.attained(), sum(m.rate for m in self.models) or 1.0
        capped = sum(m.rate * min(a, self.goal.attained) for m, a in zip(self.models, got, strict=True))
        every = sum(m.rate * a for m, a in zip(self.models, got, strict=True))
        return capped / total, -sum(bool(rows) for rows in self.on), every / total

    # --- changes, each undone by its opposite ---

    def add(self, m: int, d: int) -> None:
        self.on[d].add(m)
        self.where[m].add(d)

    def drop(self, m: int, d: int) -> None:
        self.on[d].remove(m)
        self.where[m].remove(d)

    def apply(self, change: Change, sign: int = 1) -> None:
        for m, d in change.gone if sign > 0 else change.come:
            self.drop(m, d)
        for m, d in change.come if sign > 0 else change.gone:
            self.add(m, d)

    def value_of(self, change: Change) -> tuple[float, int, float] | None:
        """What the placement would be worth; None when it would break a bound."""
        self.apply(change)
        touched = {d for m, _ in (*change.gone, *change.come) for d in self.where[m]}
        touched |= {d for _, d in change.come}
        found = self.worth() if self.sound(touched) else None
        self.apply(change, -1)
        return found

    # --- the search ---

    def place(self) -> None:
        """What each model needs at least, the largest load first; then replicas while they help to meet a target."""
        order = sorted(range(len(self.models)), key=lambda m: (-self.models[m].load, -self.models[m].mib, m))
        for m in order:
            for least in range(self._fewest(m), len(self.devices) + 1):
                if self._place_one(m, least):
                    break
        while True:
            now, best, chosen = self.worth(), self.worth()[0] + _STEP, None
            for change in self._more():
                value = self.value_of(change)
                if value is not None and value[0] > best:
                    best, chosen = value[0], change
            if chosen is None or now[0] >= self.goal.attained:
                return
            self.apply(chosen)

    def _fewest(self, m: int) -> int:
        return max(1, math.ceil(self.models[m].load / self.goal.most_load - 1e-9))

    def _place_one(self, m: int, count: int) -> bool:
        """`count` replicas of a model at once, on the devices with the least load that have the memory."""

        def load(d: int) -> float:
            return sum(self.models[i].load / len(self.where[i]) for i in self.on[d])

        model = self.models[m]
        room = [
            d
            for d, mib in enumerate(self.devices)
            if sum(self.models[i].mib for i in self.on[d]) + model.mib <= mib
            and load(d) + model.load / count <= self.goal.most_load + 1e-12
        ]
        if len(room) < count:
            return False
        for d in sorted(room, key=lambda d: (load(d), d))[:count]:
            self.add(m, d)
        return True

    def _more(self) -> Iterator[Change]:
        for m, at in enumerate(self.where):
            if at:
                for d in self._distinct(m):
                    yield Change(come=((m, d),))

    def _distinct(self, m: int) -> Iterator[int]:
        """Devices without the model; of the empty ones of equal memory only the first."""
        empty: set[int] = set()
        for d, mib in enumerate(self.devices):
            if d in self.where[m]:
                continue
            if not self.on[d]:
                if mib in empty:
                    continue
                empty.add(mib)
            yield d

    def improve(self) -> None:
        """Take the first change that is better, until there is none."""
        for _ in range(_ROUNDS * (1 + sum(len(at) for at in self.where))):
            now = self.worth()
            for change in self._changes():
                value = self.value_of(change)
                if value is not None and _better(value, now):
                    self.apply(change)
                    break
            else:
                return

    def _changes(self) -> Iterator[Change]:
        """A replica less, one elsewhere, two swapped, a device emptied, one more."""
        held = [(m, d) for m, at in enumerate(self.where) for d in sorted(at)]
        for m, d in held:
            if len(self.where[m]) > 1:
                yield Change(gone=((m, d),))
        for m, d in held:
            for to in self._distinct(m):
                yield Change(gone=((m, d),), come=((m, to),))
        for i, (m, d) in enumerate(held):
            for other, e in held[i + 1 :]:
                if m != other and d != e and e not in self.where[m] and d not in self.where[other]:
                    yield Change(gone=((m, d), (other, e)), come=((m, e), (other, d)))
        yield from self._emptied()
        yield from self._more()

    def _emptied(self) -> Iterator[Change]:
        """All of one device to another."""
        for d, rows in enumerate(self.on):
            for to, others in enumerate(self.on):
                if d != to and rows and others:
                    gone = tuple((m, d) for m in sorted(rows))
                    yield Change(gone=gone, come=tuple((m, to) for m in sorted(rows - others)))

    def placement(self) -> Placement:
        replicas = []
        load = [0.0] * len(self.devices)
        for d, rows in enumerate(self.on):
            queue = wait(self.streams(d))
            load[d] = queue.load
            for m in sorted(rows):
                model, k = self.models[m], len(self.where[m])
                part = model.load / k / self.goal.most_load
                replicas.append(
                    Replica(
                        model=model.name,
                        device=d,
                        milli_gpu=max(1, math.floor(part * WHOLE)),
                        mib=model.mib,
                        rate=model.rate / k,
                        attained=queue.within(model.target_ms - model.service_ms),
                        latency_ms=queue.quantile(self.goal.attained) + model.service_ms,
                    )
                )
        got = dict(zip((m.name for m in self.models), self.attained(), strict=True))
        missing = tuple(
            Unplaced(model=model.name, reason=self._why(m))
            for m, model in enumerate(self.models)
            if not self.where[m]
        )
        return Placement(replicas=tuple(replicas), attained=got, load=tuple(load), unplaced=missing)

    def _why(self, m: int) -> str:
        model = self.models[m]
        large = sum(mib >= model.mib for mib in self.devices)
        if not large:
            return f"needs {model.mib} MiB, and no device has as much"
        if self._fewest(m) > large:
            return (
                f"its load of {model.load:.2f} devices needs {self._fewest(m)} replicas at a load of at most "
                f"{self.goal.most_load:g} each, and {large} devices have its {model.mib} MiB"
            )
        return (
            f"no {self._fewest(m)} devices have {model.mib} MiB and the load left beside the models before it"
        )


def _better(a: tuple[float, int, float], b: tuple[float, int, float]) -> bool:
    """Whether `a` is worth more than `b`, beyond rounding."""
    if abs(a[0] - b[0]) > _STEP:
        return a[0] > b[0]
    if a[1] != b[1]:
        return a[1] > b[1]
    return a[2] > b[2] + _STEP
