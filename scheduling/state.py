"""The pool's state as columns. `ledger.step` is the only one that changes it; everyone reads it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.scheduling.constraints import NO_TRAITS, Constraints, Traits
from moorage.scheduling.model import ANY_MODEL, UNLIMITED, WHOLE, IntArray, Lease
from moorage.scheduling.rows import Rows, widened

FIGURES = (("quota", 0), ("limit", UNLIMITED), ("lend", UNLIMITED), ("borrow", UNLIMITED))
"""A team's figures by model column, with what each is where nothing is said."""
NODE_COLUMNS = (
    "up",
    "model",
    "trait",
    "devices",
    "device_mib",
    "milli_free",
    "mem_free",
    "cpu_total",
    "cpu_free",
    "mib_total",
    "mib_free",
)
TEAM_COLUMNS = ("team_parent", "weight", "used", "held", "quota", "limit", "lend", "borrow")


class Mark(NamedTuple):
    """A moment of a ledger's history, for `Ledger.touched_since`."""

    lineage: object
    position: int


class _Derived:
    """What follows from the events and makes the ledger quick. Not its state: not compared, not replayed."""

    __slots__ = (
        "_behind",
        "_by_job",
        "_capacity",
        "_forked",
        "_may_run",
        "layout",
        "lineage",
        "touched",
        "touched_from",
    )

    _behind: Rows
    _by_job: dict[str, dict[str, Lease]] | None
    """Leases by job, then id; built when first asked for."""
    _capacity: tuple[tuple[object, int, int], IntArray] | None
    """For a lineage, layout and number of models."""
    _forked: bool
    """A copy that has not stepped yet: its next step parts it from its origin."""
    _may_run: dict[Constraints, npt.NDArray[np.int8]]
    """By row of `traits`: whether such a node may be used. Shared within a lineage: only one of it ever adds rows."""
    layout: int
    """Grows whenever a node joins, changes, comes back or goes."""
    lineage: object
    """The same object in a ledger and in its copies, until a copy steps on its own. Who writes to the arrays without
    `step` sets a new one."""
    touched: list[int]
    """Node rows in the order they changed; the first entry is number `touched_from` of the history."""
    touched_from: int


class Ledger(_Derived):
    """The pool's book. Arrays are sized to what is known: N nodes, G device columns, T teams, M models.

    An array attribute is replaced when it grows: read it from the ledger again after a step.
    """

    __slots__ = (
        "borrow",
        "cpu_free",
        "cpu_total",
        "device_mib",
        "devices",
        "held",
        "last_epoch",
        "leases",
        "lend",
        "limit",
        "mem_free",
        "mib_free",
        "mib_total",
        "milli_free",
        "model",
        "models",
        "node_names",
        "node_row",
        "quota",
        "team_names",
        "team_parent",
        "team_row",
        "trait",
        "trait_row",
        "traits",
        "up",
        "used",
        "version",
        "weight",
    )

    def __init__(self) -> None:
        self._behind = Rows()
        self._by_job = None
        self._capacity = None
        self._forked = False
        self._may_run = {}
        self.layout = 0
        self.lineage = object()
        self.touched = []
        self.touched_from = 0
        self.version = 0
        """Grows by one with every applied event."""
        self.last_epoch = 0
        """The highest fencing token ever granted here."""
        self.leases: dict[str, Lease] = {}
        """By lease id, in order of epoch."""
        self.models: list[str] = [ANY_MODEL]
        """Column names of team figures; 0 counts every model."""
        self.node_names: list[str] = []
        self.node_row: dict[str, int] = {}
        self.up: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.model: IntArray = _ints(0)
        """[N] row in `models`; 0 = a node without GPUs."""
        self.trait: IntArray = _ints(0)
        """[N] row in `traits`: labels, taints and the like, equal for many nodes."""
        self.traits: list[Traits] = [NO_TRAITS]
        """Every set of traits that a node ever had."""
        self.trait_row: dict[Traits, int] = {NO_TRAITS: 0}
        self.devices: IntArray = _ints(0)
        """[N] device count; columns beyond it are 0 in the two arrays below."""
        self.device_mib: IntArray = _ints(0)
        self.milli_free: IntArray = _ints(0, 0)
        """[N, G] 0..1000: 1000 minus what leases hold."""
        self.mem_free: IntArray = _ints(0, 0)
        """[N, G] 0..device_mib: device_mib minus what leases hold."""
        self.cpu_total: IntArray = _ints(0)
        self.cpu_free: IntArray = _ints(0)
        self.mib_total: IntArray = _ints(0)
        self.mib_free: IntArray = _ints(0)
        self.team_names: list[str] = []
        self.team_row: dict[str, int] = {}
        self.team_parent: IntArray = _ints(0)
        """[T] row of the parent, -1 at the root; parents come before children, so there is no cycle."""
        self.weight: IntArray = _ints(0)
        self.quota: IntArray = _ints(0, 1)
        """[T, M] milli-GPU guaranteed to the team's whole subtree."""
        self.limit: IntArray = _ints(0, 1)
        self.lend: IntArray = _ints(0, 1)
        self.borrow: IntArray = _ints(0, 1)
        self.used: IntArray = _ints(0, 1)
        """[T, M] milli-GPU held by the team's own leases (not its children's)."""
        self.held: IntArray = _ints(0, 3)
        """[T, 3] milli-CPU, MiB and MiB of device memory held by the team's own leases."""

    def copy(self) -> Ledger:
        """A working copy for what-if: arrays copied, records shared."""
        other = Ledger.__new__(Ledger)
        for name in Ledger.__slots__:
            value = getattr(self, name)
            setattr(other, name, value.copy() if hasattr(value, "copy") else value)
        other._behind, other._by_job, other._capacity, other._forked = Rows(), None, self._capacity, True
        other.layout, other.lineage, other.touched_from = self.layout, self.lineage, self.touched_from
        other._may_run = self._may_run
        other.touched = self.touched.copy()
        return other

    def column(self, model: str) -> int:
        """Column of a GPU model, added when new."""
        if model not in self.models:
            self.models.append(model)
            for name, value in (*FIGURES, ("used", 0)):
                setattr(self, name, widened(getattr(self, name), len(self.models), value))
        return self.models.index(model)

    def trait_of(self, traits: Traits) -> int:
        """Row of a set of traits, added when new."""
        if traits not in self.trait_row:
            self.trait_row[traits] = len(self.traits)
            self.traits.append(traits)
        return self.trait_row[traits]

    def may_run(self, constraints: Constraints) -> npt.NDArray[np.int8]:
        """[N] 0 = such a job may not run on the node, 1 = only where no other will do, 2 = it may."""
        known = self._may_run.get(constraints)
        count = 0 if known is None else len(known)
        if known is None or count < len(self.traits):
            more = [
                0 if constraints.excluded(t) else 1 if constraints.shuns(t) else 2
                for t in self.traits[count:]
            ]
            known = np.concatenate(
                (np.zeros(0, np.int8) if known is None else known, np.array(more, np.int8))
            )
            self._may_run[constraints] = known
        return known[self.trait]

    def capacity(self) -> IntArray:
        """[M] milli-GPU of the nodes that are up, per model column. To be read, not written."""
        about = (self.lineage, self.layout, len(self.models))
        if self._capacity is None or self._capacity[0] != about:
            milli = np.where(self.up, self.devices * WHOLE, 0)
            total = np.bincount(self.model, weights=milli, minlength=len(self.models)).astype(np.int64)
            total[0] = milli.sum()
            self._capacity = about, total
        return self._capacity[1]

    def held_by(self, job: str) -> tuple[Lease, ...]:
        """The leases of a job, in order of epoch."""
        if self._by_job is None:
            self._by_job = {}
            for lease in self.leases.values():
                self._by_job.setdefault(lease.job, {})[lease.lease] = lease
        return tuple(self._by_job.get(job, {}).values())

    def mark(self) -> Mark:
        """Now."""
        return Mark(self.lineage, self.touched_from + len(self.touched))

    def touched_since(self, mark: Mark) -> list[int] | None:
        """Node rows that changed since then, in order, repeats included.

        None when they are not known: another history, a later moment of this one, or one trimmed away. Then all
        may differ.
        """
        first = mark.position - self.touched_from
        if mark.lineage is not self.lineage or not 0 <= first <= len(self.touched):
            return None
        return self.touched[first:]

    def trim_touched(self, upto: int) -> None:
        """Forget the entries numbered below `upto`."""
        gone = min(max(0, upto - self.touched_from), len(self.touched))
        del self.touched[:gone]
        self.touched_from += gone


def _ints(*shape: int) -> IntArray:
    return np.zeros(shape, np.int64)
