"""The proof that one event keeps the ledger's invariants, whatever the integers: see `ledger_scene` for the pool.

`prove` runs the ledger's own `step` on symbols, on each path that it can take, and asks z3 on each whether a claim can
fail there: an invariant after an event that was applied, anything changed after one that was refused, a lease ended by
a stale epoch, a row that changed and was not logged, and an event that was refused though nothing speaks against it.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import z3
from ledger_scene import MOST, Scene, sound
from symbolic import explore, possible, term

from moorage.scheduling import ledger as real
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import UNLIMITED, WHOLE, TaskPlacement
from moorage.scheduling.state import FIGURES, NODE_COLUMNS, TEAM_COLUMNS


@dataclass(frozen=True, slots=True)
class Broken:
    """`what` can fail after the event; `model` says for which integers."""

    what: str
    model: z3.ModelRef


@dataclass(slots=True)
class Proof:
    """`applied` and `refused` paths, and the first way the event breaks what it must keep, if any."""

    applied: int = 0
    refused: int = 0
    claims: int = 0
    broken: Broken | None = None


def prove(scene: Scene, module: ModuleType = real, about: str = "") -> Proof:
    """Run the module's own `step` on all paths; on each, ask for integers for which a claim fails.

    Of the claims, only those whose name contains `about`.
    """
    solver = z3.Solver()
    solver.set("timeout", 60_000)
    solver.add(*scene.before())
    assert possible(solver), "nothing can be before the event: the proof would hold of nothing"
    proof = Proof()

    def run() -> tuple[Ledger, str]:
        ledger = scene.pool()
        try:
            module.step(ledger, scene.event(module))
        except module.LedgerError:
            return ledger, "refused"
        except IndexError:
            return ledger, "failed"
        return ledger, "applied"

    for ledger, did in explore(solver, run):
        proof.applied += did == "applied"
        proof.refused += did == "refused"
        claims = [c for c in after(scene, ledger, did, module) if about in c[0]]
        proof.claims += len(claims)
        if (
            claims
            and proof.broken is None
            and possible(solver, z3.Not(z3.And(*(claim for _, claim in claims))))
        ):
            model = solver.model()
            failed = [name for name, claim in claims if not z3.is_true(model.eval(claim, True))]
            proof.broken = Broken("; ".join(failed), model)
    return proof


def after(scene: Scene, ledger: Ledger, did: str, module: ModuleType) -> Iterator[tuple[str, z3.BoolRef]]:
    """What must hold then: the invariants; of a refused event, that nothing changed; of leases, the fencing."""
    was, event = scene.pool(), scene.event(module)
    if did == "failed":
        yield "a step applies or refuses", z3.BoolVal(False)
        return
    if did == "refused":
        yield from unchanged(ledger, was)
        yield "something speaks against it", z3.Not(z3.And(*legal(was, event, module)))
        return
    yield "nothing speaks against it", z3.And(*legal(was, event, module))
    yield "version grows by one", z3.BoolVal(ledger.version == was.version + 1)
    yield "epochs never fall", term(ledger.last_epoch) >= term(was.last_epoch)
    yield from done(ledger, was, event, module)
    yield from elsewhere(ledger, was, event, module)
    ends = isinstance(event, module.LeaseReleased | module.LeaseResized)
    if scene.held and not (ends and event.lease == scene.held.lease):
        yield "the lease stays", z3.BoolVal(ledger.leases.get(scene.held.lease) is scene.held)
    yield from scene.invariants(ledger)


def done(ledger: Ledger, was: Ledger, event: Any, module: ModuleType) -> Iterator[tuple[str, z3.BoolRef]]:
    """What was asked is so."""
    if isinstance(event, module.LeaseGranted):
        yield "the highest epoch is known", term(ledger.last_epoch) == term(event.lease.epoch)
        yield "the lease is held", z3.BoolVal(ledger.leases.get(event.lease.lease) is event.lease)
    elif isinstance(event, module.LeaseReleased):
        yield "the lease is gone", z3.BoolVal(event.lease not in ledger.leases)
    elif isinstance(event, module.LeaseResized):
        new, old = ledger.leases[event.lease], was.leases[event.lease]
        holds = [*old.tasks[: event.kept], *event.tasks]
        kept = len(new.tasks) == len(holds) and all(map(operator.is_, new.tasks, holds))
        yield "it holds what it keeps and what it takes", z3.BoolVal(kept)
        yield "it has the epoch that was granted", term(new.epoch) == term(event.granted)
        yield "the highest epoch is known", term(ledger.last_epoch) == term(event.granted)
        yield "leases stand in order of epoch", z3.BoolVal(list(ledger.leases)[-1] == event.lease)
        yield "it is the same job's and team's", z3.BoolVal((new.job, new.team) == (old.job, old.team))
    elif isinstance(event, module.NodeDown):
        yield "the node is down", z3.Not(term(ledger.up[ledger.node_row[event.name]]))
    elif isinstance(event, module.NodeUp):
        n, spec = ledger.node_row[event.spec.name], event.spec
        yield "the node is up", term(ledger.up[n])
        model = spec.gpu_model if spec.devices else ledger.models[0]
        named = ledger.devices[n] == spec.devices and ledger.models[ledger.model[n]] == model
        yield "its devices are those said", z3.BoolVal(named)
        yield "its traits are those said", z3.BoolVal(ledger.traits[ledger.trait[n]] == spec.traits)
        for name, figure in (
            ("device_mib", spec.device_mib),
            ("cpu_total", spec.milli_cpu),
            ("mib_total", spec.mib),
        ):
            yield f"its {name} is that said", term(getattr(ledger, name)[n]) == term(figure)
    elif isinstance(event, module.TeamSet):
        t = ledger.team_row[event.spec.name]
        parent = ledger.team_row[event.spec.parent] if event.spec.parent else -1
        yield "its parent is that said", term(ledger.team_parent[t]) == parent
        for name, default in FIGURES:
            said = dict(getattr(event.spec, name))
            for m, model in enumerate(ledger.models):
                if name == "quota" and m == 0 and said and model not in said:
                    amounts = z3.Sum([term(x) for x in said.values()])
                    figure = z3.If(amounts > UNLIMITED, UNLIMITED, amounts)
                else:
                    figure = term(said.get(model, default))
                yield f"its {name} of {model} is that said", term(getattr(ledger, name)[t, m]) == figure


def elsewhere(
    ledger: Ledger, was: Ledger, event: Any, module: ModuleType
) -> Iterator[tuple[str, z3.BoolRef]]:
    """Nothing else changed; and who follows the touched rows alone has every row."""
    touched = set(ledger.touched[len(was.touched) :])
    free = ("milli_free", "mem_free", "cpu_free", "mib_free")
    of_node, of_team = (
        {module.NodeUp: NODE_COLUMNS, module.NodeDown: ("up",)},
        {module.TeamSet: tuple(name for name in TEAM_COLUMNS if name not in ("used", "held"))},
    )
    for rows, columns, changed, known in (
        (was.node_row, NODE_COLUMNS, of_node.get(type(event), free), touched),
        (was.team_row, TEAM_COLUMNS, of_team.get(type(event), ("used", "held")), None),
    ):
        for row in rows.values():
            for name in columns:
                if name not in changed or (known is not None and row not in known):
                    yield (
                        f"{name}[{row}] changed and is logged",
                        same(getattr(ledger, name)[row], getattr(was, name)[row]),
                    )
    if isinstance(event, module.TeamSet):
        for name, t in was.team_row.items():
            for column in TEAM_COLUMNS if name != event.spec.name else ():
                yield f"{column} of another team", same(getattr(ledger, column)[t], getattr(was, column)[t])


def same(now: Any, then: Any) -> z3.BoolRef:
    """A row is as it was; columns may have been added."""
    old = np.ravel(np.asarray(then, object))
    new = np.ravel(np.asarray(now, object))[: len(old)]
    return z3.And(*(term(a) == term(b) for a, b in zip(new, old, strict=True)))


def unchanged(ledger: Ledger, was: Ledger) -> Iterator[tuple[str, z3.BoolRef]]:
    for name in Ledger.__slots__:
        now, then = getattr(ledger, name), getattr(was, name)
        if isinstance(now, np.ndarray):
            yield f"{name} keeps its shape", z3.BoolVal(now.shape == then.shape)
            pairs = zip(now.flat, then.flat, strict=False)
            yield f"{name} is as it was", z3.And(*(term(a) == term(b) for a, b in pairs))
        elif name == "last_epoch":
            yield f"{name} is as it was", term(now) == term(then)
        elif name == "leases":
            yield f"{name} are as they were", z3.BoolVal(list(now.items()) == list(then.items()))
        else:
            yield f"{name} is as it was", z3.BoolVal(now == then)


def legal(was: Ledger, event: Any, module: ModuleType) -> Iterator[z3.BoolRef]:
    """What an event must satisfy to be applied, of the state before; written apart from the ledger's guards."""
    if isinstance(event, module.LeaseGranted):
        yield term(event.lease.epoch) > term(was.last_epoch)
        yield z3.BoolVal(event.lease.lease not in was.leases and event.lease.team in was.team_row)
        yield from fits(was, event.lease.tasks)
    elif isinstance(event, module.LeaseReleased):
        held = was.leases.get(event.lease)
        yield z3.BoolVal(False) if held is None else term(event.epoch) == term(held.epoch)
    elif isinstance(event, module.LeaseResized):
        yield from legal_resize(was, event)
    elif isinstance(event, module.NodeDown):
        yield z3.BoolVal(event.name in was.node_row)
    elif isinstance(event, module.NodeUp):
        spec, n = event.spec, was.node_row.get(event.spec.name)
        yield from bounded((spec.device_mib, spec.milli_cpu, spec.mib), MOST)
        if n is not None:
            model = was.models[was.model[n]] if was.devices[n] else ""
            pairs = (
                (was.device_mib, spec.device_mib),
                (was.cpu_total, spec.milli_cpu),
                (was.mib_total, spec.mib),
            )
            same = z3.And(*(term(column[n]) == term(figure) for column, figure in pairs))
            alike = was.devices[n] == spec.devices and (not spec.devices or model == spec.gpu_model)
            yield z3.Or(z3.And(z3.BoolVal(alike), same), z3.And(*idle(was, n)))
    elif isinstance(event, module.TeamSet):
        row, spec = was.team_row.get(event.spec.name, len(was.team_row)), event.spec
        yield z3.BoolVal(not spec.parent or was.team_row.get(spec.parent, row) < row)
        yield from bounded((spec.weight,), MOST)
        for figures in (spec.quota, spec.limit, spec.lend, spec.borrow):
            yield from bounded((amount for _, amount in figures), UNLIMITED)


def legal_resize(was: Ledger, event: Any) -> Iterator[z3.BoolRef]:
    held = was.leases.get(event.lease)
    yield z3.BoolVal(held is not None)
    if held is not None:
        yield term(event.epoch) == term(held.epoch)
        yield term(event.granted) > term(was.last_epoch)
        count = len(held.tasks)
        yield z3.BoolVal(1 <= event.kept <= count and (event.kept < count or len(event.tasks) > 0))
        yield from fits(was, event.tasks, held.tasks[max(event.kept, 0) :])


def bounded(figures: Iterable[Any], most: int) -> Iterator[z3.BoolRef]:
    for figure in figures:
        yield z3.And(term(figure) >= 0, term(figure) <= most)


def idle(was: Ledger, n: int) -> Iterator[z3.BoolRef]:
    yield term(was.cpu_free[n]) == term(was.cpu_total[n])
    yield term(was.mib_free[n]) == term(was.mib_total[n])
    for d in range(was.devices[n]):
        yield term(was.milli_free[n, d]) == WHOLE
        yield term(was.mem_free[n, d]) == term(was.device_mib[n])


def fits(
    was: Ledger, tasks: tuple[TaskPlacement, ...], freed: tuple[TaskPlacement, ...] = ()
) -> Iterator[z3.BoolRef]:
    """Sound tasks, on nodes that are up, and the sum of what they ask of each node and device is free, once `freed`
    are gone."""
    asked: dict[tuple[str, int, int], list[z3.ArithRef]] = {}
    for task in tasks:
        n = was.node_row.get(task.node)
        yield sound(task)
        yield z3.BoolVal(n is not None and len(set(task.devices)) == len(task.devices))
        if n is None:
            continue
        yield term(was.up[n])
        yield z3.BoolVal(all(0 <= d < was.devices[n] for d in task.devices))
        for place, amount in parts(n, task):
            asked.setdefault(place, []).append(amount)
    back = [part for task in freed for part in parts(was.node_row[task.node], task)]
    for (name, n, d), amounts in asked.items():
        column = getattr(was, name)
        if column.ndim == 1 or 0 <= d < column.shape[1]:
            free = term(column[n] if column.ndim == 1 else column[n, d])
            yield z3.Sum(amounts) <= z3.Sum([free, *(a for place, a in back if place == (name, n, d))])


def parts(n: int, task: TaskPlacement) -> Iterator[tuple[tuple[str, int, int], z3.ArithRef]]:
    """((column, node, device), amount) of all that a task takes on node `n`."""
    yield ("cpu_free", n, 0), term(task.milli_cpu)
    yield ("mib_free", n, 0), term(task.mib)
    for d in task.devices:
        yield ("milli_free", n, d), z3.If(term(task.milli_gpu) > WHOLE, WHOLE, term(task.milli_gpu))
        yield ("mem_free", n, d), term(task.gpu_mib)


def mutant(old: str, new: str) -> ModuleType:
    """The ledger's module with one place of its source changed. ValueError when the place is not there once."""
    assert real.__file__
    source = Path(real.__file__).read_text()
    if source.count(old) != 1:
        raise ValueError(f"the ledger has {old!r} {source.count(old)} times, not once")
    module = ModuleType("moorage.scheduling.ledger_mutant")
    sys.modules[module.__name__] = module  # `dataclass` looks its own module up
    try:
        exec(compile(source.replace(old, new), "ledger_mutant.py", "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module
