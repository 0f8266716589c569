"""Which worker of `pytest -n` takes which test module.

A module that starts Ray mostly waits: for processes to come up, for a notice to run out. The rest computes. So one
worker begins with the first kind while the others do the second, and each helps the other side when its own is
empty. A module stays whole: its tests share what they stand on.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

RAY = "tests/ray/"
LONGEST = ("preemption", "surge", "train", "elastic", "soak", "front_door", "standby", "head_loss")
"""Modules of few tests that take minutes, the longest first. By their number of tests, which is pytest-xdist's order,
they would come last, and one worker would be left with one of them."""


class Halves(LoadFileScheduling):
    """A unit of work is a module (`tests/x/test_y.py`); who begins with what is decided as units are handed out."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        first = next(iter(self.assigned_work))
        self.workqueue.move_to_end(chosen(list(self.workqueue), with_ray=node is first), last=False)
        super()._assign_work_unit(node)


def chosen(waiting: list[str], *, with_ray: bool) -> str:
    """The next of the waiting modules for a worker of this side, of the other side when its own is empty."""
    own = [name for name in waiting if (RAY in name) == with_ray]
    return min(own or waiting, key=_rank)


def _rank(name: str) -> int:
    of_ray = [f"{RAY}test_{one}.py" for one in LONGEST]
    return next((rank for rank, module in enumerate(of_ray) if name.endswith(module)), len(of_ray))
