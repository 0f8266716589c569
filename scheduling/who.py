"""Who runs, as the admission loop reads it, laid out when it is first needed.

Only a job that finds no room needs it, and it costs more than all else in a decision that places one job in a large
pool: in most decisions nobody asks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moorage.kernels import moving, preemption
from moorage.kernels.pool import Pool
from moorage.kernels.teams import Teams
from moorage.scheduling import domains
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import WHOLE, IntArray, Policy
from moorage.scheduling.running import Pieces, RunningJobs


class Left(NamedTuple):
    """What a decision took from running jobs; `leave`, `shrunk` and `moved` are rows of `RunningJobs`."""

    leave: IntArray
    pieces: IntArray
    """[leave] the piece that each keeps to the last."""
    shrunk: IntArray
    kept: IntArray
    """[shrunk] tasks that each keeps."""
    moved: IntArray
    """Once for each task that has a new place."""
    moved_task: IntArray
    """Which of its tasks, from 0."""
    node: IntArray
    mask: IntArray
    mib: IntArray
    """Held on each of its devices."""
    after: IntArray
    """Once so many admissions have started."""


class Who:
    """Of one decision. `held`: the running jobs' classes as the decision counts them."""

    __slots__ = ("_held", "_laid", "_ledger", "_policy", "_pool", "_teams", "jobs")

    def __init__(
        self, jobs: RunningJobs, ledger: Ledger, policy: Policy, held: IntArray, teams: Teams, pool: Pool
    ) -> None:
        self.jobs, self._ledger, self._policy, self._held = jobs, ledger, policy, held
        self._teams, self._pool = teams, pool
        self._laid: tuple[Pieces, preemption.Running, moving.Moves] | None = None

    @property
    def pieces(self) -> Pieces:
        return self._all()[0]

    @property
    def running(self) -> preemption.Running:
        return self._all()[1]

    @property
    def moves(self) -> moving.Moves:
        return self._all()[2]

    def _all(self) -> tuple[Pieces, preemption.Running, moving.Moves]:
        if self._laid is None:
            jobs, held, pieces = self.jobs, self._held, self.jobs.pieces()
            running = jobs.columns(pieces, self._ledger, held, self._policy)
            moves = jobs.moves(pieces, self._policy.moves, self._ledger, self._teams)
            domains.keep_in_place(self._pool.limits, moves.may, pieces.first, held[jobs.task_class])
            self._laid = pieces, running, moves
        return self._laid

    def disturbed(self) -> bool:
        """Whether anybody was asked to leave or moved."""
        return self._laid is not None and bool(self.running.taken.any() or self.moves.moved.any())

    def left(self) -> Left:
        """What became of them."""
        none = np.zeros(0, np.int64)
        if self._laid is None:
            return Left(*[none] * len(Left._fields))
        pieces, running, moves = self._laid
        log = moves.log[: moves.made[0]]
        log = log[~running.taken[log[:, 0]]]
        moved, task = pieces.job[log[:, 0]], log[:, 4]
        leave, shrunk, kept = pieces.left(running.taken)
        return Left(
            leave=leave,
            pieces=np.flatnonzero(pieces.rank == 0)[leave],
            shrunk=shrunk,
            kept=kept,
            moved=moved,
            moved_task=task - self.jobs.first[moved],
            node=running.node[task],
            mask=running.mask[task],
            mib=self._held_mib(task),
            after=log[:, 3].copy(),
        )

    def _held_mib(self, task: IntArray) -> IntArray:
        """MiB that these tasks hold on each of their devices."""
        running, classes = self.running, self._pool.classes
        klass, device_mib = running.klass[task], self._pool.nodes.device_mib[running.node[task]]
        milli, asked = classes.milli[klass], classes.gpu_mib[klass]
        part = np.where(asked > 0, asked, milli * device_mib // WHOLE)
        return np.asarray(np.where(milli >= WHOLE, device_mib, np.where(milli > 0, part, 0)), np.int64)
