"""Step 1: Ray Data reads the files, checks them, joins weather as of departure and commits one version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from demo_steps.run import OPS, PATIENCE_S, Run
from moorage.errors import DataError

STEP = "features"
WRONG_WIND_MPH = 1048
"""What the weather file really says of Newark on 12 February at 3 in the morning."""
LEAST_FOUND = 0.99


def run(demo: Run) -> None:
    demo.screen.start(STEP, "submitting")
    job = demo.submit(
        STEP,
        "flights-features",
        OPS,
        "python",
        "features.py",
        metadata={"workers": "1", "cpus_per_worker": "2"},
    )
    said = job.event("version", PATIENCE_S)
    demo.finish(job, f"{said['rows']:,} labelled rows in {said['version']}")
    check(demo, str(said["version"]), job.job_id)


def check(demo: Run, version: str, job_id: str) -> None:
    from moorage.runtime.features.versions import Catalogue

    dataset = Catalogue(demo.pool.data / "features").get("flights", version)
    manifest: Any = dataset.manifest
    accounts, rows = manifest["accounts"], manifest["rows"]
    expect = demo.checks.expect
    lost = {name: a["in"] - a["good"] - a["quarantined"] for name, a in accounts.items()}
    expect(
        STEP,
        "every row read is kept or quarantined with a reason",
        not any(lost.values()),
        lost,
        "0 lost in each file",
    )
    check_quarantine(demo, accounts, quarantined(dataset.path))
    flights = accounts["flights"]
    unlabelled = sum(flights["excluded"].values())
    expect(
        STEP,
        "every good flight is labelled or has no arrival",
        flights["labelled"] + unlabelled == flights["good"],
        f"{flights['labelled']:,} labelled + {unlabelled:,} without arrival of {flights['good']:,}",
        "sums to the good rows",
    )
    expect(STEP, "splits are there", set(rows) == {"train", "gate", "test"}, rows, "train, gate and test")
    found_share = check_weather(demo, weather_ages(dataset.path), flights["labelled"])
    made_by = manifest["lineage"]["job_id"]
    expect(STEP, "lineage names the job that wrote it", made_by == job_id, made_by, job_id)
    damage = ""
    try:
        dataset.verify()
    except DataError as error:
        damage = str(error)
    found = damage or f"{len(manifest['files'])} files, {dataset.digest[:12]}"
    expect(STEP, "files match the manifest", not damage, found, "the SHA-256 of each")
    demo.facts["features"] = {
        "version": version,
        "digest": dataset.digest,
        "rows": rows,
        "accounts": accounts,
        "features": len(manifest["features"]),
        "categoricals": {name: entry["cardinality"] for name, entry in categoricals(manifest).items()},
        "weather_found": round(found_share, 6),
        "histories": manifest.get("histories", {}),
        "splits": manifest["splits"],
        "lineage": manifest["lineage"],
    }


def quarantined(version: Path) -> list[dict[str, Any]]:
    """The refused rows, each with its file, its place there, the reason and the row as it was."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(version / "quarantine" / "rows.parquet").to_pylist()
    return rows


def check_quarantine(demo: Run, accounts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """As many rows lie in quarantine as the accounts say, and the one that everybody can look up is among them."""
    counted = sum(account["quarantined"] for account in accounts.values())
    demo.checks.expect(
        STEP,
        "refused rows are kept, with the reason",
        len(rows) == counted > 0 and all(row["reason"] for row in rows),
        f"{len(rows):,} rows with a reason",
        f"the {counted:,} of the accounts, at least 1",
    )
    winds = [
        (float(json.loads(row["raw"])["wind_speed"]), row["reason"])
        for row in rows
        if row["source"] == "weather" and row["reason"].startswith("wind_speed")
    ]
    demo.checks.expect(
        STEP,
        "the impossible wind was refused",
        any(int(speed) == WRONG_WIND_MPH for speed, _ in winds),
        "; ".join(f"{speed:,.0f} mph ({reason})" for speed, reason in winds) or "no wind was",
        f"the {WRONG_WIND_MPH:,} mph of the weather file, by its wind_speed",
    )


def weather_ages(version: Path) -> npt.NDArray[np.float64]:
    """Minutes between the observation that each labelled row was given and its scheduled departure."""
    import pyarrow.dataset as ds

    files = sorted(str(path) for path in version.glob("part-*.parquet"))
    table = ds.dataset(files, format="parquet").to_table(["weather_age"])
    return table["weather_age"].to_numpy().astype(np.float64)


def check_weather(demo: Run, ages: npt.NDArray[np.float64], labelled: int) -> float:
    """Almost every labelled row found an observation, none from its future. The share that found one."""
    from flights_features import WEATHER_TOLERANCE

    # a row without an observation is given the tolerance itself: one of exactly that age counts as none
    found = int(np.count_nonzero(ages < WEATHER_TOLERANCE))
    early = int(np.count_nonzero(~(ages >= 0)))
    share = found / ages.size if ages.size else 0.0
    demo.checks.expect(
        STEP,
        "weather was joined as of departure",
        ages.size == labelled and share >= LEAST_FOUND and not early,
        f"{found:,} of {ages.size:,} rows found an observation, {early:,} a later one",
        f"at least {LEAST_FOUND:.0%} of {labelled:,}, none later than the departure",
    )
    return share


def categoricals(manifest: Any) -> dict[str, Any]:
    found = manifest["categoricals"]
    return dict(found) if isinstance(found, dict) else {entry["name"]: entry for entry in found}
