"""A pool of symbols and the ledger's invariants over it, written apart from the ledger.

The shape is fixed: node n0 with two devices of model A, n1 with one of model B, teams ops and research. Every figure
is any integer: totals, what is free, whether a node is up, quotas, epochs, and what the event asks for. One lease may
stand there as itself (the one to be released); all others, however many, stand in as sums: what the leases of a team
hold of a device, and all of them of a device's memory, a node's CPU and its memory. Each set of leases has such sums,
and each such sums have leases (`ledger_witness` builds them), so what holds for all sums holds for all sets of leases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import z3
from symbolic import Int, term

from moorage.scheduling import ledger as real
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import UNLIMITED, WHOLE, Lease, NodeSpec, Role, TaskPlacement, TeamSpec

NODES = {"n0": ("A", 2), "n1": ("B", 1)}
TEAMS = ("ops", "research")
DEVICES = tuple((n, d) for n, (_, count) in enumerate(NODES.values()) for d in range(count))
MOST = 2**40


def lease(name: str, *tasks: tuple[str, tuple[int, ...]], team: str = "ops", symbols: str = "") -> Lease:
    """A lease whose every figure is a symbol, called after `symbols` or its name; tasks by node and devices."""
    called = symbols or name
    placed = tuple(
        TaskPlacement(
            role=Role.WORKER,
            index=t,
            node=node,
            devices=devices,
            **{f: Int(f"{called}.{t}.{f}") for f in ("milli_gpu", "gpu_mib", "milli_cpu", "mib")},  # type: ignore[arg-type]
        )
        for t, (node, devices) in enumerate(tasks)
    )
    return Lease(lease=name, job=name, team=team, epoch=Int(f"{called}.epoch"), tasks=placed)  # type: ignore[arg-type]


@dataclass
class Scene:
    """`event(module)`: the event, in that module's classes. `held`: the lease that stands there as itself, if any."""

    event: Callable[[ModuleType], Any]
    held: Lease | None = None

    def __post_init__(self) -> None:
        self.rest_milli = {(t, n, d): Int(f"rest.{t}.{n}.{d}") for t in range(2) for n, d in DEVICES}
        self.rest_mem = {(t, n, d): Int(f"rest.mem.{t}.{n}.{d}") for t in range(2) for n, d in DEVICES}
        self.rest_cpu = {(t, n): Int(f"rest.cpu.{t}.{n}") for t in range(2) for n in range(2)}
        self.rest_mib = {(t, n): Int(f"rest.mib.{t}.{n}") for t in range(2) for n in range(2)}

    def pool(self) -> Ledger:
        """The ledger before the event: the real class, its arrays filled with symbols."""
        ledger = Ledger()
        for name, (model, devices) in NODES.items():
            real.step(ledger, real.NodeUp(NodeSpec(name=name, gpu_model=model, devices=devices)))
        for name in TEAMS:
            real.step(ledger, real.TeamSet(TeamSpec(name=name)))
        for name in ("cpu_total", "cpu_free", "mib_total", "mib_free", "device_mib", "weight", "up"):
            setattr(ledger, name, np.array([Int(f"{name}.{n}") for n in range(2)], object))
        ledger.up = np.array([Int(f"up.{n}") > 0 for n in range(2)], object)
        for name in ("used", "quota", "limit", "lend", "borrow"):
            rows = [[Int(f"{name}.{t}.{m}") for m in range(3)] for t in range(2)]
            setattr(ledger, name, np.array(rows, object))
        ledger.held = np.array([[Int(f"held.{t}.{r}") for r in range(3)] for t in range(2)], object)
        for name in ("milli_free", "mem_free", "devices", "model", "trait", "team_parent"):
            setattr(ledger, name, getattr(ledger, name).astype(object))
        for n, d in DEVICES:
            ledger.milli_free[n, d] = Int(f"milli_free.{n}.{d}")  # type: ignore[call-overload]
            ledger.mem_free[n, d] = Int(f"mem_free.{n}.{d}")  # type: ignore[call-overload]
        ledger.last_epoch = Int("last_epoch")  # type: ignore[assignment]
        if self.held:
            ledger.leases[self.held.lease] = self.held
        return ledger

    def before(self) -> list[z3.BoolRef]:
        """What holds before: the invariants, of a lease of sound tasks and of sums that leases can have."""
        ledger = self.pool()
        sums = (self.rest_milli, self.rest_mem, self.rest_cpu, self.rest_mib)
        known = [rest.term >= 0 for each in sums for rest in each.values()]
        for at, mem in self.rest_mem.items():  # memory is held beside a share, never without one
            known.append(z3.Implies(self.rest_milli[at].term == 0, mem.term == 0))
        return [*known, *(claim for _, claim in self.invariants(ledger))]

    def invariants(self, ledger: Ledger) -> Iterator[tuple[str, z3.BoolRef]]:
        """(name, claim) of each, of the ledger with its leases and the rest."""
        shares = self.shares(ledger)
        nodes, width = ledger.milli_free.shape
        for n in range(nodes):
            for d in range(width):
                held = [amount for where, _, amount, _ in shares if where == (n, d)]
                mem = [m for where, _, _, m in shares if where == (n, d)]
                there = d < ledger.devices[n]
                full = z3.IntVal(WHOLE if there else 0)
                full_mem = term(ledger.device_mib[n]) if there else z3.IntVal(0)
                yield from between(f"milli_free[{n},{d}]", ledger.milli_free[n, d], 0, full)
                yield from between(f"mem_free[{n},{d}]", ledger.mem_free[n, d], 0, full_mem)
                yield f"milli of {n},{d} add up", term(ledger.milli_free[n, d]) + total(held) == full
                yield (
                    f"MiB of {n},{d} add up",
                    term(ledger.mem_free[n, d]) + total(mem) == full_mem,
                )
                for i, one in enumerate(held):
                    others = total(held[:i] + held[i + 1 :])
                    yield f"{n},{d} is not held whole and shared", z3.Implies(one == WHOLE, others == 0)
            yield from self.of_node(ledger, n)
        yield from self.of_teams(ledger, shares)
        for i, one in enumerate(ledger.leases.values()):
            yield f"{one.lease} has an epoch that was granted", term(one.epoch) <= term(ledger.last_epoch)
            for other in list(ledger.leases.values())[:i]:
                yield "no two leases share an epoch", term(one.epoch) != term(other.epoch)
            for task in one.tasks:
                yield f"a task of {one.lease} is sound", sound(task)

    def shares(
        self, ledger: Ledger
    ) -> list[tuple[tuple[int, int], tuple[int, int], z3.ArithRef, z3.ArithRef]]:
        """((node, device), (team, model), milli, MiB) of each holding."""
        found = []
        for (t, n, d), amount in self.rest_milli.items():
            found.append(((n, d), (t, int(ledger.model[n])), amount.term, self.rest_mem[t, n, d].term))
        for one in ledger.leases.values():
            team = ledger.team_row[one.team]
            for task in one.tasks:
                n = ledger.node_row[task.node]
                each = z3.If(term(task.milli_gpu) > WHOLE, WHOLE, term(task.milli_gpu))
                for d in task.devices:
                    found.append(((n, d), (team, int(ledger.model[n])), each, term(task.gpu_mib)))
        return found

    def of_node(self, ledger: Ledger, n: int) -> Iterator[tuple[str, z3.BoolRef]]:
        tasks = [t for one in ledger.leases.values() for t in one.tasks if ledger.node_row[t.node] == n]
        yield from between(f"device_mib[{n}]", ledger.device_mib[n], 0, MOST)
        for name, rest in (("cpu", self.rest_cpu), ("mib", self.rest_mib)):
            free, whole = getattr(ledger, f"{name}_free")[n], getattr(ledger, f"{name}_total")[n]
            held = [term(t.milli_cpu if name == "cpu" else t.mib) for t in tasks] + [
                r.term for (_, node), r in rest.items() if node == n
            ]
            yield from between(f"{name}_total[{n}]", whole, 0, MOST)
            yield from between(f"{name}_free[{n}]", free, 0, term(whole))
            yield f"{name} of {n} adds up", term(free) + total(held) == term(whole)

    def of_teams(self, ledger: Ledger, shares: list[Any]) -> Iterator[tuple[str, z3.BoolRef]]:
        for t in range(len(ledger.team_names)):
            yield f"parent of {t} comes before it", term(ledger.team_parent[t]) < t
            yield from between(f"weight[{t}]", ledger.weight[t], 0, MOST)
            for r, beside in enumerate(self.beside(ledger, t, shares)):
                yield f"held[{t},{r}] is what its leases hold", term(ledger.held[t, r]) == beside
            for m in range(len(ledger.models)):
                held = [a for _, (team, model), a, _ in shares if team == t and m in (0, model)]
                yield f"used[{t},{m}] is what its leases hold", term(ledger.used[t, m]) == total(held)
                for name in ("quota", "limit", "lend", "borrow"):
                    yield from between(f"{name}[{t},{m}]", getattr(ledger, name)[t, m], 0, UNLIMITED)

    def beside(self, ledger: Ledger, team: int, shares: list[Any]) -> list[z3.ArithRef]:
        """CPU, memory and device memory of a team's leases."""
        tasks = [
            task for one in ledger.leases.values() if ledger.team_row[one.team] == team for task in one.tasks
        ]
        cpu = [term(task.milli_cpu) for task in tasks]
        mib = [term(task.mib) for task in tasks]
        mem = [m for _, (of, _), _, m in shares if of == team]
        for found, rest in ((cpu, self.rest_cpu), (mib, self.rest_mib)):
            found += [amount.term for (of, _), amount in rest.items() if of == team]
        return [total(cpu), total(mib), total(mem)]


def total(terms: list[z3.ArithRef]) -> z3.ArithRef:
    return z3.Sum(terms) if terms else z3.IntVal(0)


def between(name: str, value: object, low: int, high: object) -> Iterator[tuple[str, z3.BoolRef]]:
    """All bounds are below 2**63, so what stays between them is what int64 holds."""
    yield f"{name} is not below {low}", term(value) >= low
    yield f"{name} is not above its bound", term(value) <= (high if z3.is_expr(high) else term(high))


def sound(task: TaskPlacement) -> z3.BoolRef:
    """What a task may be, written apart from the ledger's own guard."""
    devices, milli = len(task.devices), term(task.milli_gpu)
    amounts = [term(x) >= 0 for x in (task.gpu_mib, task.milli_cpu, task.mib)]
    share = z3.And(milli >= 1, milli <= WHOLE) if devices == 1 else milli == devices * WHOLE
    return z3.And(share, *amounts, z3.BoolVal(len(set(task.devices)) == devices))
