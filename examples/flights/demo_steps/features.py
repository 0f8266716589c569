"""Step 1: Ray Data reads the files, checks them, joins weather as of departure and commits one version."""

from __future__ import annotations

from typing import Any

from demo_steps.run import OPS, PATIENCE_S, Run
from moorage.errors import DataError

STEP = "features"


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
        "histories": manifest.get("histories", {}),
        "splits": manifest["splits"],
        "lineage": manifest["lineage"],
    }


def categoricals(manifest: Any) -> dict[str, Any]:
    found = manifest["categoricals"]
    return dict(found) if isinstance(found, dict) else {entry["name"]: entry for entry in found}
