"""Discrete events over the public `plan()` and `step()`: jobs arrive, run, are preempted and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moorage.scheduling.model import NodeSpec
from moorage.scheduling.simulator.model import JobsResult, NotSimulated, Workload

POLICIES: dict[str, str] = {}
"""Queueing policy -> what it does. The first is the default."""

Progress = Callable[[int, int], None]
"""(jobs that ended, all jobs), now and then."""


def simulate(
    nodes: Sequence[NodeSpec],
    workload: Workload,
    *,
    policy: str,
    stopwatch: Callable[[], float] | None = None,
    progress: Progress | None = None,
) -> JobsResult:
    """Run every job to its end under one policy. Raises NotSimulated."""
    raise NotSimulated(f"there is no policy {policy!r}")
