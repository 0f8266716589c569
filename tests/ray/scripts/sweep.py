"""An elastic sweep for tests: six trials of argv[1] steps each, a line of the job's file for every step of every
trial."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TRIALS = 6
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


def trial(config: dict[str, Any]) -> None:
    from ray import tune

    done = 0
    if before := tune.get_checkpoint():
        with before.as_directory() as folder:
            done = int((Path(folder) / "step").read_text())
    for step in range(done + 1, config["steps"] + 1):
        time.sleep(0.2)
        line = {
            "trial": config["trial_index"],
            "step": step,
            "slot": config["moorage_slot"],
            "at": time.time(),
        }
        with open(config["file"], "a") as out:
            out.write(json.dumps(line) + "\n")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "step").write_text(str(step))
            tune.report({"loss": 1 / step}, checkpoint=tune.Checkpoint.from_directory(folder))


def main() -> None:
    import ray
    from ray import tune

    from moorage.train import tune_config, tune_resources

    job = os.environ["MOORAGE_JOB_ID"]
    runs = Path(os.environ["MOORAGE_DATA"]) / "runs" / job
    runs.mkdir(parents=True, exist_ok=True)
    ray.init()
    configs = [{"steps": int(sys.argv[1]), "file": str(runs / "steps.jsonl")} for _ in range(TRIALS)]
    found = tune.Tuner(
        tune.with_resources(trial, tune_resources()),
        tune_config=tune_config(configs, metric="loss", follow=True),
        run_config=tune.RunConfig(name=job, storage_path=str(runs / "ray"), verbose=0),
    ).fit()
    (runs / "ended.json").write_text(json.dumps({"errors": found.num_errors, "trials": len(found)}))


if __name__ == "__main__":
    main()
