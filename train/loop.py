"""Optimiser steps with checkpoints and exact resume, for one rank of any number. No Ray here.

The run is a function of (seed, step): batches come from `BatchOrder`, randomness from `seed_step`, everything else
from the checkpoint. So stopping anywhere and starting again gives the weights of a run that never stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from moorage.errors import MoorageError
from moorage.train.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from moorage.train.order import BatchOrder, seed_step
from moorage.train.steplog import StepLog

log = logging.getLogger(__name__)


class Learner(Protocol):
    """What the loop drives: `step` does one optimiser step on these rows and returns the loss."""

    def step(self, rows: torch.Tensor, step: int) -> float: ...

    def state(self) -> Any:
        """Everything a resumed run needs (same on every rank); called on all ranks, used on rank 0."""

    def load(self, state: Any) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """This rank among its peers. `agree(n)` gives every rank the n of rank 0 (a broadcast)."""

    rank: int = 0
    world: int = 1
    agree: Callable[[int], int] = lambda n: n


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run ended: `start` is the step it began at, `steps` how many optimiser steps it has in all."""

    start: int
    steps: int
    loss: float
    left: bool = False
    """It was told to leave: its last checkpoint is of `steps`, and a later run goes on from there."""


def resume(learner: Learner, store: CheckpointStore, peers: Peers, order: BatchOrder) -> int:
    """Load the newest intact checkpoint into `learner`; return the step to go on from (0 without one).

    Rank 0 chooses, so that all ranks take the same checkpoint even if one cannot see the newest yet. Raises
    CheckpointError (code `checkpoint-of-another-run`) when it was written over another order of rows: going on would
    train a mixture of two runs, or call a run finished that never began.
    """
    found = store.latest() if peers.rank == 0 else None
    start = peers.agree(0 if found is None else found.step)
    if start:
        checkpoint = found if found is not None and found.step == start else store.load(start)
        written = checkpoint.meta.get("order")
        if written != asdict(order):
            raise CheckpointError(
                f"the checkpoint of step {start} belongs to another run",
                why=f"its rows, batch and seed are {written}, this run's {asdict(order)}",
                todo=f"use another folder, or move {store.root} away to begin again",
                code="checkpoint-of-another-run",
            )
        learner.load(checkpoint.state())
        log.info("rank %d resumes from the checkpoint of step %d", peers.rank, start)
    return start


def train_steps(
    learner: Learner,
    order: BatchOrder,
    store: CheckpointStore,
    *,
    total: int,
    checkpoint_every: int,
    peers: Peers | None = None,
    steps: StepLog | Callable[[int], StepLog] | None = None,
    on_checkpoint: Callable[[int, float, Checkpoint | None], None] | None = None,
    leaves: Callable[[], object] | None = None,
) -> Progress:
    """Run up to `total` optimiser steps, resuming first.

    `leaves` (such as `moorage.preemption`) is asked after each step; when it answers something true on rank 0, all
    ranks checkpoint that step and return.

    `on_checkpoint(step, loss, checkpoint)` runs on every rank at every checkpoint (Ray Train's report is a barrier);
    `checkpoint` is None but on rank 0. Raises MoorageError when the loss is not finite.
    """
    peers = peers or Peers()
    if peers.rank == 0:
        store.tidy()
    start = resume(learner, store, peers, order)
    journal = steps(start) if callable(steps) else steps
    loss, epoch, permutation, left = float("nan"), -1, torch.empty(0), False
    for step in range(start, total):
        if step // order.steps_per_epoch != epoch:
            epoch = step // order.steps_per_epoch
            permutation = order.epoch(epoch)
        seed_step(order.seed, step, peers.rank)
        loss = learner.step(order.share(permutation, step, peers.rank, peers.world), step)
        done = step + 1
        if journal is not None:
            journal.write(done, loss)
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise MoorageError(
                f"the loss is {loss} at step {done}",
                why="training has diverged",
                todo="lower the learning rate; the checkpoints before it are kept",
                code="training-diverged",
            )
        if done % checkpoint_every == 0 or done == total:
            saved = _checkpoint(learner, store, done, peers, order)
            if on_checkpoint is not None:
                on_checkpoint(done, loss, saved)
        if leaves is not None and done < total and peers.agree(int(bool(leaves()))):
            if done % checkpoint_every:
                saved = _checkpoint(learner, store, done, peers, order)
                if on_checkpoint is not None:
                    on_checkpoint(done, loss, saved)
            total, left = done, True
            break
    if journal is not None:
        journal.close()
    return Progress(start=start, steps=max(start, total), loss=loss, left=left)


def _checkpoint(
    learner: Learner, store: CheckpointStore, step: int, peers: Peers, order: BatchOrder
) -> Checkpoint | None:
    state = learner.state()
    return store.save(step, state, {"order": asdict(order)}) if peers.rank == 0 else None
