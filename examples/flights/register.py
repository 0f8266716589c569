"""Measure candidates on July, register them, let the gate decide, promote what passes.

    python register.py --candidates $MOORAGE_DATA/runs/<train job>/model $MOORAGE_DATA/runs/<sweep job>/best ...

The rows of July were used by nobody before. Each candidate is compared with the champion of the moment on the same
rows; a worse one is registered, refused, and the reason stays with it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def say(event: str, **more: Any) -> None:
    print("@moorage " + json.dumps({"event": event, **more}), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="flights")
    parser.add_argument(
        "--candidates", nargs="+", type=Path, required=True, help="model directories, in order"
    )
    parser.add_argument("--data-version", default="", help="version of the features (default: newest)")
    parser.add_argument(
        "--margin", type=float, default=0.0, help="log-loss by which a candidate may be worse"
    )
    return parser.parse_args()


def measure(directory: Path, version: Path) -> tuple[dict[str, float], Any]:
    """(metrics, Holdout) of a saved model on July."""
    import flights_model

    from moorage.runtime.registry import holdout_from
    from moorage.train.evaluate import evaluate, majority_baseline

    model, card = flights_model.load(directory)
    july = gate_rows(version)
    figures = evaluate(july.label, flights_model.predict(model, july))
    majority = majority_baseline(july.label, float(card["train_positive_rate"]))
    return figures, holdout_from(figures, f"flights/{version.name}/gate/{len(july)}", majority["log_loss"])


_ROWS: dict[Path, Any] = {}


def gate_rows(version: Path) -> Any:
    import flights_model

    if version not in _ROWS:
        _ROWS[version] = flights_model.read_rows(version, "gate")
    return _ROWS[version]


def consider(registry: Any, args: argparse.Namespace, directory: Path, version: Path) -> bool:
    """Register one candidate and promote it if the gate lets it. True when it became champion."""
    import flights_model

    from moorage.errors import NotFound
    from moorage.runtime.registry import GatePolicy, code_version

    _, card = flights_model.load(directory)
    figures, holdout = measure(directory, version)
    run_file = directory.parent / "run.json"
    made = registry.register(
        args.name,
        directory,
        metrics=figures,
        data_version=card["data_version"],
        code_version=code_version(Path(__file__).parent),
        lineage={"from_job": directory.parent.name, "from": directory.name, "feature_view": "flights"},
        run_id=json.loads(run_file.read_text())["run_id"] if run_file.exists() else "",
    )
    try:
        found = registry.resolve(f"models:/{args.name}@champion")
        measured, champion = found.version, measure(found.path, version)[1]
    except NotFound:
        measured, champion = None, None
    policy = GatePolicy(margin=args.margin)
    decision = registry.gate(
        args.name, made.version, holdout, champion=champion, measured=measured, policy=policy
    )
    if decision.passed:
        registry.promote(args.name, made.version)
    verdict = "champion" if decision.passed else "refused"
    source = f"{directory.parent.name}/{directory.name}"
    print(f"{args.name} version {made.version} ({source}): {verdict}")
    for reason in decision.reasons:
        print(f"    {reason}")
    say(
        "gate",
        version=made.version,
        source=source,
        passed=decision.passed,
        against=decision.against,
        reasons=decision.reasons,
        log_loss=round(figures["log_loss"], 6),
        auc=round(figures["auc"], 5),
        majority_log_loss=round(holdout.majority_log_loss, 6),
        sha256=made.sha256,
    )
    return decision.passed


def main() -> None:
    args = arguments()
    import torch
    from flights_model import latest_version

    from moorage.runtime.registry import Registry

    torch.set_num_threads(1)
    data = Path(os.environ["MOORAGE_DATA"])
    version = data / "features" / "flights" / args.data_version if args.data_version else latest_version(data)
    registry = Registry.open(data)
    passed = [consider(registry, args, directory.absolute(), version) for directory in args.candidates]
    found = registry.resolve(f"models:/{args.name}@champion")
    say("registered", candidates=len(passed), passed=sum(passed), champion=found.version, sha256=found.sha256)


if __name__ == "__main__":
    main()
