"""D1: files in every form read the same, and a broken one is an error that names it."""

from __future__ import annotations

import copy
import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moorage.errors import DataError
from moorage.runtime.features.schema import RAW, REASON, ROW, Field, TableSchema, split
from moorage.runtime.features.sources import read_rows

TEXT = b"id,name\n1,ann\n2,bob\n"


def zipped(path: Path, text: bytes = TEXT) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.csv", text)


WRITERS: dict[str, Callable[[Path], object]] = {
    "rows.csv": lambda p: p.write_bytes(TEXT),
    "rows.csv.gz": lambda p: p.write_bytes(gzip.compress(TEXT)),
    "rows.csv.zip": zipped,
}


@pytest.mark.parametrize("name", WRITERS)
def test_csv_reads_as_text_with_row_numbers(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    table = read_rows(str(tmp_path / name))
    assert table.to_pydict() == {ROW: [0, 1], "id": ["1", "2"], "name": ["ann", "bob"]}


def test_a_line_that_is_no_row_is_quarantined_under_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,name\n1,ann\n2\n3,cid\n4,dot,extra\n5,eve\n")
    table = read_rows(str(path))
    assert table[ROW].to_pylist() == [0, 1, 2, 3, 4]
    assert table[REASON].to_pylist() == [None, "1 cells where 2 belong", None, "3 cells where 2 belong", None]
    assert table[RAW].to_pylist() == [None, "2", None, "4,dot,extra", None]
    schema = TableSchema(
        name="rows", fields=(Field(name="id", type="int"), Field(name="name", type="string"))
    )
    good, bad = split(schema.check(table))
    assert good["id"].to_pylist() == [1, 3, 5]
    assert bad["reason"].to_pylist() == ["1 cells where 2 belong", "3 cells where 2 belong"]
    assert bad["raw"].to_pylist() == ["2", "4,dot,extra"]


def truncated_parquet(path: Path) -> None:
    pq.write_table(pa.table({"id": list(range(10_000))}), path)
    path.write_bytes(path.read_bytes()[:-500])


def garbled_parquet(path: Path) -> None:
    """A sound footer over broken pages: only reading the data finds it."""
    pq.write_table(
        pa.table({"id": [str(i * i) for i in range(10_000)]}), path, compression="zstd", use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    data[60:400] = bytes(340)
    path.write_bytes(bytes(data))


def truncated_zip(path: Path) -> None:
    zipped(path, TEXT * 5000)
    path.write_bytes(path.read_bytes()[:-100])


def truncated_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(TEXT * 5000)[:-30])


BROKEN: dict[str, Callable[[Path], object]] = {
    "truncated.parquet": truncated_parquet,
    "garbled.parquet": garbled_parquet,
    "truncated.csv.zip": truncated_zip,
    "truncated.csv.gz": truncated_gzip,
    "empty.csv": lambda p: p.write_bytes(b""),
    "binary.csv": lambda p: p.write_bytes(b"id,name\n1,\xff\xfe\xfa\n"),
    "missing.csv": lambda p: None,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    BROKEN[name](tmp_path / name)
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value) and caught.value.code == "data-unreadable"
    again = copy.copy(caught.value)  # what crossing a process border inside Ray does to it
    assert str(again) == str(caught.value) and again.code == caught.value.code
