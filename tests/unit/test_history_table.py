"""Reading CSV files: what is wrong with a file is an error, what is wrong with a row leaves the row out."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.errors import DataError, NotFound
from moorage.runtime.history import table

WANTED = {"name": table.name, "size": table.whole, "seconds": table.number, "at": table.moment}
HEAD = "name,size,seconds,at\n"
GOOD = "a,1,2.5,2017-10-09 07:01:55\n"


def read(tmp_path: Path, content: str | bytes, name: str = "x.csv") -> table.Table:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return table.read_table(path, WANTED, {"note": table.text})


def refused(tmp_path: Path, row: str) -> tuple[str, str]:
    """(code, text) of a row between two good ones, which stay."""
    found = read(tmp_path, HEAD + GOOD + row + "\n" + GOOD)
    assert len(found) == 3 and found.kept().tolist() == [0, 2]
    (one,) = found.left_out("name")
    assert one.row == 2
    return one.code, one.text


def test_columns_have_their_types_and_their_order_does_not_matter(tmp_path: Path) -> None:
    found = read(tmp_path, "at,note,seconds,other,size,name\n1970-01-01 00:00:01,hi,2.5,?,7, b \n")
    assert found.columns["size"].tolist() == [7] and found.columns["size"].dtype == np.int64
    assert found.columns["seconds"].tolist() == [2.5]
    assert found.columns["at"].tolist() == [10**9]
    assert found.columns["name"].tolist() == ["b"] and found.columns["note"].tolist() == ["hi"]
    assert "other" not in found.columns and not found.refused


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "name,sizes,at\n")
    text = str(caught.value)
    assert caught.value.code == "trace-column-missing" and "\n" not in text
    assert "x.csv" in text and "'size', 'seconds'" in text and "'sizes'" in text


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "trace-empty"),
        (b"\n\n", "trace-empty"),
        (b"name,size,seconds,at,size\n", "trace-column-twice"),
        ((HEAD + GOOD).encode("utf-16"), "trace-not-text"),
        (HEAD.encode() + b"\xff\xfe\xfd,1,2,3\n", "trace-not-text"),
        (gzip.compress((HEAD + GOOD).encode(), mtime=0)[:30], "trace-unreadable"),
        (b"\x1f\x8b\x08\x00garbage", "trace-unreadable"),
        (gzip.compress(b"", mtime=0)[:10] + b"\xff" * 30, "trace-unreadable"),
        (HEAD.encode() + b'"' + b"x" * 200_000 + b"\n", "trace-not-text"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert caught.value.code == code and "\n" not in str(caught.value)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="trace-not-found"):
        table.read_table(tmp_path / "none.csv", WANTED, {})
    with pytest.raises(DataError, match="is a directory"):
        table.read_table(tmp_path, WANTED, {})
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be read"):
        table.read_table(tmp_path / "file" / "below", WANTED, {})


def test_gzip_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + (HEAD + GOOD + "\n" + GOOD).replace("\n", "\r\n").encode()
    plain, packed = read(tmp_path, content), read(tmp_path, gzip.compress(content), "x.csv.gz")
    assert len(plain) == len(packed) == 2, "the empty line is no row"
    for name, column in plain.columns.items():
        assert column.tolist() == packed.columns[name].tolist()
    assert not plain.refused


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("b,-1,2,0", "negative"),
        ("b,1,-0.5,0", "negative"),
        ("b,x,2,0", "not-a-number"),
        ("b,,2,0", "not-a-number"),
        ("b,1.5,2,0", "not-a-number"),
        ("b,nan,2,0", "not-a-number"),
        ("b,1,NaN,0", "not-a-number"),
        ("b,1,inf,0", "too-large"),
        ("b,inf,2,0", "too-large"),
        (f"b,{2**62 + 1},2,0", "too-large"),
        (f"b,{2**64},2,0", "too-large"),
        (f"b,{10**400},2,0", "too-large"),
        ("b,1,1e300,0", "too-large"),
        ("b,1,2,yesterday", "not-a-time"),
        ("b,1,2,2017-13-09 07:01:55", "not-a-time"),
        ("b,1,2,", "not-a-time"),
        ("b,1,2,nan", "not-a-time"),
        ("b,1,2,1e18", "out-of-range"),
        ("b,1,2,-1", "out-of-range"),
        ("b,1,2,1969-12-31 23:59:59", "out-of-range"),
        ("b,1,2,3000-01-01 00:00:00", "out-of-range"),
        (",1,2,0", "no-name"),
        ("b,1,2", "row-width"),
        ("b,1,2,0,5", "row-width"),
    ],
)
def test_a_row_that_is_wrong_is_left_out_with_the_reason(tmp_path: Path, row: str, code: str) -> None:
    found, text = refused(tmp_path, row)
    assert found == code and text


def test_a_message_shows_a_long_cell_short_and_on_one_line(tmp_path: Path) -> None:
    _, text = refused(tmp_path, 'b,"' + "9" * 30 + "\n" + "x" * 60_000 + '",2,0')
    assert len(text) < 120 and "\n" not in text


@pytest.mark.parametrize(
    "cell",
    [
        "2017-10-09 07:01:55",
        "2017-10-09T07:01:55",
        "2017-10-09T07:01:55Z",
        "2017-10-09 09:01:55+02:00",
        "1507532515",
    ],
)
def test_a_moment_is_the_same_however_it_is_written(tmp_path: Path, cell: str) -> None:
    found = read(tmp_path, f"{HEAD}a,1,2,{cell}\n")
    assert found.columns["at"].tolist() == [1_507_532_515 * 10**9] and not found.refused


def test_duplicates_point_at_the_first_of_the_name(tmp_path: Path) -> None:
    found = read(tmp_path, HEAD + GOOD + GOOD.replace("a", "b") + GOOD + GOOD)
    found.refuse_duplicates("name")
    assert [(one.row, one.code) for one in found.left_out("name")] == [
        (3, "duplicate-id"),
        (4, "duplicate-id"),
    ]
    assert all("row 1" in one.text for one in found.left_out("name"))


def test_the_first_reason_stays(tmp_path: Path) -> None:
    found = read(tmp_path, HEAD + "a,-1,nan,0\n")
    found.refuse(np.array([True]), "late", str)
    assert found.left_out("name")[0].code == "negative"


def test_rows_beyond_one_chunk_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_CHUNK", 3)
    rows = [GOOD.replace("a", f"n{i}") for i in range(10)]
    rows[7] = "n7,-7,1,0\n"
    found = read(tmp_path, HEAD + "".join(rows))
    assert found.columns["name"].tolist() == [f"n{i}" for i in range(10)]
    assert [one.row for one in found.left_out("name")] == [8]
    assert found.kept().tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]


ROW = st.tuples(
    st.integers(0, table.MOST),
    st.floats(0, 1e9, allow_nan=False),
    st.integers(0, 4_102_444_800).map(lambda s: s * 10**9),
)


@given(rows=st.lists(ROW, min_size=1, max_size=30))
def test_what_is_written_is_read(
    rows: list[tuple[int, float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [
        f"n{i},{size},{seconds!r},{np.datetime64(at, 'ns').astype('datetime64[s]')}"
        for i, (size, seconds, at) in enumerate(rows)
    ]
    found = read(tmp_path_factory.mktemp("t"), HEAD + "\n".join(lines) + "\n")
    assert not found.refused
    assert list(zip(*(found.columns[c].tolist() for c in ("size", "seconds", "at")), strict=True)) == rows


@given(
    cells=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12), min_size=1)
)
def test_no_cell_breaks_a_parser(cells: list[str]) -> None:
    for parse in (table.whole, table.number, table.moment, table.name, table.text):
        noted: dict[int, str] = {}

        def note(at: int, code: str, text: str, noted: dict[int, str] = noted) -> None:
            noted[at] = code

        found = parse("c", tuple(cells), note)
        assert len(found) == len(cells)
        if parse is table.whole:
            good = [at for at in range(len(cells)) if at not in noted]
            assert [int(found[at]) for at in good] == [int(float(cells[at])) for at in good]
