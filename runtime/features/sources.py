"""Files in: CSV (also zipped or gzipped) and Parquet, each row numbered, a broken file an error that names it.

CSV cells stay text here: the schema types them, so that one bad cell costs one row and not the file. A line
with the wrong number of cells becomes a row that carries its reason.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from moorage.errors import DataError
from moorage.runtime.features.schema import RAW, REASON, ROW, TableSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One input file of a pipeline under the name lineage gives it, with the schema its rows must satisfy."""

    name: str
    path: str
    schema: TableSchema

    def sha256(self) -> str:
        """Hex digest of the file as it lies there. Raises DataError when it cannot be read."""
        try:
            return file_sha256(Path(self.path))
        except OSError as error:
            raise _unreadable(self.path, error) from error


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_rows(path: str) -> pa.Table:
    """Every row of the file with `source_row` (from 0); CSV cells as text. Raises DataError naming the file.

    A malformed CSV line is a row of nulls with `quarantine_reason` and its text in `quarantine_raw`.
    """
    try:
        if path.endswith((".parquet", ".pq")):
            table = pq.read_table(path)
            return table.add_column(0, ROW, pa.array(np.arange(table.num_rows, dtype=np.int64)))
        with _open_csv(path) as stream:
            return _read_csv(stream)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _open_csv(path: str) -> IO[bytes]:
    if path.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if m.endswith(".csv") and not m.startswith("__MACOSX/")]
            if len(members) != 1:
                raise zipfile.BadZipFile(f"expected one .csv inside, found {len(members)}")
            return io.BytesIO(archive.read(members[0]))  # read() checks the CRC
    if path.endswith(".gz"):
        return io.BytesIO(gzip.decompress(Path(path).read_bytes()))
    return Path(path).open("rb")


def _read_csv(stream: IO[bytes]) -> pa.Table:
    broken: list[tuple[int, str, str]] = []

    def keep(row: pcsv.InvalidRow) -> str:
        broken.append(
            (row.number, f"{row.actual_columns} cells where {row.expected_columns} belong", row.text)
        )
        return "skip"

    data = stream.read()
    header = pcsv.open_csv(
        io.BytesIO(data), parse_options=pcsv.ParseOptions(invalid_row_handler=lambda _: "skip")
    ).schema
    table = pcsv.read_csv(
        io.BytesIO(data),
        read_options=pcsv.ReadOptions(use_threads=False),  # threads would lose the numbers of malformed lines
        parse_options=pcsv.ParseOptions(invalid_row_handler=keep),
        convert_options=pcsv.ConvertOptions(
            column_types={name: pa.string() for name in header.names}, strings_can_be_null=False
        ),
    )
    rows = np.arange(table.num_rows + len(broken), dtype=np.int64)
    # The header is line 1, so the first row is line 2.
    bad_rows = np.array([number - 2 for number, _, _ in broken], dtype=np.int64)
    table = table.add_column(0, ROW, pa.array(np.setdiff1d(rows, bad_rows)))
    if not broken:
        return table
    lines = pa.table(
        {
            ROW: bad_rows,
            REASON: pa.array([why for _, why, _ in broken], pa.string()),
            RAW: pa.array([text for _, _, text in broken], pa.string()),
        }
    )
    return pa.concat_tables([table, lines], promote_options="default").sort_by(ROW)


def _unreadable(path: str, error: Exception) -> DataError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"Cannot read {path}",
        why=f"{type(error).__name__}: {first}",
        todo="the file is missing, truncated or not what its name says: fetch it again",
        code="data-unreadable",
        file=path,
    )
