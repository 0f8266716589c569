"""Train the flights model with PyTorch DDP (or DeepSpeed ZeRO-2) on Ray Train: January to June, two workers.

    ray job submit --working-dir examples/flights --metadata-json '{"workers": "2", "gpus_per_worker": "1"}' \
        -- python train.py

Each worker logs its steps to $MOORAGE_DATA/runs/<job>/steps-rank<r>.jsonl. Kill one: the run goes on from its last
checkpoint and ends at the same step count. With "preemptible": "true" the pool may take its devices back: it saves the
step that it is at, leaves, and goes on later. The model is left in $MOORAGE_DATA/runs/<job>/model.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

# Ray Train looks for dead workers this often (seconds); its default of 2 s makes a restart slower.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


def say(event: str, **more: Any) -> None:
    print("@moorage " + json.dumps({"event": event, **more}), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--batch", type=int, default=1024, help="global batch: rows per optimiser step, over all workers"
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="stop after this many steps (default: all epochs)"
    )
    parser.add_argument("--checkpoint-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--keep", type=int, default=3, help="checkpoints kept")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--hparams", type=json.loads, default={}, help="JSON that overrides the model's defaults"
    )
    parser.add_argument(
        "--data-version", default="", help="version of the features, e.g. v001 (default: newest)"
    )
    parser.add_argument("--workers", type=int, default=2, help="workers when no lease says how many")
    parser.add_argument("--max-failures", type=int, default=3, help="worker deaths to recover from")
    parser.add_argument("--deepspeed", action="store_true", help="ZeRO-2 through DeepSpeed instead of DDP")
    return parser.parse_args()


def train_loop(config: dict[str, Any]) -> None:
    """One worker: read the rows, resume, step, checkpoint, report. Rank 0 leaves the model directory."""
    import ray.train
    import torch
    import torch.distributed as dist
    from flights_model import build, card_of, read_manifest, read_rows, save

    import moorage
    from moorage.train import BatchOrder, CheckpointStore, Peers, StepLog, train_steps

    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    version, runs = Path(config["version"]), Path(config["runs"])
    manifest = read_manifest(version)
    rows = read_rows(version, "train", config["months"])
    torch.manual_seed(config["seed"])  # the same first weights on every rank
    net = build(manifest, config["hparams"])
    net.fit_normaliser(rows.numeric)
    order = BatchOrder(rows=len(rows), batch=config["batch"], seed=config["seed"])
    total = config["steps"] or order.steps_per_epoch * config["epochs"]
    learner = make_learner(net, rows, config, total, rank)

    def agree(number: int) -> int:
        box = torch.tensor([number])
        dist.broadcast(box, src=0)
        return int(box)

    def report(step: int, loss: float, checkpoint: Any) -> None:
        handle = None if checkpoint is None else ray.train.Checkpoint.from_directory(str(checkpoint.path))
        mode = ray.train.CheckpointUploadMode.NO_UPLOAD  # it already lies, verified, in the shared storage
        ray.train.report({"step": step, "loss": loss}, checkpoint=handle, checkpoint_upload_mode=mode)

    (runs / f"total-{total}").touch()
    done = train_steps(
        learner,
        order,
        CheckpointStore(config["checkpoints"], keep=config["keep"]),
        total=total,
        checkpoint_every=config["checkpoint_every"],
        peers=Peers(rank=rank, world=world, agree=agree),
        steps=lambda start: StepLog(runs, rank, attempt=config["attempt"], start=start),
        on_checkpoint=report,
        leaves=moorage.preemption,  # the pool wants the devices back: save this step and go
    )
    if done.left:
        if rank == 0:
            moorage.checkpointed(done.steps)
            (runs / f"left-{config['attempt']}").write_text(str(done.steps), encoding="utf-8")
    elif rank == 0:
        card = card_of(net, manifest, config["hparams"], version.name, float(rows.label.mean()))
        made = {"steps": done.steps, "seed": config["seed"], "months": config["months"]}
        save(net, {**card, **made}, runs / "model")


def make_learner(net: Any, rows: Any, config: dict[str, Any], total: int, rank: int) -> Any:
    import torch
    import torch.distributed as dist
    from flights_learn import DeepSpeedLearner, TorchLearner

    if not config["deepspeed"]:
        wrapped = torch.nn.parallel.DistributedDataParallel(net)
        return TorchLearner(net, rows, config["hparams"], total, wrapped)

    import deepspeed
    from flights_model import DEFAULTS

    # DeepSpeed would compile its shared-memory all-reduce on first use: minutes on a busy machine, for nothing here
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    lr = float({**DEFAULTS, **config["hparams"]}["lr"])
    per_rank = config["batch"] // dist.get_world_size()
    engine, *_ = deepspeed.initialize(
        model=net,
        model_parameters=list(net.parameters()),
        config={
            "train_micro_batch_size_per_gpu": per_rank,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": 2},
            # torch's own Adam: the fused one needs a compiler on every node
            "optimizer": {"type": "AdamW", "params": {"lr": lr, "torch_adam": True}},
            "scheduler": {
                "type": "WarmupCosineLR",
                "params": {"total_num_steps": total, "warmup_num_steps": total // 10},
            },
            "steps_per_print": total + 1,
        },
    )

    def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    return DeepSpeedLearner(engine, net, rows, rank, gather)


class Watch(threading.Thread):
    """Prints progress from the step log of rank 0, about once a second."""

    def __init__(self, runs: Path) -> None:
        super().__init__(daemon=True)
        self.runs, self.stopped = runs, threading.Event()

    def run(self) -> None:
        seen = -1
        while not self.stopped.wait(0.5):
            totals = [int(p.name[6:]) for p in self.runs.glob("total-*")]
            last = last_step(self.runs / "steps-rank0.jsonl")
            if last and totals and last["step"] != seen:
                seen = last["step"]
                say("step", step=seen, of=totals[0], loss=round(last["loss"], 4), resumed_from=last["start"])


def last_step(path: Path) -> dict[str, Any] | None:
    """The last whole line of a step log."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, path.stat().st_size - 4096))
            lines = log.read().split(b"\n")
    except FileNotFoundError:
        return None
    return json.loads(lines[-2]) if len(lines) >= 2 else None


def main() -> None:
    args = arguments()
    from flights_model import latest_version

    import moorage

    job, attempt = os.environ.get("MOORAGE_JOB_ID", "local"), int(os.environ.get("MOORAGE_ATTEMPT", "1"))
    data = Path(os.environ["MOORAGE_DATA"])
    version = data / "features" / "flights" / args.data_version if args.data_version else latest_version(data)
    runs, checkpoints = data / "runs" / job, data / "checkpoints" / job
    runs.mkdir(parents=True, exist_ok=True)
    for stale in runs.glob("total-*"):
        stale.unlink()
    config = {
        **vars(args),
        "version": str(version),
        "months": [1, 2, 3, 4, 5, 6],
        "runs": str(runs),
        "checkpoints": str(checkpoints),
        "attempt": attempt,
    }
    say("train", job=job, attempt=attempt, data_version=version.name, deepspeed=args.deepspeed)
    began = time.monotonic()
    fit(config, args)
    last = last_step(runs / "steps-rank0.jsonl") or {}
    if (left := runs / f"left-{attempt}").exists():
        say("left", step=int(left.read_text(encoding="utf-8")), attempt=attempt)
        moorage.leave(
            int(left.read_text(encoding="utf-8"))
        )  # queued again; the next attempt goes on from there
    track(config, runs, data)
    say(
        "trained",
        step=last.get("step"),
        loss=last.get("loss"),
        seconds=round(time.monotonic() - began, 1),
        model=str(runs / "model"),
    )


def fit(config: dict[str, Any], args: argparse.Namespace) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from moorage.cluster.binding import current
    from moorage.train import scaling_config

    ray.init()
    watch = Watch(Path(config["runs"]))
    watch.start()
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=config,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=scaling_config(None if current() else args.workers),
        run_config=RunConfig(
            # Ray's notes lie beside our checkpoints: it refuses to hear of one outside its own folder
            name=Path(config["checkpoints"]).name,
            storage_path=str(Path(config["checkpoints"]).parent),
            failure_config=FailureConfig(max_failures=args.max_failures),
        ),
    )
    trainer.fit()
    watch.stopped.set()
    watch.join()


def track(config: dict[str, Any], runs: Path, data: Path) -> None:
    """Write the run to the tracking database: settings, the loss of every tenth step, code and data version."""
    from moorage.runtime.registry import Registry, code_version, current_environment
    from moorage.train.steplog import read_steps

    keep = ("epochs", "batch", "seed", "deepspeed", "hparams", "months", "checkpoint_every")
    tags = {
        "moorage.data_version": Path(config["version"]).name,
        "moorage.code_version": code_version(Path(__file__).parent),
        "moorage.environment": current_environment().digest,
    }
    run = Registry.open(data).track(
        "deepspeed" if config["deepspeed"] else "ddp",
        experiment="flights",
        params={key: config[key] for key in keep},
        tags=tags,
    )
    with run:
        for line in read_steps(runs / "steps-rank0.jsonl"):
            if line["step"] % 10 == 0:
                run.metrics({"loss": line["loss"]}, step=line["step"])
    (runs / "run.json").write_text(json.dumps({"run_id": run.run_id}), encoding="utf-8")


if __name__ == "__main__":
    main()
