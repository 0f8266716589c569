"""A preemptible training job on Ray Train: `python train.py STEPS`. Each step is one line of a file of its own.

Told to leave, it saves the step that it is at, says so, and ends with the code that means "queue me again"; the next
attempt goes on from there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

PAUSE_S = 0.05
"""Of each step: stands for a larger model."""
ROWS, BATCH = 960, 48


class Learner:
    """Learns the sine of a sum."""

    def __init__(self, world: int) -> None:
        import torch
        from torch import nn

        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        self.wrapped = nn.parallel.DistributedDataParallel(self.net) if world > 1 else self.net
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.x = torch.randn(ROWS, 4)
        self.y = self.x.sum(dim=1, keepdim=True).sin()

    def step(self, rows: Any, step: int) -> float:
        from torch import nn

        time.sleep(PAUSE_S)
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.wrapped(self.x[rows]), self.y[rows])
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        return {"net": dict(self.net.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])


def train_loop(config: dict[str, Any]) -> None:
    import ray.train
    import torch
    import torch.distributed as dist

    import moorage
    from moorage.train import BatchOrder, CheckpointStore, Peers, StepLog, train_steps

    torch.set_num_threads(1)
    context, runs = ray.train.get_context(), Path(config["runs"])
    rank, world = context.get_world_rank(), context.get_world_size()

    def agree(number: int) -> int:
        box = torch.tensor([number])
        dist.broadcast(box, src=0)
        return int(box)

    done = train_steps(
        Learner(world),
        BatchOrder(rows=ROWS, batch=BATCH, seed=3),
        CheckpointStore(runs / "checkpoints"),
        total=config["steps"],
        checkpoint_every=200,
        peers=Peers(rank=rank, world=world, agree=agree),
        steps=lambda start: StepLog(runs, rank, attempt=config["attempt"], start=start),
        leaves=moorage.preemption,
    )
    if done.left and rank == 0:
        moorage.checkpointed(done.steps)
        (runs / f"left-{config['attempt']}").write_text(str(done.steps))


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
    TorchTrainer(
        train_loop,
        train_loop_config={"runs": str(runs), "steps": int(sys.argv[1]), "attempt": attempt},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=scaling_config(),
        run_config=RunConfig(name=f"{job}-{attempt}", storage_path=str(runs / "ray")),
    ).fit()
    if (left := runs / f"left-{attempt}").exists():
        moorage.leave(int(left.read_text()))


if __name__ == "__main__":
    main()
