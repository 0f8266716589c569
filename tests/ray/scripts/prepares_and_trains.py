"""Plain Ray Data and Ray Train that know nothing of Moorage: all GPUs prepare, then all but one train while that one
prepares what they read, then all compute once more. argv: how many GPUs, and a folder for one file per stretch of GPU
time and one per rank with what it read. Prints what was computed."""

import json
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

GPUS, OUT = int(sys.argv[1]), Path(sys.argv[2])


@contextmanager
def on_a_gpu(what):
    begin = time.time()
    yield
    with open(OUT / f"{uuid.uuid4().hex}.json", "w", encoding="utf-8") as line:
        json.dump({"what": what, "begin": begin, "end": time.time()}, line)


class Embed:
    def __call__(self, batch):
        with on_a_gpu("embed"):
            time.sleep(0.2)
            return {"id": batch["id"], "embedded": batch["id"] * 2}


def embedded(rows, actors):
    return ray.data.range(rows).map_batches(Embed, batch_size=8, num_gpus=1, num_cpus=0.1, concurrency=actors)


def train():
    with on_a_gpu("train"):
        batches = ray.train.get_dataset_shard("train").iter_batches(batch_size=8)
        read = sum(int(batch["embedded"].sum()) for batch in batches)
    (OUT / f"rank-{ray.train.get_context().get_world_rank()}").write_text(str(read))


def fit(workers, dataset):
    scaling = ray.train.ScalingConfig(
        num_workers=workers, use_gpu=True, resources_per_worker={"GPU": 1, "CPU": 0.1}
    )
    TorchTrainer(
        train,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=scaling,
        datasets={"train": dataset},
        run_config=ray.train.RunConfig(storage_path=str(OUT / "runs"), name="beside"),
    ).fit()


@ray.remote(num_gpus=1, num_cpus=0.1)
def compute(i):
    """How many of them run at once: each waits for the others."""
    with on_a_gpu("compute"):
        (OUT / f"here-{i}").touch()
        until = time.monotonic() + 10
        while len(list(OUT.glob("here-*"))) < GPUS and time.monotonic() < until:
            time.sleep(0.05)
    return len(list(OUT.glob("here-*")))


ray.init(log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
said = {"embedded": embedded(96, GPUS).sum("embedded")}
fit(GPUS - 1, embedded(64, 1))
said["computed"] = ray.get([compute.remote(i) for i in range(GPUS)])
print(json.dumps(said))
