"""How good the champion is on months nobody selected on, and how far those months moved from the training data.

    ray job submit --working-dir examples/flights --entrypoint-num-cpus 2 -- python evaluate.py

On August to December: ROC-AUC, log-loss and calibration of the champion, of the constant prediction at the training
base rate, and of scikit-learn's HistGradientBoostingClassifier fitted here on the same features and the same rows;
the champion against the latter also as a paired bootstrap over days, which says what the difference is worth.
July to December against training: the population stability index of each feature and of the prediction. Writes
$MOORAGE_DATA/reports/evaluation-<job>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flights_model import Rows, cardinalities, feature_names, load, predict, read_manifest, read_rows

from moorage.runtime.telemetry import paired, shift
from moorage.train.evaluate import evaluate

Floats = npt.NDArray[np.float64]
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
GATE_MONTH, TEST_MONTHS = 7, range(8, 13)
CHAMPION, BOOSTING, MAJORITY = "champion", "histogram gradient boosting", "majority"
DAY_ENDS = 8 * 60
CURVE_POINTS, CALIBRATION_BINS = 160, 10
STARTED = time.monotonic()


def say(event: str, **fields: Any) -> None:
    """One line for programs, one for people."""
    elapsed = round(time.monotonic() - STARTED, 2)
    print("@moorage " + json.dumps({"event": event, "elapsed_s": elapsed, **fields}), flush=True)
    print(f"[{elapsed:6.2f} s] {event}: " + ", ".join(f"{k} {v}" for k, v in fields.items()), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="models:/flights@champion", help="a registered model, or a model directory"
    )
    parser.add_argument(
        "--output", help="the JSON file (default: $MOORAGE_DATA/reports/evaluation-<job>.json)"
    )
    return parser.parse_args()


def find_model(name: str, data: Path) -> tuple[Path, dict[str, Any]]:
    """(verified directory, what the report says of it)."""
    if not name.startswith("models:/"):
        return Path(name), {"uri": name}
    from moorage.runtime.registry import Registry

    found = Registry.open(data).resolve(name)
    return found.path, {"uri": name, "version": found.version, "sha256": found.sha256}


def numbers(rows: Rows) -> npt.NDArray[np.float32]:
    """All columns side by side, numeric first: what a tree model sees."""
    return np.hstack([rows.numeric.numpy(), rows.categories.numpy().astype(np.float32)])


def fit_boosting(train: Rows, cards: Mapping[str, int], seed: int = 0) -> Any:
    """scikit-learn's booster with its own defaults; ids are categories up to the 255 values it takes, else numbers."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    first = train.numeric.shape[1]
    ids = [first + i for i, card in enumerate(cards.values()) if card <= 255]
    # early stopping would hold rows out that the champion was trained on
    model = HistGradientBoostingClassifier(random_state=seed, early_stopping=False, categorical_features=ids)
    return model.fit(numbers(train), train.label.numpy())


def metrics(label: Floats, months: npt.NDArray[np.int64], predicted: Mapping[str, Floats]) -> dict[str, Any]:
    """Figures per model over all rows and per month, and how far our AUC and log-loss are from scikit-learn's."""
    from sklearn.metrics import log_loss, roc_auc_score

    table: dict[str, Any] = {}
    for name, scores in predicted.items():
        by_month = {
            MONTHS[m - 1]: evaluate(label[months == m], scores[months == m])
            for m in np.unique(months).tolist()
        }
        table[name] = {"all": evaluate(label, scores), "by_month": by_month}
    ours, scores = table[CHAMPION]["all"], predicted[CHAMPION]
    table["differs_from_sklearn"] = max(
        abs(ours["auc"] - roc_auc_score(label, scores)), abs(ours["log_loss"] - log_loss(label, scores))
    )
    return table


def flying_days(version: Path, months: Sequence[int]) -> npt.NDArray[np.int64]:
    """The day of each test row, counted from 1970, in the order in which `read_rows` gives the rows.

    A day of New York's flights ends at 8:00 UTC, when hardly anything is scheduled, not at midnight UTC.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    files = sorted(str(path) for path in version.glob("part-*.parquet"))
    found = []
    for month in months:
        keep = (pc.field("split") == "test") & (pc.field("month") == month)
        table = ds.dataset(files, format="parquet").to_table(["sched_dep"], filter=keep, use_threads=False)
        minutes = table["sched_dep"].to_numpy().astype("datetime64[m]").astype(np.int64)
        found.append((minutes - DAY_ENDS) // (24 * 60))
    return np.concatenate(found)


def roc_points(label: Floats, scores: Floats) -> dict[str, list[float]]:
    """The ROC curve at `CURVE_POINTS` evenly spaced false positive rates."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(label, scores)
    at = np.linspace(0, 1, CURVE_POINTS)
    return {"x": at.round(5).tolist(), "y": np.interp(at, false, true).round(5).tolist()}


def calibration_points(label: Floats, scores: Floats) -> dict[str, list[float]]:
    """Mean prediction, observed rate and rows in equally filled bins of the prediction."""
    inner = np.unique(np.quantile(scores, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]))
    bins = np.searchsorted(inner, scores, side="right")
    count = np.bincount(bins, minlength=inner.size + 1)
    used = count > 0
    mean = np.bincount(bins, weights=scores, minlength=inner.size + 1)[used] / count[used]
    rate = np.bincount(bins, weights=label, minlength=inner.size + 1)[used] / count[used]
    return {"x": mean.round(5).tolist(), "y": rate.round(5).tolist(), "rows": count[used].tolist()}


def shifts(
    train: Rows, later: Mapping[str, Rows], predicted: Mapping[str, Floats], manifest: Any
) -> dict[str, Any]:
    """PSI of every feature and of the prediction, July to December against the training rows.

    `predicted` has the champion's probabilities of the training rows under "train" and of each month under its name.
    """
    names, cards = feature_names(manifest), cardinalities(manifest)
    numeric = shift.shift_table(
        {n: train.numeric[:, i].numpy() for i, n in enumerate(names)},
        {m: {n: rows.numeric[:, i].numpy() for i, n in enumerate(names)} for m, rows in later.items()},
    )
    ids = shift.shift_table(
        {n: train.categories[:, i].numpy() for i, n in enumerate(cards)},
        {m: {n: rows.categories[:, i].numpy() for i, n in enumerate(cards)} for m, rows in later.items()},
        bins=max(cards.values(), default=shift.BINS),
    )
    scores = shift.shift_table(
        {"prediction": predicted["train"]}, {m: {"prediction": predicted[m]} for m in later}
    )
    least = min(len(rows) for rows in later.values())
    return {
        "months": list(later),
        "rule": shift.RULE,
        "categoricals": "one bin per id",
        "source": shift.SOURCE,
        "expected_without_shift": shift.expected(shift.BINS, len(train), least),
        "features": sorted([*numeric, *ids], key=lambda row: (-row["max"], row["name"])),
        "prediction": scores[0],
        "label_rate": {m: float(rows.label.mean()) for m, rows in later.items()}
        | {"train": float(train.label.mean())},
    }


def run(args: argparse.Namespace, data: Path) -> dict[str, Any]:
    where, about = find_model(args.model, data)
    model, card = load(where)
    version = data / "features" / "flights" / str(card["data_version"])
    manifest = read_manifest(version)
    trained_on = [int(m) for m in card.get("months", range(1, GATE_MONTH))]
    train = read_rows(version, "train", trained_on)
    later = {MONTHS[GATE_MONTH - 1]: read_rows(version, "gate", [GATE_MONTH])}
    later |= {MONTHS[m - 1]: read_rows(version, "test", [m]) for m in TEST_MONTHS}
    say("rows", train=len(train), **{name.lower(): len(rows) for name, rows in later.items()})
    began = time.monotonic()
    boosting = fit_boosting(train, cardinalities(manifest))
    say("fitted", model=BOOSTING, rows=len(train), seconds=round(time.monotonic() - began, 1))
    own = {"train": predict(model, train)} | {name: predict(model, rows) for name, rows in later.items()}
    test = [MONTHS[m - 1] for m in TEST_MONTHS]
    label = np.concatenate([later[m].label.numpy() for m in test]).astype(np.float64)
    months = np.repeat(list(TEST_MONTHS), [len(later[m]) for m in test])
    base = float(train.label.double().mean())
    predicted = {
        CHAMPION: np.concatenate([own[m] for m in test]),
        BOOSTING: np.concatenate([boosting.predict_proba(numbers(later[m]))[:, 1] for m in test]),
        MAJORITY: np.full(label.shape, base),
    }
    table = metrics(label, months, predicted)
    say("quality", **{f"auc_{n.split()[-1]}": round(table[n]["all"]["auc"], 4) for n in predicted})
    days = flying_days(version, TEST_MONTHS)
    pair = paired.difference(label, predicted[CHAMPION], predicted[BOOSTING], days)
    say("paired", **{key: {k: round(v, 5) for k, v in pair[key].items()} for key in ("auc", "log_loss")})
    moved = shifts(train, later, own, manifest)
    say("shift", largest=moved["features"][0]["name"], psi=round(moved["features"][0]["max"], 3))
    ranked = {CHAMPION: predicted[CHAMPION], BOOSTING: predicted[BOOSTING]}
    return {
        "model": {
            **about,
            "card": {k: card.get(k) for k in ("model", "hparams", "data_version", "steps", "seed")},
        },
        "data_version": version.name,
        "trained_on_months": trained_on,
        "train_rows": len(train),
        "test_rows": int(label.size),
        "test_months": test,
        "metrics": table,
        "against_boosting": pair,
        "roc": {name: roc_points(label, scores) for name, scores in ranked.items()},
        "calibration": {name: calibration_points(label, scores) for name, scores in ranked.items()},
        "shift": moved,
        "seconds": round(time.monotonic() - STARTED, 2),
    }


def main() -> int:
    args = arguments()
    data, job = Path(os.environ.get("MOORAGE_DATA", "data")), os.environ.get("MOORAGE_JOB_ID", "local")
    result = run(args, data)
    output = Path(args.output) if args.output else data / "reports" / f"evaluation-{job}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_suffix(".tmp")
    draft.write_text(json.dumps(result, indent=1, allow_nan=False), encoding="utf-8")
    draft.replace(output)
    say("evaluated", path=str(output), test_rows=result["test_rows"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
