"""A counterexample of the proof as a real ledger: integers for the symbols, leases for the sums."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import z3
from ledger_scene import DEVICES, NODES, TEAMS, Scene
from symbolic import Bool, Int

from moorage.scheduling import ledger as real
from moorage.scheduling.ledger import LeaseGranted, Ledger, NodeDown, NodeUp, TeamSet, step
from moorage.scheduling.model import Lease, NodeSpec, Role, TaskPlacement, TeamSpec
from moorage.scheduling.validate import check, violations

FIRST = -(10**40)
"""Epochs of the leases behind the sums: below any that the solver thinks of."""


def value(model: z3.ModelRef, of: Any) -> Any:
    """What the model says of a symbol, and of all symbols in a record."""
    if isinstance(of, Int):
        return model.eval(of.term, True).as_long()
    if isinstance(of, Bool):
        return z3.is_true(model.eval(of.term, True))
    if isinstance(of, tuple):
        return tuple(value(model, x) for x in of)
    if isinstance(of, Lease | TaskPlacement | NodeSpec | TeamSpec):
        return replace(of, **{name: value(model, getattr(of, name)) for name in of.__slots__})
    return of


def before(scene: Scene, model: z3.ModelRef) -> Ledger:
    """The ledger before the event, built by the real `step`, and sound."""
    symbols, ledger = scene.pool(), Ledger()
    for n, (name, (gpu_model, devices)) in enumerate(NODES.items()):
        figures = {
            "device_mib": value(model, symbols.device_mib[n]),
            "milli_cpu": value(model, symbols.cpu_total[n]),
            "mib": value(model, symbols.mib_total[n]),
        }
        step(ledger, NodeUp(NodeSpec(name=name, gpu_model=gpu_model, devices=devices, **figures)))
    for t, name in enumerate(TEAMS):
        step(ledger, TeamSet(TeamSpec(name=name, weight=value(model, symbols.weight[t]))))
    ledger.last_epoch = FIRST
    for team, task in others(scene, model):
        epoch = ledger.last_epoch + 1
        rest = Lease(lease=f"rest{epoch - FIRST}", job="rest", team=team, epoch=epoch, tasks=(task,))
        step(ledger, LeaseGranted(rest))
    if scene.held:
        step(ledger, LeaseGranted(value(model, scene.held)))
    for n, name in enumerate(NODES):
        if not value(model, symbols.up[n]):
            step(ledger, NodeDown(name))
    for name in ("quota", "limit", "lend", "borrow"):
        figures_of = getattr(symbols, name)
        setattr(ledger, name, np.vectorize(lambda x: value(model, x), otypes=[np.int64])(figures_of))
    ledger.last_epoch = value(model, symbols.last_epoch)
    check(ledger)
    return ledger


def others(scene: Scene, model: z3.ModelRef) -> list[tuple[str, TaskPlacement]]:
    """(team, task) of the leases behind the sums."""
    found = []
    names = list(NODES)

    def task(n: int, devices: tuple[int, ...], milli: int, mem: int, cpu: int, mib: int) -> TaskPlacement:
        return TaskPlacement(
            role=Role.WORKER,
            index=0,
            node=names[n],
            devices=devices,
            milli_gpu=milli,
            gpu_mib=mem,
            milli_cpu=cpu,
            mib=mib,
        )

    for n, d in DEVICES:
        for t, team in enumerate(TEAMS):
            if milli := value(model, scene.rest_milli[t, n, d]):
                found.append((team, task(n, (d,), milli, value(model, scene.rest_mem[t, n, d]), 0, 0)))
    for t, n in scene.rest_cpu:
        cpu, mib = value(model, scene.rest_cpu[t, n]), value(model, scene.rest_mib[t, n])
        found.append((TEAMS[t], task(n, (), 0, 0, cpu, mib)))
    return found


def outcome(module: ModuleType, scene: Scene, model: z3.ModelRef) -> tuple[str, list[str], dict[str, Any]]:
    """(what the module's `step` does with the real ledger, what the validator says then, the state then)."""
    ledger = before(scene, model)
    event = scene.event(module)
    event = type(event)(*(value(model, getattr(event, name)) for name in event.__match_args__))
    try:
        module.step(ledger, event)
        did = "applied"
    except module.LedgerError:
        did = "refused"
    except (OverflowError, IndexError) as error:
        did = f"failed: {type(error).__name__}"
    return did, violations(ledger), {name: getattr(ledger, name) for name in (*Ledger.__slots__, "touched")}


def seen(module: ModuleType, scene: Scene, model: z3.ModelRef) -> str:
    """How the counterexample shows on real arrays: what the validator says, or what differs from the real `step`."""
    did, found, state = outcome(module, scene, model)
    if found:
        return "; ".join(found)
    true_did, _, true_state = outcome(real, scene, model)
    if did != true_did:
        return f"{did}, not {true_did}"
    differ = [name for name in state if not np.array_equal(state[name], true_state[name])]
    return f"{', '.join(differ)} differ" if differ else ""
