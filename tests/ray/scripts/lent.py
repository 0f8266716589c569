"""A preemptible training job for tests: Ray Train on the workers of its lease, every step in a file of its own.

`python lent.py STEPS`, and with `follow` after that the run goes on at another size when its lease has one. The loss
that is logged is that of the whole batch, so it does not depend on how many workers share it. `reference(STEPS)` does
the same steps in this process, undisturbed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROWS, BATCH, SEED, EVERY = 960, 48, 3, 25


def learner(world: int, pause_s: float) -> Any:
    import torch
    import torch.distributed as dist
    from torch import nn

    class Learner:
        def __init__(self) -> None:
            torch.manual_seed(SEED)
            net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
            self.net = net
            self.wrapped = nn.parallel.DistributedDataParallel(net) if world > 1 else net
            self.optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
            self.x = torch.randn(ROWS, 4)
            self.y = self.x.sum(dim=1, keepdim=True).sin()

        def step(self, rows: torch.Tensor, step: int) -> float:
            time.sleep(pause_s)  # stands for a larger model
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.wrapped(self.x[rows]), self.y[rows])
            loss.backward()
            self.optimizer.step()
            whole = loss.detach().clone()
            if world > 1:
                dist.all_reduce(whole)
            return float(whole) / world

        def state(self) -> dict[str, Any]:
            return {"net": dict(self.net.state_dict()), "optimizer": self.optimizer.state_dict()}

        def load(self, state: dict[str, Any]) -> None:
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])

    return Learner()


def train_loop(config: dict[str, Any]) -> None:
    import ray.train
    import torch
    import torch.distributed as dist

    import moorage
    from moorage.train import BatchOrder, CheckpointStore, Peers, StepLog, hand_over, told, train_steps

    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world, runs = context.get_world_rank(), context.get_world_size(), Path(config["runs"])

    def agree(number: int) -> int:
        box = torch.tensor([number])
        dist.broadcast(box, src=0)
        return int(box)

    if rank == 0:
        with open(runs / "worlds.jsonl", "a") as out:
            out.write(json.dumps({"attempt": config["attempt"], "world": world}) + "\n")
    done = train_steps(
        learner(world, 0.02),
        BatchOrder(rows=ROWS, batch=BATCH, seed=SEED),
        CheckpointStore(runs / "checkpoints"),
        total=config["steps"],
        checkpoint_every=EVERY,
        peers=Peers(rank=rank, world=world, agree=agree),
        steps=lambda start: StepLog(runs, rank, attempt=config["attempt"], start=start),
        leaves=told if config["follow"] else moorage.preemption,
    )
    if done.left and config["follow"]:
        hand_over(done.steps)
    if done.left:
        deadline = (
            time.monotonic() + 30
        )  # the ranks agree at once; what rank 0 heard reaches the others a little later
        while moorage.preemption() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        (runs / f"heard-{rank}-{config['attempt']}").write_text(str(moorage.preemption()))
    if done.left and rank == 0:
        moorage.checkpointed(done.steps)
        (runs / f"left-{config['attempt']}").write_text(str(done.steps))


def reference(steps: int, folder: Path) -> list[float]:
    """The losses of an undisturbed run on one worker."""
    from moorage.train import BatchOrder, CheckpointStore, StepLog, train_steps
    from moorage.train.steplog import read_steps

    train_steps(
        learner(1, 0),
        BatchOrder(rows=ROWS, batch=BATCH, seed=SEED),
        CheckpointStore(folder / "checkpoints"),
        total=steps,
        checkpoint_every=EVERY,
        steps=lambda start: StepLog(folder, 0, start=start),
    )
    return [line["loss"] for line in read_steps(folder / "steps-rank0.jsonl")]


def main() -> None:
    import ray
    from ray.train import RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    import moorage
    from moorage.train import scaling_config

    job, attempt = os.environ["MOORAGE_JOB_ID"], int(os.environ["MOORAGE_ATTEMPT"])
    runs = Path(os.environ["MOORAGE_DATA"]) / "runs" / job
    runs.mkdir(parents=True, exist_ok=True)
    ray.init()
    follow = sys.argv[2:] == ["follow"]
    TorchTrainer(
        train_loop,
        train_loop_config={
            "runs": str(runs),
            "steps": int(sys.argv[1]),
            "attempt": attempt,
            "follow": follow,
        },
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=scaling_config(follow=follow),
        run_config=RunConfig(name=f"{job}-{attempt}", storage_path=str(runs / "ray")),
    ).fit()
    if (left := runs / f"left-{attempt}").exists():
        moorage.leave(int(left.read_text()))


if __name__ == "__main__":
    main()
