"""S2-S4: each transition of the ledger keeps the invariants for all integers: its own code, run on symbols."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
from ledger_proof import mutant, prove
from ledger_scene import Scene, lease
from ledger_witness import seen
from symbolic import Bool, Int, Path, explore

from moorage.scheduling.constraints import Traits
from moorage.scheduling.model import Lease, NodeSpec, TeamSpec

SPOT = Traits(spot=True)
Tasks = tuple[tuple[str, tuple[int, ...]], ...]

ODD: list[Tasks] = [
    (("n0", (2,)),),
    (("n0", (-1,)),),
    (("n1", (1,)),),
    (("n0", (0, 0)),),
    (("n0", (1, 0)),),
    (("n0", (0, 1, 2)),),
    (("n7", (0,)),),
    (("n0", (0,)), ("n7", ())),
    (("n0", (0,)), ("n0", (1,)), ("n1", (0,))),
    (("n0", (0,)), ("n0", (0,)), ("n0", (0,)), ("n0", ())),
]
PLACES: list[tuple[str, tuple[int, ...]]] = [
    ("n0", ()),
    ("n0", (0,)),
    ("n0", (1,)),
    ("n0", (0, 1)),
    ("n1", ()),
    ("n1", (0,)),
]
HELD: list[Tasks] = [
    (),
    (("n0", ()),),
    (("n0", (0,)),),
    (("n0", (0, 1)), ("n1", (0,))),
    (("n0", (0,)), ("n0", (0,))),
]


def granting(tasks: Tasks, held: Lease | None = None, team: str = "ops", name: str = "new") -> Scene:
    new = lease(name, *tasks, team=team, symbols="new")
    return Scene(lambda m: m.LeaseGranted(new), held)


def releasing(held: Lease, name: str = "held") -> Scene:
    epoch = Int("event.epoch")
    return Scene(lambda m: m.LeaseReleased(name, epoch), held)


def resizing(
    held: Lease | None, kept: int, tasks: Tasks = (), name: str = "held", granted: Int | None = None
) -> Scene:
    epoch, to, new = Int("event.epoch"), granted or Int("event.granted"), lease("new", *tasks).tasks
    return Scene(lambda m: m.LeaseResized(name, epoch, to, kept, new), held)


def joining(name: str, devices: int, model: str, held: Lease | None) -> Scene:
    figures = {f: Int(f"spec.{f}") for f in ("device_mib", "milli_cpu", "mib")}
    spec = NodeSpec(name=name, devices=devices, gpu_model=model, traits=SPOT, **figures)  # type: ignore[arg-type]
    return Scene(lambda m: m.NodeUp(spec), held)


def leaving(name: str, held: Lease | None) -> Scene:
    return Scene(lambda m: m.NodeDown(name), held)


def setting(name: str, parent: str, *models: str, held: Lease | None = None) -> Scene:
    figures = {
        f: tuple((m, Int(f"spec.{f}.{m}")) for m in models) for f in ("quota", "limit", "lend", "borrow")
    }
    spec = TeamSpec(name=name, parent=parent, weight=Int("spec.weight"), **figures)  # type: ignore[arg-type]
    return Scene(lambda m: m.TeamSet(spec), held)


def scenes(every: bool) -> dict[str, list[Scene]]:
    """By transition: all shapes of up to two tasks and all specs, or those that differ most."""
    held = [lease("held", *tasks) for tasks in HELD]
    two, new = held[3], held[2]
    pairs = [(a,) for a in PLACES] + [(a, b) for a, b in product(PLACES, repeat=2) if every or a <= b]
    grants = [granting(tasks, h) for tasks in pairs for h in ((None, two) if every else (None,))]
    grants += [granting(tasks) for tasks in ODD] + [granting((), two), granting((PLACES[1],), two)]
    grants += [granting((PLACES[1],), two, team="research"), granting((PLACES[1],), team="nobody")]
    grants += [granting((PLACES[1],), two, name="held")]
    if every:
        grants += [granting(tasks) for tasks in product(PLACES, repeat=3)]
    resizes = [resizing(h, kept) for h in held for kept in range(-1, len(h.tasks) + 2)]
    resizes += [
        resizing(h, kept, tasks)
        for h in (held if every else (new, two, held[4]))
        for kept in range(1, len(h.tasks) + 1)
        for tasks in (
            pairs if every else [(p,) for p in PLACES] + [(PLACES[1], PLACES[1]), (PLACES[4], PLACES[5])]
        )
    ]
    resizes += [resizing(two, 1, tasks) for tasks in (*ODD, ((PLACES[0], PLACES[0], ("n7", ()))))]
    resizes += [resizing(None, 1), resizing(new, 1, (PLACES[2],), "other")]
    joins = [
        joining(name, devices, model, h)
        for name, devices, model in product(("n0", "n1", "n2"), range(4), ("A", "B", "C"))
        for h in ((None, new) if every else (new,))
        if every or model != "B" or name == "n1"
    ]
    models: list[tuple[str, ...]] = [("*",), ("A", "B"), ("*", "C")]
    models += [(), ("A",), ("C", "D"), ("*", "A", "B")] if every else []
    sets = [
        setting(name, parent, *columns, held=new)
        for name in ("ops", "research", "new")
        for parent in ("", "ops", "research", "new", "nobody")
        for columns in (models if every or parent == "ops" else models[:1])
    ]
    return {
        "grant": grants,
        "release": [releasing(h) for h in held] + [releasing(new, "other")],
        "resize": resizes,
        "node up": joins,
        "node down": [leaving(n, h) for n in ("n0", "n1", "n7") for h in (None, new)],
        "team": sets,
    }


def keeps_its_invariants(transition: str, every: bool) -> None:
    proofs = [prove(scene) for scene in scenes(every)[transition]]
    assert [p.broken for p in proofs if p.broken] == []
    assert sum(p.applied for p in proofs) > 0
    assert sum(p.refused for p in proofs) > 0
    paths, claims = sum(p.applied + p.refused for p in proofs), sum(p.claims for p in proofs)
    print(f"{transition}: {len(proofs)} shapes, {paths} paths, {claims} claims")


TRANSITIONS = ("grant", "release", "resize", "node up", "node down", "team")


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_no_integers_break_an_invariant(transition: str) -> None:
    keeps_its_invariants(transition, every=False)


@pytest.mark.soak
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_no_integers_break_an_invariant_in_any_shape(transition: str) -> None:
    keeps_its_invariants(transition, every=True)


@dataclass(frozen=True, slots=True)
class Change:
    """`old` becomes `new` in the ledger; `scene` must then have a counterexample to a claim named so."""

    old: str
    new: str
    scene: Scene
    breaks: str


ONE, PAIR, CPU = (("n0", (0,)),), (("n0", (0,)), ("n0", (0,))), (("n0", ()),)
HOLDS = lease("held", ("n0", (0,)))
BOTH = lease("held", ("n0", (0,)), ("n0", (1,)))
CHANGES = {
    "an epoch again": Change(
        "lease.epoch <= ledger.last", "lease.epoch < ledger.last", granting(ONE, HOLDS), "share an epoch"
    ),
    "an id again": Change(
        "if lease.lease in ledger.leases:", "if False:", granting(ONE, HOLDS, name="held"), "add up"
    ),
    "a node that is down": Change("or not ledger.up[row]", "", granting(ONE), "speaks"),
    "CPU": Change("ledger.cpu_free.item(row) < task.milli_cpu or ", "", granting(CPU), "cpu_free"),
    "CPU, one too many": Change(
        "cpu_free.item(row) < task.milli_cpu",
        "cpu_free.item(row) < task.milli_cpu - 1",
        granting(CPU),
        "cpu_free",
    ),
    "CPU, one too few": Change(
        "cpu_free.item(row) < task.milli_cpu",
        "cpu_free.item(row) <= task.milli_cpu",
        granting(CPU),
        "speaks against",
    ),
    "memory": Change(" or ledger.mib_free.item(row) < task.mib", "", granting(CPU), "mib_free"),
    "a share": Change("ledger.milli_free.item(row, d) < each or ", "", granting(ONE), "milli_free"),
    "a share, one too many": Change(
        "milli_free.item(row, d) < each", "milli_free.item(row, d) < each - 1", granting(ONE), "milli_free"
    ),
    "a share of one's own lease": Change(
        "            _move(ledger, row, task, -1)", "            pass", granting(PAIR), "add up"
    ),
    "device memory": Change(" or ledger.mem_free.item(row, d) < task.gpu_mib", "", granting(ONE), "mem_free"),
    "a device beyond the last": Change(
        "if not 0 <= d < devices:",
        "if not 0 <= d <= devices:",
        granting((("n0", (2,)),)),
        "applies or refuses",
    ),
    "a device before the first": Change(
        "if not 0 <= d <", "if not d <", granting((("n0", (-1,)),)), "speaks against"
    ),
    "nothing of a device": Change("return 0 < task", "return 0 <= task", granting(ONE), "sound"),
    "two of one device": Change("<= WHOLE\n    return", "<= 2 * WHOLE\n    return", granting(ONE), "sound"),
    "a device twice": Change(
        " and len(set(task.devices)) == count", "", granting((("n0", (0, 0)),)), "milli_free"
    ),
    "two devices for one": Change(
        "task.milli_gpu == count * WHOLE", "task.milli_gpu > 0", granting((("n0", (0, 1)),)), "used"
    ),
    "less than no CPU": Change("task.milli_cpu < 0 or ", "", granting(CPU), "cpu_free"),
    "less than no memory": Change("or task.mib < 0 ", "", granting(CPU), "mib_free"),
    "less than no device memory": Change(" or task.gpu_mib < 0", "", granting(ONE), "mem_free"),
    "no way back": Change(
        "            _move(ledger, row, task, 1)\n        raise",
        "            pass\n        raise",
        granting(PAIR),
        "as it was",
    ),
    "an uncharged grant": Change("_charge(ledger, team, row, task.milli_gpu)", "pass", granting(ONE), "used"),
    "a grant that holds no CPU": Change("cpu = cpu + task.milli_cpu", "pass", granting(CPU), "held"),
    "a grant that holds no memory": Change("mib = mib + task.mib", "pass", granting(CPU), "held"),
    "a grant that holds one device's memory": Change(
        "len(task.devices) * task.gpu_mib", "task.gpu_mib", granting((("n0", (0, 1)),)), "held"
    ),
    "a release that lets go of nothing": Change(
        "_hold(ledger, team, lease.tasks, -1)", "pass", releasing(HOLDS), "held"
    ),
    "a charge of all models alone": Change("if column:", "if column < 0:", granting(ONE), "used"),
    "an epoch forgotten": Change("    ledger.last_epoch = lease.epoch", "", granting(ONE), "highest epoch"),
    "an unlogged grant": Change("ledger.touched += rows", "pass", granting(ONE), "is logged"),
    "a later epoch's release": Change(
        "lease.epoch != epoch", "lease.epoch > epoch", releasing(HOLDS), "speaks"
    ),
    "a released lease that stays": Change("del ledger.leases[lease_id]", "pass", releasing(HOLDS), "is gone"),
    "a release charged again": Change(
        "row, -task.milli_gpu)\n        ledger.touched.append(row)\n    _hold(ledger, team, lease",
        "row, task.milli_gpu)\n        ledger.touched.append(row)\n    _hold(ledger, team, lease",
        releasing(HOLDS),
        "used",
    ),
    "memory kept after the end": Change(
        "mem.item(row, d) + gpu_mib", "mem.item(row, d) + min(gpu_mib, 0)", releasing(HOLDS), "MiB"
    ),
    "a stale resize": Change(
        "lease = _held(ledger, event.lease, event.epoch)",
        "lease = _held(ledger, event.lease, ledger.leases[event.lease].epoch)",
        resizing(BOTH, 1),
        "speaks against",
    ),
    "an epoch resized to again": Change(
        "event.granted <= ledger.last_epoch", "event.granted < ledger.last_epoch", resizing(BOTH, 1), "speaks"
    ),
    "resized to nothing": Change("not 0 < event.kept", "not 0 <= event.kept", resizing(BOTH, 0), "speaks"),
    "a resize of nothing": Change(
        "event.kept == len(lease.tasks) and not event.tasks", "False", resizing(BOTH, 2), "speaks"
    ),
    "room of the given up kept": Change(
        "_move(ledger, ledger.node_row[task.node], task, 1)", "pass", resizing(BOTH, 1), "add up"
    ),
    "the given up are not taken again": Change(
        "_move(ledger, ledger.node_row[task.node], task, -1)",
        "pass",
        resizing(BOTH, 1, (("n0", (0,)),)),
        "as it was",
    ),
    "the given up are charged on": Change(
        "_charge(ledger, team, row, -task.milli_gpu)\n        ledger.touched.append(row)\n    _hold(ledger, team, g",
        "pass\n        ledger.touched.append(row)\n    _hold(ledger, team, g",
        resizing(BOTH, 1),
        "used",
    ),
    "what the given up held beside GPUs is held on": Change(
        "_hold(ledger, team, given_up, -1)", "pass", resizing(BOTH, 1), "held"
    ),
    "an unlogged shrink": Change(
        "        ledger.touched.append(row)\n    _hold(ledger, team, given_up",
        "    _hold(ledger, team, given_up",
        resizing(BOTH, 1),
        "is logged",
    ),
    "a resize under the old epoch": Change(
        "replace(lease, epoch=event.granted, tasks",
        "replace(lease, tasks",
        resizing(BOTH, 1),
        "that was granted",
    ),
    "a resize that forgets what it keeps": Change(
        "lease.tasks[: event.kept] + event.tasks", "event.tasks", resizing(HOLDS, 1, (("n0", (1,)),)), "keeps"
    ),
    "an epoch forgotten by a resize": Change(
        "    ledger.last_epoch = event.granted", "", resizing(BOTH, 1), "highest epoch"
    ),
    "other figures under a lease": Change(
        " or _idle(ledger, row)", " or True", joining("n0", 2, "A", HOLDS), "add up"
    ),
    "another model under a lease": Change(
        "ledger.models[ledger.model.item(row)] == spec.gpu_model",
        "True",
        joining("n0", 2, "B", HOLDS),
        "speaks",
    ),
    "other figures under a lease of CPU": Change(
        "ledger.cpu_free.item(row) != ledger.cpu_total.item(row)", "False", joining("n0", 2, "A", None), "cpu"
    ),
    "traits of a node that came back as it was": Change(
        "ledger.trait[row] = ledger.trait_of(spec.traits)\n        ledger.touched",
        "ledger.touched",
        joining("n0", 2, "A", HOLDS),
        "traits",
    ),
    "traits of a node that is new": Change(
        "ledger.trait[row] = ledger.trait_of(spec.traits)\n    ledger.devices",
        "ledger.devices",
        joining("n2", 1, "A", None),
        "traits",
    ),
    "a node of less than nothing": Change(
        "figure < 0 or figure > MOST", "figure > MOST", joining("n2", 1, "A", None), "is not below"
    ),
    "a node beyond all bounds": Change(
        "figure > MOST", "figure > 2**70", joining("n2", 1, "A", None), "above"
    ),
    "a device that is not full": Change(
        "(ledger.mem_free, spec.device_mib)",
        "(ledger.mem_free, spec.mib)",
        joining("n2", 1, "A", None),
        "mem_free",
    ),
    "a node lost unnoticed": Change(
        "ledger.up[row] = False\n", "ledger.up[row] = False; return\n", leaving("n0", None), "version"
    ),
    "a quota below nothing": Change("if amount < 0 or ", "if ", setting("ops", "", "*"), "is not below"),
    "a sum of quotas beyond all bounds": Change(
        "min(UNLIMITED, sum(amount for _, amount in columns))",
        "sum(amount for _, amount in columns)",
        setting("ops", "", "A", "B"),
        "quota",
    ),
    "a limit beyond all bounds": Change(
        "amount > UNLIMITED", "amount > 2**70", setting("ops", "", "*"), "above"
    ),
    "a team under itself": Change("parent >= row", "parent > row", setting("ops", "ops"), "parent"),
    "a weight below nothing": Change("spec.weight < 0 or ", "", setting("ops", ""), "weight"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_guard_has_a_counterexample_that_real_arrays_show(name: str) -> None:
    change = CHANGES[name]
    module = mutant(change.old, change.new)
    broken = prove(change.scene, module, about=change.breaks).broken
    assert broken is not None, "the proof does not notice"
    assert seen(module, change.scene, broken.model), "the counterexample shows nothing on real arrays"


def test_a_symbol_never_becomes_a_number() -> None:
    """The proof would be of one number, not of all, if the ledger's code could turn a symbol into one."""
    for convert in (int, float, bool, range, [0].__getitem__):
        with pytest.raises((AssertionError, TypeError)):
            convert(Int("x"))


def test_every_path_is_taken_once() -> None:
    import z3

    x, y = Int("x"), Int("y")

    def run() -> str:
        if x < 0:
            return "below" if y < x else "below, y not"
        return "clamped" if min(x, 1000) < x else "kept"

    solver = z3.Solver()
    solver.add(y.term >= 0)
    found = []
    for result in explore(solver, run):
        found.append(result)
        assert solver.check() == z3.sat
    assert sorted(found) == ["below, y not", "clamped", "kept"]
    assert Path.now is None
    with pytest.raises(AssertionError, match="outside"):
        bool(Bool(x.term > 0))
