"""D4, D5: versions are complete or absent, never shared by two writers, and show when they were changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moorage.errors import DataError, NotFound
from moorage.runtime.features.versions import Catalogue, DatasetVersion, commit, staging


def write(root: Path, value: int, **manifest: object) -> DatasetVersion:
    with staging(root, "trips") as draft:
        pq.write_table(pa.table({"x": [value], "split": ["train"]}), draft / "part-train-0.parquet")
        (draft / "state").mkdir()
        (draft / "state" / "c.json").write_text("{}")
        return commit(draft, "trips", {"rows": {"train": 1}, **manifest})


def test_versions_count_up_and_read_back(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2, fingerprint="f")
    shelf = Catalogue(tmp_path)
    assert shelf.views() == ["trips"] and [v.version for v in shelf.versions("trips")] == ["v001", "v002"]
    assert shelf.get("trips").read(split="train", columns=["x"]).to_pydict() == {"x": [2]}
    assert shelf.get("trips", "1").path == first.path == shelf.get("trips", "v001").path
    assert shelf.by_fingerprint("trips", "f") == second and shelf.by_fingerprint("trips", "g") is None
    with pytest.raises(NotFound):
        shelf.get("trips", "²")  # a digit to str.isdigit, no number to int
    assert first.digest != second.digest
    stored = json.loads((first.path / "manifest.json").read_text())
    assert stored["version"] == "v001" and set(stored["files"]) == {"part-train-0.parquet", "state/c.json"}


def test_equal_content_has_an_equal_digest(tmp_path: Path) -> None:
    assert write(tmp_path, 1).digest == write(tmp_path, 1).digest


@pytest.mark.parametrize("name", ["", "v9", "x"])
def test_what_is_not_there_is_not_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, 1)
    with pytest.raises(NotFound):
        Catalogue(tmp_path).get("trips", name)
    with pytest.raises(NotFound):
        Catalogue(tmp_path).get("../trips")


def test_writers_at_once_get_a_version_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda i: write(tmp_path, i), range(24)))
    assert sorted(v.version for v in written) == [f"v{n:03d}" for n in range(1, 25)]
    for version in written:
        Catalogue(tmp_path).get("trips", version.version).verify()
    assert not list((tmp_path / "trips").glob(".staging-*"))


def test_a_writer_killed_before_the_rename_leaves_no_version(tmp_path: Path) -> None:
    """The process dies for real, in the rename itself."""
    code = """
import os, sys
from pathlib import Path
from moorage.runtime.features import versions
os.rename = lambda *_: os._exit(9)
with versions.staging(sys.argv[1], "trips") as draft:
    (draft / "part-train-0.parquet").write_bytes(b"x")
    versions.commit(draft, "trips", {"rows": {}})
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == 9
    assert len(list((tmp_path / "trips").glob(".staging-*"))) == 1
    assert Catalogue(tmp_path).versions("trips") == []
    assert write(tmp_path, 1).version == "v001"


def test_an_abandoned_draft_is_swept_after_a_day_and_a_young_one_is_not(tmp_path: Path) -> None:
    old, young = tmp_path / "trips" / ".staging-old", tmp_path / "trips" / ".staging-young"
    for draft in (old, young):
        draft.mkdir(parents=True)
    os.utime(old, (1, 1))
    write(tmp_path, 1)
    assert not old.exists() and young.exists()


def test_an_error_while_staging_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staging(tmp_path, "trips"):
        raise RuntimeError
    assert list((tmp_path / "trips").iterdir()) == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda d: (d / "part-train-0.parquet").write_bytes(b"other"), "part-train-0.parquet differs"),
        (lambda d: (d / "state" / "c.json").unlink(), "state/c.json is missing"),
        (lambda d: (d / "part-more.parquet").write_bytes(b""), "part-more.parquet is not in it"),
    ],
    ids=["changed", "removed", "added"],
)
def test_verify_names_the_file_that_was_touched(tmp_path: Path, harm: object, said: str) -> None:
    version = write(tmp_path, 1)
    version.verify()
    harm(version.path)  # type: ignore[operator]
    with pytest.raises(DataError, match=said):
        version.verify()


def test_a_broken_manifest_is_an_error_that_names_it(tmp_path: Path) -> None:
    version = write(tmp_path, 1)
    (version.path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="manifest of trips v001"):
        Catalogue(tmp_path).versions("trips")


@pytest.mark.parametrize("name", ["", "../x", "A", ".hidden", "a/b"])
def test_a_view_name_is_a_plain_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError), staging(tmp_path, name):
        pass
