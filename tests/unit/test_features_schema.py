"""D1, D5: bad rows leave with every reason, good rows stay as they are, a missing column is an error."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from moorage.errors import DataError
from moorage.runtime.features.schema import REASON, ROW, Field, Rule, TableSchema, split

SCHEMA = TableSchema(
    name="trips",
    fields=(
        Field(name="id", type="int", low=1),
        Field(name="km", type="float", nullable=True, low=0, high=100),
        Field(name="port", type="string", one_of=("A", "B")),
    ),
    rules=(
        Rule(
            name="id: odd at port B",
            holds=lambda t: ~((np.asarray(t["id"]) % 2 == 1) & (np.asarray(t["port"]) == "B")),
        ),
    ),
)
ROWS = [
    ("1", "2.5", "A", None),
    ("2", "", "B", None),
    ("x", "5", "A", "id: not an integer"),
    ("", "5", "A", "id: missing"),
    ("0", "101", "C", "id: outside 1..inf; km: outside 0..100; port: not one of A, B"),
    ("4", "nan", "A", "km: not a finite number"),
    ("5", "1", "B", "id: odd at port B"),
    ("1.5", "1", "A", "id: not an integer"),
    ("99999999999999999999", "1", "A", "id: not an integer"),
]


def block(rows: list[tuple[str | None, ...]]) -> pa.Table:
    columns = dict(zip(("id", "km", "port"), map(list, zip(*rows, strict=True)), strict=True))
    return pa.table(
        {
            ROW: list(range(len(rows))),
            **{k: pa.array(v, pa.string()) for k, v in columns.items()},
            "extra": ["e"] * len(rows),
        }
    )


def test_each_bad_row_has_its_reasons_and_its_text_and_nothing_is_lost() -> None:
    checked = SCHEMA.check(block([row[:3] for row in ROWS]))
    assert checked[REASON].to_pylist() == [row[3] for row in ROWS]
    good, bad = split(checked)
    assert good.num_rows + bad.num_rows == len(ROWS)
    assert good.schema.names == [ROW, "id", "km", "port"] and good["km"].to_pylist() == [2.5, None]
    assert bad[ROW].to_pylist() == [2, 3, 4, 5, 6, 7, 8]
    assert json.loads(bad["raw"][0].as_py()) == {"id": "x", "km": "5", "port": "A", "extra": "e"}


def test_a_typed_block_is_checked_like_text() -> None:
    typed = pa.table({"id": pa.array([1, -1]), "km": pa.array([1.0, float("inf")]), "port": ["A", "A"]})
    reasons = SCHEMA.check(typed)[REASON].to_pylist()
    assert reasons == [None, "id: outside 1..inf; km: not a finite number"]


def test_a_typed_fraction_is_no_integer() -> None:
    typed = pa.table({"id": pa.array([1.0, 1.5]), "km": [1.0, 1.0], "port": ["A", "A"]})
    assert SCHEMA.check(typed)[REASON].to_pylist() == [None, "id: not an integer"]


def test_an_empty_block_is_fine() -> None:
    assert SCHEMA.check(block([ROWS[0][:3]]).slice(0, 0)).num_rows == 0


def test_a_missing_column_names_itself_and_the_file() -> None:
    with pytest.raises(DataError, match=r"trips\.csv lacks the column km") as caught:
        SCHEMA.check(block([("1", "1", "A")]).drop_columns(["km"]), where="trips.csv")
    assert caught.value.code == "data-schema"
