"""Search the flights model's settings with Ray Tune and ASHA: January to May, validated on June.

    ray job submit --working-dir examples/flights --metadata-json '{"workers": "2", "gpus_per_worker": "0.5"}' \
        -- python sweep.py --space wide --trials 6

As many trials run at a time as the lease has workers, each on a device of the lease. The best model is left in
$MOORAGE_DATA/runs/<job>/best, the worst in .../worst. The job's next attempt begins the sweep again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

# Tune's own console table and its per-trial loggers cost more than these small trials do.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_SYNCER", "1")

SPACES: dict[str, dict[str, Any]] = {
    "wide": {
        "hidden": [[64], [128], [256]],
        "lr": (5e-4, 1e-2),
        "dropout": (0.0, 0.2),
        "embedding": [4, 8, 12],
    },
    "deep": {
        "hidden": [[64, 32], [64, 32, 16], [96, 48]],
        "lr": (5e-4, 1e-2),
        "dropout": (0.0, 0.2),
        "embedding": [4, 8],
    },
}


def say(event: str, **more: Any) -> None:
    print("@moorage " + json.dumps({"event": event, **more}), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--space", choices=sorted(SPACES), default="wide")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--rungs", type=int, default=4, help="how often a trial is looked at, and may be stopped"
    )
    parser.add_argument("--steps-per-rung", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--data-version", default="", help="version of the features (default: newest)")
    return parser.parse_args()


def space(name: str) -> dict[str, Any]:
    from ray import tune

    chosen = SPACES[name]
    return {
        "hidden": tune.choice(chosen["hidden"]),
        "embedding": tune.choice(chosen["embedding"]),
        "lr": tune.loguniform(*chosen["lr"]),
        "dropout": tune.uniform(*chosen["dropout"]),
        "weight_decay": 1e-5,
    }


def main() -> None:
    args = arguments()
    from flights_model import latest_version

    job, team = os.environ.get("MOORAGE_JOB_ID", "local"), os.environ.get("MOORAGE_TEAM", "local")
    data = Path(os.environ["MOORAGE_DATA"])
    version = data / "features" / "flights" / args.data_version if args.data_version else latest_version(data)
    runs = data / "runs" / job
    runs.mkdir(parents=True, exist_ok=True)
    fixed = {**vars(args), "version": str(version), "runs": str(runs)}
    began = time.monotonic()
    say("sweep", job=job, team=team, trials=args.trials, space=args.space, data_version=version.name)
    results = search(args, fixed, data, job)
    summarise(results, args, version, runs, time.monotonic() - began)


def search(args: argparse.Namespace, fixed: dict[str, Any], data: Path, job: str) -> Any:
    """Run the sweep of this attempt. Returns Tune's ResultGrid.

    Not `Tuner.restore`: it unpickles a file from a folder that every team can write, and it would place trials
    where the last attempt's lease was.
    """
    import ray
    from flights_trial import trial
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback
    from ray.tune.schedulers import ASHAScheduler

    from moorage.runtime.registry import Registry
    from moorage.train import sample_configs, tune_config, tune_resources
    from moorage.train.tracking import TrackTrials

    ray.init()
    storage = data / "ray-tune"
    runnable = tune.with_resources(tune.with_parameters(trial, fixed=fixed), tune_resources())
    tracker = TrackTrials(Registry.open(data), experiment="flights", on_end=progress)
    callbacks = [tracker, JsonLoggerCallback()]  # Tune reads each trial's results back from its JSON log
    name = f"{job}-{os.environ.get('MOORAGE_ATTEMPT', '1')}-{time.time_ns()}"
    config = tune.RunConfig(name=name, storage_path=str(storage), callbacks=callbacks, verbose=0)
    configs = sample_configs(space(args.space), args.trials, args.seed)
    asha = ASHAScheduler(time_attr="rung", max_t=args.rungs, grace_period=1, reduction_factor=2)
    settings = tune_config(
        configs,
        metric="log_loss",
        mode="min",
        scheduler=asha,
        reuse_actors=True,
        trial_dirname_creator=lambda t: f"trial-{t.config['trial_index']:03d}",
    )
    return tune.Tuner(runnable, tune_config=settings, run_config=config).fit()


def progress(index: int, result: dict[str, Any], error: bool) -> None:
    say("trial", trial=index, rungs=result.get("rung", 0), log_loss=result.get("log_loss"), error=error)


def summarise(results: Any, args: argparse.Namespace, version: Path, runs: Path, seconds: float) -> None:
    """Point at the best and the worst model, and leave sweep.json for whoever asks."""
    import shutil

    done = [r for r in results if r.metrics and "log_loss" in r.metrics]
    if not done:
        raise SystemExit(f"no trial finished: {'; '.join(str(e) for e in results.errors)[:500]}")
    ranked = sorted(done, key=lambda r: float(r.metrics["log_loss"]))
    for label, result in (("best", ranked[0]), ("worst", ranked[-1])):
        shutil.rmtree(runs / label, ignore_errors=True)
        shutil.copytree(result.metrics["model"], runs / label)
    table = [
        {
            "trial": r.config["trial_index"],
            "rungs": r.metrics["rung"],
            "log_loss": r.metrics["log_loss"],
            "auc": r.metrics["auc"],
            **{k: r.config[k] for k in ("hidden", "embedding", "lr", "dropout")},
        }
        for r in ranked
    ]
    body = {"space": args.space, "seed": args.seed, "data_version": version.name, "trials": table}
    (runs / "sweep.json").write_text(json.dumps(body, indent=1), encoding="utf-8")
    for row in table:
        print(
            f"trial {row['trial']:>2}  rungs {row['rungs']}  log-loss {row['log_loss']:.5f}  AUC {row['auc']:.4f}  "
            f"hidden {row['hidden']}  lr {row['lr']:.2g}"
        )
    say(
        "swept",
        trials=len(table),
        errors=results.num_errors,
        seconds=round(seconds, 1),
        best=table[0],
        model=str(runs / "best"),
    )


if __name__ == "__main__":
    main()
