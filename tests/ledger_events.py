"""Random events for a ledger, sound and unsound ones, and the two ways in which a ledger is built again."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np

from moorage.scheduling.constraints import NO_TRAITS, Taint, Traits
from moorage.scheduling.ledger import (
    Event,
    LeaseGranted,
    LeaseReleased,
    LeaseResized,
    Ledger,
    LedgerError,
    NodeDown,
    NodeUp,
    TeamSet,
    step,
)
from moorage.scheduling.model import WHOLE, Lease, NodeSpec, Role, TaskPlacement, TeamSpec

TRAITS = (Traits.of({"rack": "r0"}), Traits.of({"rack": "r1"}, spot=True), Traits(taints=(Taint(key="k"),)))
TEAMS = {"org": "", "research": "org", "search": "org", "ops": ""}


def image(ledger: Ledger) -> dict[str, object]:
    """Every attribute of the state, arrays as bytes with shape and type, dictionaries with their order."""
    return {name: _image(getattr(ledger, name)) for name in Ledger.__slots__}


def _image(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), value.tobytes()
    if isinstance(value, dict):
        return list(value.items())
    return list(value) if isinstance(value, list) else value


def replay(events: Iterable[Event], onto: Ledger | None = None) -> Ledger:
    """The fold of recorded events."""
    ledger = Ledger() if onto is None else onto
    for event in events:
        step(ledger, event)
    return ledger


def rebuilt(ledger: Ledger) -> Ledger:
    """The ledger from its figures alone, as a control plane reads them from its store, in the order it does."""
    again = Ledger()
    for row, name in enumerate(ledger.team_names):
        parent = int(ledger.team_parent[row])
        figures = {
            figure: tuple(zip(ledger.models, getattr(ledger, figure)[row].tolist(), strict=True))
            for figure in ("quota", "limit", "lend", "borrow")
        }
        above = ledger.team_names[parent] if parent >= 0 else ""
        step(again, TeamSet(TeamSpec(name=name, parent=above, weight=int(ledger.weight[row]), **figures)))
    for row in range(len(ledger.node_names)):
        step(again, NodeUp(node_spec(ledger, row)))
    for lease in ledger.leases.values():
        step(again, LeaseGranted(lease))
    for row, name in enumerate(ledger.node_names):
        if not ledger.up[row]:
            step(again, NodeDown(name))
    again.last_epoch = ledger.last_epoch
    return again


def differences(ledger: Ledger, again: Ledger) -> list[str]:
    """Names of what differs; the version counts events, and device columns and traits that no node has now are
    nothing."""
    found = []
    for name in Ledger.__slots__:
        a, b = getattr(ledger, name), getattr(again, name)
        if name in ("milli_free", "mem_free"):
            width = int(ledger.devices.max(initial=0))
            a, b = a[:, :width], b[:, :width]
        if name in ("traits", "trait_row"):
            continue
        if name == "trait":
            a, b = ([of.traits[t] for t in of.trait] for of in (ledger, again))
        if name != "version" and _image(a) != _image(b):
            found.append(name)
    return found


def node_spec(ledger: Ledger, row: int) -> NodeSpec:
    return NodeSpec(
        name=ledger.node_names[row],
        gpu_model=ledger.models[int(ledger.model[row])] if ledger.devices[row] else "",
        devices=int(ledger.devices[row]),
        device_mib=int(ledger.device_mib[row]),
        milli_cpu=int(ledger.cpu_total[row]),
        mib=int(ledger.mib_total[row]),
        traits=ledger.traits[int(ledger.trait[row])],
    )


class Storm:
    """Draws events that mostly apply, and some of each kind that must not."""

    def __init__(self, seed: int, nodes: int = 5) -> None:
        self.rng = random.Random(seed)
        self.nodes = nodes
        self.count = 0

    def start(self) -> list[Event]:
        teams: list[Event] = [TeamSet(TeamSpec(name=name, parent=TEAMS[name])) for name in TEAMS]
        return teams + [NodeUp(self.node(n, odd=0.0)) for n in range(self.nodes)]

    def next(self, ledger: Ledger) -> Event:
        draw = self.rng.random()
        if draw < 0.45:
            return LeaseGranted(self.lease(ledger))
        if draw < 0.78 and ledger.leases:
            return self.release(ledger)
        if draw < 0.85 and ledger.leases:
            return self.resize(ledger)
        if draw < 0.9:
            return NodeDown(f"n{self.rng.randrange(self.nodes + 1)}")
        if draw < 0.97:
            return NodeUp(self.node(self.rng.randrange(self.nodes)))
        return TeamSet(self.team(self.rng.choice([*TEAMS, "late"])))

    def node(self, n: int, odd: float = 0.1) -> NodeSpec:
        """Usually the same figures: others are refused while leases hold parts of the node."""
        devices, model = (4, 2, 1, 3, 0)[n % 5], "AB"[n % 2]
        if self.rng.random() < odd:
            devices, model = self.rng.randrange(6), self.rng.choice("ABC")
        cpu = -1 if self.rng.random() < odd / 10 else 32000
        return NodeSpec(
            name=f"n{n}",
            gpu_model=model,
            devices=devices,
            device_mib=24000,
            milli_cpu=cpu,
            mib=64000,
            traits=self.rng.choice(TRAITS) if self.rng.random() < odd else NO_TRAITS,
        )

    def team(self, name: str) -> TeamSpec:
        rng, parent = self.rng, TEAMS.get(name, "org")
        if rng.random() < 0.05:
            parent = rng.choice([*TEAMS, "nobody"])
        amounts = [(model, rng.randrange(-1 if rng.random() < 0.02 else 0, 9) * WHOLE) for model in "*AB"]
        return TeamSpec(
            name=name, parent=parent, quota=tuple(amounts[rng.randrange(3) :]), limit=(amounts[0],)
        )

    def release(self, ledger: Ledger) -> Event:
        held = self.rng.choice(list(ledger.leases.values()))
        if self.rng.random() < 0.05:
            return LeaseReleased(held.lease, held.epoch + self.rng.choice((-1, 1)))
        return LeaseReleased(held.lease if self.rng.random() < 0.97 else "gone", held.epoch)

    def resize(self, ledger: Ledger) -> Event:
        """Fewer tasks, more, others, or what is no resize."""
        rng, held = self.rng, self.rng.choice(list(ledger.leases.values()))
        kept = rng.randrange(1, len(held.tasks) + 1) if rng.random() < 0.95 else rng.choice((-1, 0, 99))
        more = tuple(self.task(ledger, kept + t) for t in range(rng.choice((0, 1, 1, 2))))
        epoch = held.epoch + rng.choice((-1, 1)) if rng.random() < 0.05 else held.epoch
        granted = ledger.last_epoch + (0 if rng.random() < 0.05 else rng.randrange(1, 3))
        return LeaseResized(held.lease if rng.random() < 0.97 else "gone", epoch, granted, kept, more)

    def lease(self, ledger: Ledger) -> Lease:
        rng = self.rng
        self.count += 1
        epoch = ledger.last_epoch + (0 if rng.random() < 0.02 else rng.randrange(1, 3))
        tasks = tuple(self.task(ledger, t) for t in range(rng.choice((1, 1, 1, 2, 3))))
        team = rng.choice([*TEAMS, "nobody"] if rng.random() < 0.02 else list(TEAMS))
        name = rng.choice(list(ledger.leases)) if ledger.leases and rng.random() < 0.02 else f"l{self.count}"
        return Lease(lease=name, job=f"j{self.count % 50}", team=team, epoch=epoch, tasks=tasks)

    def task(self, ledger: Ledger, index: int) -> TaskPlacement:
        """On devices with room for it, most of the time; sometimes no task at all."""
        rng = self.rng
        row = rng.randrange(len(ledger.node_names))
        milli = rng.choice((0, 100, 180, 500, 1000, 1000, 2000))
        free = ledger.milli_free[row].tolist()
        fits = [d for d, amount in enumerate(free) if amount >= min(milli, WHOLE)] or [0]
        devices = rng.sample(fits, min(len(fits), -(-milli // WHOLE)))
        if rng.random() < 0.03:
            devices = [rng.randrange(-1, 6) for _ in range(rng.randrange(3))]
        cpu, mib, mem = (rng.choice((0, 1000, 9000)) for _ in range(3))
        return TaskPlacement(
            role=Role.WORKER,
            index=index,
            node=ledger.node_names[row] if rng.random() < 0.99 else "gone",
            devices=tuple(devices),
            milli_gpu=milli,
            gpu_mib=mem if rng.random() < 0.99 else -1,
            milli_cpu=cpu if rng.random() < 0.99 else -5,
            mib=mib,
        )


def attempt(ledger: Ledger, event: Event) -> bool:
    """Whether it applied."""
    try:
        step(ledger, event)
    except LedgerError:
        return False
    return True
