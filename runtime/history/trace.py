"""What every reader answers: a workload, the rows left out of it, and what was done to the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moorage.errors import DataError
from moorage.scheduling.model import NodeSpec
from moorage.scheduling.simulator.model import BoolArray, Kind, LeftOut, Workload, fits
from moorage.scheduling.simulator.partition import fit_partition, shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """`rows[i]` is the file's row (from 1) of the workload's job i. `notes` are sentences for the report."""

    source: str
    workload: Workload
    rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def that_fit(self, nodes: Sequence[NodeSpec]) -> Trace:
        """Without the jobs that these nodes could not hold even idle: they would wait for ever.

        Arrivals that never leave do not wait: there such a job stays, is refused when it comes, and is reported, so
        that the demand is the one the list asks for. Raises DataError when none is left.
        """
        job, possible = self.workload, fits(self.workload, nodes)
        stay = job.kind is Kind.ARRIVALS
        misfits = [
            LeftOut(
                row=int(self.rows[i]),
                name=job.name(i),
                code="fits-nowhere",
                text=f"asks for {job.min_workers[i]} x {job.milli_gpu[i] / 1000:g} GPU, "
                f"{job.milli_cpu[i] / 1000:g} CPU, {job.mib[i]} MiB{_of(job.model_sets[job.models[i]])}; "
                f"the idle nodes cannot hold that{'; it arrives, and is refused' if stay else ''}",
            )
            for i in np.flatnonzero(~possible).tolist()
        ]
        left_out = tuple(sorted((*self.left_out, *misfits), key=lambda one: one.row))
        check_any(self.source, int(possible.sum()), left_out)
        return replace(self, left_out=left_out) if stay else self._kept(possible, left_out)

    def that_fit_shares(self, nodes: Sequence[NodeSpec]) -> Trace:
        """Without the jobs that could not run in their team's own partition of these nodes: teams are compared by
        how their jobs fared there. Raises DataError when none is left."""
        job, possible = self.workload, fit_partition(self.workload, nodes)
        milli, own = job.gpus(), shares(job, nodes)
        misfits = [
            LeftOut(
                row=int(self.rows[i]),
                name=job.name(i),
                code="fits-no-share",
                text=f"asks for {milli[i] / 1000:g} GPU; the partition of {job.teams[job.team[i]]}, its share of the "
                f"GPU-time, has {own[job.team[i]] / 1000:g}",
            )
            for i in np.flatnonzero(~possible).tolist()
        ]
        left_out = tuple(sorted((*self.left_out, *misfits), key=lambda one: one.row))
        check_any(self.source, int(possible.sum()), left_out)
        return self._kept(possible, left_out)

    def _kept(self, possible: BoolArray, left_out: tuple[LeftOut, ...]) -> Trace:
        if possible.all():
            return replace(self, left_out=left_out)
        kept = np.flatnonzero(possible)
        return replace(self, workload=self.workload.take(kept), rows=self.rows[kept], left_out=left_out)


def _of(models: tuple[str, ...]) -> str:
    return f" on {'|'.join(models)}" if models else ""


def check_any(source: str, kept: int, left_out: Sequence[LeftOut]) -> None:
    """DataError when no job is left to simulate."""
    if kept:
        return
    if not left_out:
        raise DataError(f"{source} has no jobs", why="there is no row below the header", code="trace-empty")
    raise DataError(
        f"no job of {source} can be simulated",
        why=f"all {len(left_out)} rows are left out; row {left_out[0].row}: {left_out[0].text}",
        code="trace-nothing-left",
    )


def left_out_json(left_out: Sequence[LeftOut]) -> list[dict[str, Any]]:
    """For --json and the report."""
    return [{"row": one.row, "name": one.name, "code": one.code, "text": one.text} for one in left_out]


def left_out_counts(left_out: Sequence[LeftOut]) -> dict[str, int]:
    """Code -> rows, the most frequent first."""
    return dict(Counter(one.code for one in left_out).most_common())
