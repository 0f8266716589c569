"""A run that stops and resumes is the run that never stopped, to the bit (T1, T2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moorage.errors import MoorageError
from moorage.train import BatchOrder, CheckpointStore, Peers, StepLog, train_steps
from moorage.train.steplog import read_steps

ROWS, BATCH, TOTAL, EVERY = 200, 16, 40, 7


class Stop(Exception):
    """The test pulls the plug."""


class Learner:
    """A small network with dropout (so randomness matters) and Adam (so the optimiser's state does)."""

    def __init__(self, stop_at: int | None = None) -> None:
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(ROWS, 4, generator=generator), torch.randn(ROWS, 1, generator=generator)
        self.stop_at = stop_at

    def step(self, rows: torch.Tensor, step: int) -> float:
        if step == self.stop_at:
            raise Stop
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.net(self.x[rows]), self.y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        return {"net": dict(self.net.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])


def run(learner: Learner, folder: Path, **more: Any) -> Any:
    order = BatchOrder(rows=ROWS, batch=BATCH, seed=3)
    store = CheckpointStore(folder)
    return train_steps(learner, order, store, total=TOTAL, checkpoint_every=EVERY, **more)


def weights(learner: Learner) -> list[torch.Tensor]:
    return list(learner.net.state_dict().values())


@pytest.mark.parametrize("stop_at", [3, 7, 20, 39])
def test_a_resumed_run_gives_the_same_weights_to_the_bit(tmp_path: Path, stop_at: int) -> None:
    whole = Learner()
    assert run(whole, tmp_path / "whole").start == 0
    with pytest.raises(Stop):
        run(Learner(stop_at), tmp_path / "cut")
    resumed = Learner()
    done = run(resumed, tmp_path / "cut")
    assert (done.start, done.steps) == (stop_at // EVERY * EVERY, TOTAL)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_it_resumes_from_the_previous_checkpoint_when_the_newest_is_damaged(tmp_path: Path) -> None:
    whole = Learner()
    run(whole, tmp_path / "whole")
    with pytest.raises(Stop):
        run(Learner(30), tmp_path / "cut")
    newest = CheckpointStore(tmp_path / "cut").path(28) / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    resumed = Learner()
    assert run(resumed, tmp_path / "cut").start == 21
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    run(Learner(), tmp_path)
    done = run(Learner(stop_at=TOTAL - 1), tmp_path)
    assert (done.start, done.steps) == (TOTAL, TOTAL)


@pytest.mark.parametrize("other", [{"seed": 4}, {"batch": 8}, {"rows": ROWS - 1}])
def test_a_checkpoint_of_another_run_is_not_gone_on_from(tmp_path: Path, other: dict[str, int]) -> None:
    """T2: with other data, batches or seed the same folder would give a mixture, or a run that never began."""
    run(Learner(), tmp_path)
    order = BatchOrder(**{"rows": ROWS, "batch": BATCH, "seed": 3, **other})
    with pytest.raises(MoorageError) as refused:
        train_steps(Learner(), order, CheckpointStore(tmp_path), total=TOTAL, checkpoint_every=EVERY)
    assert refused.value.code == "checkpoint-of-another-run"


def test_the_step_log_tells_what_was_done_and_from_where(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(Learner(20), tmp_path / "c", steps=lambda start: StepLog(tmp_path, 0, start=start))
    run(Learner(), tmp_path / "c", steps=lambda start: StepLog(tmp_path, 0, start=start, attempt=2))
    lines = list(read_steps(tmp_path / "steps-rank0.jsonl"))
    assert [line["step"] for line in lines] == [*range(1, 21), *range(15, TOTAL + 1)]
    assert [line["start"] for line in lines] == [0] * 20 + [14] * 26
    again = {line["step"]: line["loss"] for line in lines if line["attempt"] == 2}
    first = {line["step"]: line["loss"] for line in lines if line["attempt"] == 1}
    assert all(again[step] == first[step] for step in range(15, 21)), "the repeated steps gave other losses"


def test_a_torn_last_line_of_a_step_log_is_left_out(tmp_path: Path) -> None:
    with StepLog(tmp_path, 0) as log:
        log.write(1, 0.5)
    with open(log.path, "a") as out:
        out.write('{"step": 2, "los')
    assert [line["step"] for line in read_steps(log.path)] == [1]


def test_all_ranks_follow_rank_zero(tmp_path: Path) -> None:
    """Rank 1 takes the step that rank 0 broadcasts, and writes no checkpoint."""
    with pytest.raises(Stop):
        run(Learner(20), tmp_path)
    seen: list[Any] = []
    peers = Peers(rank=1, world=2, agree=lambda _: 7)
    done = run(
        Learner(), tmp_path, peers=peers, on_checkpoint=lambda step, loss, saved: seen.append((step, saved))
    )
    assert done.start == 7 and seen[0] == (14, None)
    assert CheckpointStore(tmp_path).steps() == [7, 14]


@pytest.mark.parametrize("notice_at", [10, 14, 39, 40])
def test_told_to_leave_it_saves_that_step_and_the_next_run_goes_on_from_there(
    tmp_path: Path, notice_at: int
) -> None:
    """At a step of a checkpoint too (14), before the last one (39), and too late to matter (40)."""
    undisturbed = Learner()
    run(undisturbed, tmp_path / "whole")
    seen: list[tuple[int, bool]] = []
    asked = iter(range(1, TOTAL + 1))
    first = run(
        Learner(),
        tmp_path / "told",
        leaves=lambda: next(asked) >= notice_at,
        on_checkpoint=lambda step, loss, saved: seen.append((step, saved is not None)),
    )
    assert first.left is (notice_at < TOTAL) and first.steps == notice_at
    assert [step for step, _ in seen] == sorted({*range(EVERY, notice_at + 1, EVERY), notice_at})
    second = Learner()
    rest = run(second, tmp_path / "told")
    assert rest.start == notice_at and rest.steps == TOTAL and not rest.left
    assert all(torch.equal(a, b) for a, b in zip(weights(undisturbed), weights(second), strict=True))


def test_the_ranks_leave_together_when_the_first_one_was_told(tmp_path: Path) -> None:
    """Rank 1 heard nothing yet; rank 0 has."""
    agreed: list[int] = []

    def agree(number: int) -> int:
        agreed.append(number)
        return 0 if len(agreed) == 1 else int(len(agreed) > 5)  # the start, then: told after step 5

    done = run(Learner(), tmp_path, peers=Peers(rank=1, world=2, agree=agree), leaves=lambda: None)
    assert done.left and done.steps == 5 and agreed[1:] == [0] * 5


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    learner = Learner()
    learner.x[:] = float("nan")
    with pytest.raises(MoorageError) as caught:
        run(learner, tmp_path)
    assert caught.value.code == "training-diverged" and CheckpointStore(tmp_path).steps() == []


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_epoch_covers_each_row_once_whatever_the_number_of_workers(world: int) -> None:
    order = BatchOrder(rows=101, batch=10, seed=4)
    for epoch in range(3):
        permutation = order.epoch(epoch)
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        shares = [set(order.share(permutation, s, r, world).tolist()) for s in steps for r in range(world)]
        seen = [row for share in shares for row in share]
        assert len(seen) == len(set(seen)) == 100
        batches = [set(permutation[i * 10 : i * 10 + 10].tolist()) for i in range(10)]
        per_step = [set().union(*shares[i * world : (i + 1) * world]) for i in range(10)]
        assert per_step == batches
    assert not torch.equal(order.epoch(0), order.epoch(1))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="batch"):
        BatchOrder(rows=5, batch=6, seed=0)
