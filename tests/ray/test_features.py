"""D1, D2, D4: the features job on a real local Ray: whole data set, parity, versions, bad files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import flights_case
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
import ray
import ray.data

from moorage.cluster import binding
from moorage.runtime.features.versions import Catalogue, DatasetVersion

flights_case.importable()
import features  # noqa: E402
from flights_features import CATEGORICALS, FlightFeatures  # noqa: E402
from flights_schema import EVENT  # noqa: E402

JULY_ROWS = 250


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray whose workers find the example's modules, as a job's working_dir gives them."""
    path = os.pathsep.join([str(flights_case.EXAMPLE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}}
    )
    yield
    ray.shutdown()


def job(*arguments: str) -> int:
    """The script's `main` on the module's Ray."""
    given, sys.argv = sys.argv, ["features.py", *arguments]
    try:
        return features.main()
    finally:
        sys.argv = given


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> DatasetVersion:
    root = tmp_path_factory.mktemp("whole") / "features"
    assert job("--output", str(root)) == 0
    return Catalogue(root).get("flights")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 6,000 flights as plain CSV beside the other files."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("weather.csv", "planes.csv", "airports.csv"):
        shutil.copy(flights_case.DATA / name, folder / name)
    with (
        zipfile.ZipFile(flights_case.DATA / "flights.csv.zip") as archive,
        archive.open("flights.csv") as lines,
    ):
        (folder / "flights.csv").write_bytes(b"".join(next(lines) for _ in range(6001)))
    return folder


def test_every_row_is_accounted_for(version: DatasetVersion) -> None:
    raw, book = flights_case.raw_flights(), version.manifest["accounts"]
    assert book["flights"]["in"] == len(raw) == 336_776
    assert (
        book["flights"]["labelled"] == raw.arr_delay.notna().sum() == version.read(columns=["label"]).num_rows
    )
    assert book["flights"]["excluded"]["cancelled"] == raw.dep_time.isna().sum()
    assert book["weather"] == {
        "in": 26_115, "good": 26_114, "quarantined": 1, "reasons": {"wind_speed: outside 0..150": 1}
    }  # fmt: skip
    bad = pq.read_table(version.path / "quarantine" / "rows.parquet").to_pylist()
    assert len(bad) == 1 and bad[0]["source"] == "weather" and "1048" in bad[0]["raw"]


def test_the_table_is_what_the_manifest_says(version: DatasetVersion) -> None:
    manifest, table = version.manifest, version.read()
    version.verify()
    assert {n: str(t) for n, t in zip(table.schema.names, table.schema.types, strict=True)} == manifest[
        "schema"
    ]
    for name in manifest["features"]:
        assert table.schema.field(name).type == pa.float32() and np.isfinite(table[name].to_numpy()).all(), (
            name
        )
    for name, entry in manifest["categoricals"].items():
        codes = table[name].to_numpy()
        assert (
            table.schema.field(name).type == pa.int32()
            and codes.min() >= 0
            and codes.max() < entry["cardinality"]
        )
        assert len(entry["vocabulary"]) == entry["cardinality"]
    frame = table.select(["flight_id", "month", "split", "label"]).to_pandas()
    assert frame.flight_id.is_unique
    months = frame.groupby("split").month.agg(["min", "max"]).to_dict("index")
    assert months == {
        "train": {"min": 1, "max": 6},
        "gate": {"min": 7, "max": 7},
        "test": {"min": 8, "max": 12},
    }
    truth = flights_case.outcomes().set_index("flight_id").loc[frame.flight_id]
    assert ((truth.arr_delay > 15).to_numpy() == (frame.label == 1).to_numpy()).all()
    sched = table["sched_dep"].to_numpy().astype("datetime64[us]")
    assert (sched == truth.sched.dt.tz_localize(None).to_numpy().astype("datetime64[us]")).all()


def test_july_rows_asked_one_by_one_have_the_bits_of_the_offline_rows(version: DatasetVersion) -> None:
    """D4, D6: the same code on the same state, in batches of another size: bit for bit the same features."""
    offline = (
        version.read(split="gate").to_pandas().set_index("flight_id").sample(JULY_ROWS, random_state=2013)
    )
    raw = flights_case.raw_flights().set_index("flight_id").loc[offline.index].reset_index()
    events = flights_case.arrow(
        raw[EVENT.names], ("year", "month", "day", "sched_dep_time", "sched_arr_time", "flight")
    )
    served = FlightFeatures.load(version.path)
    for first, size in [(i, 1) for i in range(50)] + [(i, 8) for i in range(50, JULY_ROWS, 8)]:
        answer = served.transform(events.slice(first, size))
        for name in (*served.names, *CATEGORICALS):
            expected = offline[name].to_numpy()[first : first + size]
            assert answer[name].to_numpy().tobytes() == expected.tobytes(), (name, first)


def test_the_same_inputs_and_code_are_computed_once_unless_forced(
    cluster: None, small: Path, tmp_path: Path
) -> None:
    command = ("--input", str(small), "--output", str(tmp_path))
    assert job(*command) == 0 and job(*command) == 0
    assert [v.version for v in Catalogue(tmp_path).versions("flights")] == ["v001"]
    assert job(*command, "--force") == 0
    first, second = Catalogue(tmp_path).versions("flights")
    assert first.digest == second.digest and second.manifest["lineage"]["previous"] == "v001"
    assert first.manifest["fingerprint"] == second.manifest["fingerprint"]


def test_bad_rows_are_quarantined_with_their_reason_and_the_rest_goes_on(
    cluster: None, small: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(small, folder)
    lines = (folder / "flights.csv").read_text().splitlines()
    lines[1] = lines[1].replace("2013,1,1,", "2013,1,42,", 1)
    lines[2] = lines[2].replace(",EWR,", ",XXX,").replace(",LGA,", ",XXX,").replace(",JFK,", ",XXX,")
    lines[3] = lines[3].replace("2013,1,1,", "2013,2,30,", 1)
    lines[4] = "2013,1,1,not a flight"
    lines[5] = lines[5].replace("2013-01-01T", "2013-01-02T")
    (folder / "flights.csv").write_text("\n".join(lines) + "\n")
    assert job("--input", str(folder), "--output", str(tmp_path / "out")) == 0
    version = Catalogue(tmp_path / "out").get("flights")
    bad = pq.read_table(version.path / "quarantine" / "rows.parquet").filter(pc.field("source") == "flights")
    assert bad["source_row"].to_pylist() == [0, 1, 2, 3, 4]
    assert bad["reason"].to_pylist() == [
        "day: outside 1..31",
        "origin: not one of EWR, JFK, LGA",
        "day: not in that month; time_hour: disagrees with the local schedule",
        "4 cells where 19 belong",
        "time_hour: disagrees with the local schedule",
    ]
    assert version.manifest["accounts"]["flights"]["in"] == 6000
    assert version.manifest["accounts"]["flights"]["quarantined"] == 5
    assert 0 not in version.read(columns=["flight_id"])["flight_id"].to_pylist()


@pytest.mark.parametrize("harm", ["truncated", "garbled", "no column"])
def test_a_broken_parquet_file_ends_the_job_with_its_name(
    cluster: None, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(small, folder)
    (folder / "flights.csv").unlink()
    path = folder / "flights.parquet"
    with (small / "flights.csv").open("rb") as stream:
        table = pcsv.read_csv(stream)
    pq.write_table(
        table.drop_columns(["origin"]) if harm == "no column" else table, path, use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    if harm == "truncated":
        path.write_bytes(data[:-1000])
    elif harm == "garbled":
        data[50:2000] = bytes(1950)
        path.write_bytes(data)
    assert job("--input", str(folder), "--output", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert str(path) in said and "Traceback" not in said
    assert sum(line.startswith("error") for line in said.splitlines()) == 1, said
    assert Catalogue(tmp_path / "out").versions("flights") == []


def test_a_file_without_one_sound_row_ends_the_job_with_the_reason(
    cluster: None, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(small, folder)
    (folder / "flights.csv").write_text((small / "flights.csv").read_text().replace("2013,1,", "2013,13,"))
    assert job("--input", str(folder), "--output", str(tmp_path / "out")) == 2
    said = capsys.readouterr()
    assert "data-empty" in said.err and '"quarantined": 6000' in said.out
    assert Catalogue(tmp_path / "out").versions("flights") == []


def test_inside_a_job_the_lease_bounds_what_ray_data_uses(
    cluster: None, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = ray.get_runtime_context().get_node_id()
    worker = binding.WorkerView(
        node="node-0", ray_node_id=node, devices=(), milli_gpu=0, gpu_mib=0, milli_cpu=1000
    )
    lease = binding.LeaseView(lease_id="l", epoch=1, head=None, workers=(worker,))
    monkeypatch.setenv(binding.LEASE_VARIABLE, binding.encode(lease))
    monkeypatch.setenv("MOORAGE_JOB_ID", "job-7")
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "execution_options", ray.data.ExecutionOptions())
    assert job("--input", str(small), "--output", str(tmp_path)) == 0
    assert context.execution_options.resource_limits.cpu == 1
    assert context.execution_options.label_selector == {binding.NODE_ID_LABEL: f"in({node})"}
    assert Catalogue(tmp_path).get("flights").manifest["lineage"]["job_id"] == "job-7"


def test_the_script_runs_by_itself(small: Path, tmp_path: Path) -> None:
    """As a user would, with no cluster: it starts a Ray of its own and leaves none behind."""
    command = [sys.executable, "features.py", "--input", str(small), "--output", str(tmp_path), "--cpus", "2"]
    done = subprocess.run(
        command, cwd=flights_case.EXAMPLE, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"event": "version"' in done.stdout
    assert Catalogue(tmp_path).get("flights").version == "v001"
