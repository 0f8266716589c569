"""Train on GPUs that others do not use just now, and give them back when they are wanted: a plain script, no Ray.

    ray job submit --working-dir examples/flights \
        --metadata-json '{"workers": "6", "min_workers": "2", "gpus_per_worker": "1", "preemptible": "true"}' \
        -- python borrowed.py

It logs each step to $MOORAGE_DATA/runs/<job>/steps-rank0.jsonl. Told to leave, it saves the step that it is at and
goes; the next attempt goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from flights_learn import TorchLearner
from flights_model import build, latest_version, read_manifest, read_rows

import moorage
from moorage.train import BatchOrder, CheckpointStore, StepLog, train_steps


def say(event: str, **more: Any) -> None:
    print("@moorage " + json.dumps({"event": event, **more}), flush=True)


class Slow:
    """A learner whose steps take at least so long: this one is small, and stands for a larger one. At `stays_at` it
    stays until it is told to leave, two minutes at most."""

    def __init__(self, learner: TorchLearner, pause_s: float, stays_at: int) -> None:
        self._learner, self._pause_s, self._stays_at = learner, pause_s, stays_at
        self.state, self.load = learner.state, learner.load

    def step(self, rows: torch.Tensor, step: int) -> float:
        time.sleep(self._pause_s)
        until = time.monotonic() + 120
        while step == self._stays_at and moorage.preemption() is None and time.monotonic() < until:
            time.sleep(0.1)
        return self._learner.step(rows, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pause-ms", type=float, default=10.0, help="added to each step")
    parser.add_argument(
        "--stay-at",
        type=int,
        default=-1,
        help="a step at which the first attempt stays until it is told to leave (default: none)",
    )
    args = parser.parse_args()

    torch.set_num_threads(1)
    job, attempt = os.environ.get("MOORAGE_JOB_ID", "local"), int(os.environ.get("MOORAGE_ATTEMPT", "1"))
    data, lease = Path(os.environ["MOORAGE_DATA"]), moorage.context()
    version, runs = latest_version(data), data / "runs" / job
    rows = read_rows(version, "train", [1])
    torch.manual_seed(1)
    net = build(read_manifest(version), {})
    net.fit_normaliser(rows.numeric)

    def log(start: int) -> StepLog:
        workers = 0 if lease is None else len(lease.workers)
        say("borrows", attempt=attempt, workers=workers, from_step=start)
        return StepLog(runs, 0, attempt=attempt, start=start)

    done = train_steps(
        Slow(
            TorchLearner(net, rows, {}, args.steps, net),
            args.pause_ms / 1000,
            args.stay_at if attempt == 1 else -1,
        ),
        BatchOrder(rows=len(rows), batch=256, seed=1),
        CheckpointStore(data / "checkpoints" / job),
        total=args.steps,
        checkpoint_every=500,
        steps=log,
        leaves=moorage.preemption,
    )
    if done.left:
        notice = moorage.preemption()
        say("left", attempt=attempt, step=done.steps, why=notice.reason if notice else "")
        moorage.checkpointed(done.steps)
        moorage.leave(done.steps)
    say("trained", attempt=attempt, step=done.steps, loss=round(done.loss, 4))


if __name__ == "__main__":
    main()
